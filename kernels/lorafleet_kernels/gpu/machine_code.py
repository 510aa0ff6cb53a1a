"""What a form of a kernel becomes on a card, found without one: Triton compiles, the tools beside it read the code."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from lorafleet_kernels.gpu.dependence import STARTS, WAITS, order_faults
from lorafleet_kernels.gpu.specialization import EARLY, INTERPRETED, Specialization

MARKS = {"mma": r"\b(HMMA|HGMMA|IMMA|IGMMA|QGMMA)", "cp.async": r"\b(LDGSTS|UTMALDG|UBLKCP)"}
"""Instructions that show what `Specialization.expects` names."""
_SPILLS = re.compile(r"\b(STL|LDL)\b")


class InterpreterIsOn(RuntimeError):
    """Triton was told to interpret, so it compiles nothing."""


@dataclass(frozen=True, slots=True)
class Card:
    """A target, and what a block and a processor of it may have: bytes of shared memory, 32-bit registers, warps."""

    name: str
    capability: int
    shared_per_block: int
    shared_per_processor: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


CARDS = {
    "sm_80": Card("sm_80", 80, 163 << 10, 164 << 10),
    "sm_90": Card("sm_90", 90, 227 << 10, 228 << 10),
}
"""CUDA C++ Programming Guide, technical specifications per compute capability."""


@dataclass(frozen=True, slots=True)
class MachineCode:
    """One form on one card. `registers` per thread; `stack`, `local` and `shared` in bytes, per thread the first two;
    `spills`: instructions that access local memory; `marks`: which of `MARKS` it contains; `order`: why it must not run
    beside the kernels ahead of it, of a form that would."""

    registers: int
    stack: int
    local: int
    spills: int
    shared: int
    marks: frozenset[str]
    order: tuple[str, ...] = ()


def compile_for(form: Specialization, card: Card) -> MachineCode:
    """Raises InterpreterIsOn, and what Triton raises where it cannot compile the form."""
    if INTERPRETED:
        raise InterpreterIsOn("TRITON_INTERPRET=1 is set: Triton would interpret instead of compile. Unset it")
    source = ASTSource(form.kernel, signature(form), dict(form.constants), _divisible(form))
    options = {"num_warps": form.warps, "num_stages": form.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", card.capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage, code = _dump("-res-usage", cubin.name), _dump("-sass", cubin.name)
    found = {name: int(number) for name, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    if found.keys() != {"REG", "STACK", "LOCAL"}:
        raise RuntimeError(f"{form.name}: cuobjdump says nothing of its registers: {usage!r}")
    marks = frozenset(name for name, pattern in MARKS.items() if re.search(pattern, code))
    spills = len(_SPILLS.findall(code))
    order = tuple(_order(form, compiled.asm["ptx"], code))
    return MachineCode(found["REG"], found["STACK"], found["LOCAL"], spills, compiled.metadata.shared, marks, order)


def _order(form: Specialization, ptx: str, machine: str) -> list[str]:
    if not form.dependent:
        return [f"{name} in a form that is not dependent" for name in (WAITS["PTX"], STARTS["PTX"]) if name in ptx]
    types = signature(form)
    pointers = [name if kind.startswith("*") else "" for name, kind in types.items() if kind != "constexpr"]
    return order_faults(ptx, machine, pointers, EARLY)


def signature(form: Specialization) -> dict[str, str]:
    """Types of all arguments in the kernel's order. Raises ValueError where the form leaves one out, or invents one."""
    given = form.arguments.keys() | form.constants.keys()
    names = list(form.kernel.arg_names)
    if given != set(names):
        missing, unknown = sorted(set(names) - given), sorted(given - set(names))
        raise ValueError(f"{form.name}: arguments without a type {missing}, and unknown ones {unknown}")
    return {name: "constexpr" if name in form.constants else form.arguments[name] for name in names}


def faults(form: Specialization, code: MachineCode, card: Card) -> list[str]:
    """Why the form must not ship: each with its number, and the number that is allowed."""
    found = [
        f"{what} {number}, allowed {most}"
        for what, number, most in (
            ("stack bytes", code.stack, 0),
            ("local bytes", code.local, 0),
            ("spill instructions", code.spills, 0),
            ("registers", code.registers, 255),
            ("registers of a block", code.registers * 32 * form.warps, card.registers),
            ("shared memory bytes", code.shared, card.shared_per_block),
        )
        if number > most
    ]
    return found + [f"no {mark} in the code" for mark in sorted(form.expects - code.marks)] + list(code.order)


def resident_warps(form: Specialization, code: MachineCode, card: Card) -> int:
    """Warps of the form that one processor holds at a time, out of `card.warps`."""
    # Registers are dealt out by warp in units of 256; every block takes 1 KB of shared memory for itself.
    per_warp = -(-code.registers * 32 // 256) * 256
    by_registers = card.registers // per_warp // form.warps
    by_memory = card.shared_per_processor // (code.shared + 1024)
    return min(by_registers, by_memory, card.warps // form.warps, card.blocks) * form.warps


def _divisible(form: Specialization) -> dict[tuple[int], list[list[object]]]:
    names: Iterable[str] = form.divisible | {n for n, kind in form.arguments.items() if kind.startswith("*")}
    return {(form.kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in names}


def _dump(what: str, cubin: str) -> str:
    """cuobjdump finds nvdisasm on the PATH: both lie beside Triton."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    run = subprocess.run([folder / "cuobjdump", what, cubin], capture_output=True, text=True, env=environment)
    if run.returncode:
        raise RuntimeError(f"cuobjdump {what}: exit {run.returncode}: {run.stderr.strip()}")
    return run.stdout
