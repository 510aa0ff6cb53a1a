"""`python -m lorafleet_kernels.gpu.gate`: compiles every form of every kernel for every card, with no GPU, and fails
where one spills, outgrows a card, or lacks the instructions that it was written for.

Exit 0: all may ship; 1: some must not, each named with card and number; 2: nothing could be checked."""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from multiprocessing import get_context

from lorafleet_kernels.gpu import kernels
from lorafleet_kernels.gpu.machine_code import CARDS, MachineCode, compile_for, faults, resident_warps
from lorafleet_kernels.gpu.specialization import INTERPRETED, Specialization


@dataclass(frozen=True, slots=True)
class Verdict:
    """One form on one card; `code` is None where it could not be compiled, and then `faults` says why."""

    module: str
    form: str
    card: str
    faults: tuple[str, ...]
    code: MachineCode | None = None
    resident_warps: int = 0


def kernel_modules() -> list[str]:
    """The names of all modules of `gpu/kernels`."""
    return [f"{kernels.__name__}.{module.name}" for module in pkgutil.iter_modules(kernels.__path__)]


def forms_of(module: str) -> list[Specialization]:
    """What its `specializations()` lists; nothing where it has none, as a module of device functions."""
    listed: list[Specialization] = getattr(import_module(module), "specializations", list)()
    names = [form.name for form in listed]
    if len(set(names)) != len(names):
        raise ValueError(f"{module}: two forms have one name: {sorted({n for n in names if names.count(n) > 1})}")
    return listed


def judge(module: str, number: int, card_name: str) -> Verdict:
    """In a process of the pool, so the form is named by its module and its place there."""
    form, card = forms_of(module)[number], CARDS[card_name]
    try:
        code = compile_for(form, card)
    except Exception as error:  # the compiler raises of all kinds; each belongs in the report
        lines = str(error).strip().splitlines() or [""]
        return Verdict(module, form.name, card.name, (f"does not compile: {type(error).__name__}: {lines[-1]}",))
    found = tuple(faults(form, code, card))
    return Verdict(module, form.name, card.name, found, code, resident_warps(form, code, card))


def run(
    modules: Sequence[str], cards: Sequence[str], only: str = "", but: str = "", every: int = 1,
    processes: int | None = None,
) -> list[Verdict]:  # fmt: skip
    """Verdicts in the order of modules, forms and cards; of forms whose name contains `only` and not `but`, and of
    `every` so many of them one."""
    work = [
        (module, number, card)
        for module in modules
        for number, form in enumerate(forms_of(module))
        if only in form.name and not (but and but in form.name)
        for card in cards
        if not form.cards or card in form.cards
    ][::every]
    processes = processes or len(os.sched_getaffinity(0))
    if processes == 1 or len(work) < 4:
        return [judge(*task) for task in work]
    # Spawned, not forked: torch has threads. Small pieces, as forms differ tenfold in what they take.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(judge, *zip(*work, strict=True), chunksize=4))


def table(verdicts: Sequence[Verdict]) -> str:
    """One line a verdict; warps: those that a processor holds at a time."""
    lines = [f"{'form':<64} {'card':<6} {'regs':>4} {'stack':>5} {'spill':>5} {'shared':>7} {'warps':>5}  instructions"]
    for v in verdicts:
        numbers = f"{'-':>4} {'-':>5} {'-':>5} {'-':>7} {'-':>5}  "
        if v.code is not None:
            c = v.code
            numbers = f"{c.registers:>4} {c.stack:>5} {c.spills:>5} {c.shared:>7} {v.resident_warps:>5}  "
            numbers += " ".join(sorted(c.marks))
        lines.append(f"{v.form:<64} {v.card:<6} {numbers}" + ("  FAIL" if v.faults else ""))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m lorafleet_kernels.gpu.gate", description=__doc__)
    parser.add_argument("module", nargs="*", help="modules to check, by their full name (default: all kernels)")
    parser.add_argument("--target", default=",".join(CARDS), help=f"cards, from {', '.join(CARDS)} (default: all)")
    parser.add_argument("--only", default="", metavar="TEXT", help="forms whose name contains it")
    parser.add_argument("--but", default="", metavar="TEXT", help="and does not contain it")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="of N of these one: a sample")
    parser.add_argument("--processes", type=int, help="at a time (default: one per core)")
    parser.add_argument("--json", action="store_true", help="print a list of verdicts instead of a table")
    options = parser.parse_args(arguments)
    cards = options.target.split(",")
    if INTERPRETED:
        parser.error("TRITON_INTERPRET=1 is set: Triton would interpret instead of compile. Unset it")
    if unknown := [card for card in cards if card not in CARDS]:
        parser.error(f"--target: no such card: {', '.join(unknown)}; there are {', '.join(CARDS)}")
    if options.every < 1:
        parser.error(f"--every {options.every}: must be at least 1")
    begin = time.monotonic()
    modules = options.module or kernel_modules()
    verdicts = run(modules, cards, options.only, options.but, options.every, options.processes)
    if not verdicts:
        parser.error(f"nothing to check: no form of {modules} matches '{options.only}'")
    if options.json:
        print(json.dumps([asdict(v) for v in verdicts], indent=1, default=sorted))
    else:
        print(table(verdicts))
    failed = [v for v in verdicts if v.faults]
    for v in failed:
        for fault in v.faults:
            print(f"FAIL {v.module}: {v.form} on {v.card}: {fault}", file=sys.stderr)
    passed = len(verdicts) - len(failed)
    print(f"{passed} of {len(verdicts)} forms pass, in {time.monotonic() - begin:.0f} s", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
