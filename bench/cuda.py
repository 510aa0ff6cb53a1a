"""The engine on a GPU, at Llama-3-8B's shapes with random weights in bfloat16: one command on any CUDA machine.

`python -m bench.cuda [--quick] [--model PATH]`: how it starts and what its graphs take; decode steps by rows without
adapters, with 8, with 64 distinct and with ranks mixed, over the base model and over their bytes; prompts; throughput
from 5 to 2,000 adapters; a request on an adapter that is not in the pool; what the card holds, and that it holds when
it is full; the share of time in which the device waits for the host. Each section has a budget and ends with the case
at hand when that is spent; one that fails is named and ends no other. In all at most ten minutes on an H200.

Gate: an engine on Triton's kernels and graphs says what one on plain torch says on this device; with adapters
exchanged it has to be noticed. Lines go to `bench/data/cuda.jsonl` with card, driver and versions, charts to
`docs/gpu`. `--quick`: all sections in tiny form, nothing written; without a GPU in Triton's interpreter, where no
number means anything but that the bench works. `--dependent-launches`: with kernels that start before those ahead of
them have ended, which lines then say.

Exit 1: the gate failed, or a section. Exit 2: there is no GPU."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.record import Result, write
from lorafleet_kernels.dispatch import DEPENDENT_LAUNCHES

if TYPE_CHECKING:
    from bench.cuda_engines import Engines
    from bench.cuda_lines import Lines
    from bench.cuda_setup import Files

BUDGETS = {"decodes": 120.0, "prefills": 20.0, "many": 150.0, "cold": 40.0, "capacity": 60.0, "idle": 20.0}
"""Seconds; files, the gate, starts, and the last case of each section come on top."""
REFERENCE_BANDWIDTH = 4.3e12
"""Bytes a second that an H200 copies, for bounds where there is no card."""


def sections(engines: Engines, files: Files, lines: Lines) -> dict[str, Callable[[], Iterable[Result]]]:
    """What runs each, in order. One that fails leaves no engine to the next."""
    from bench import cuda_capacity, cuda_many, cuda_overhead
    from bench.kernels_timing import Clock

    def apart(run: Callable[[], Iterable[Result]]) -> Callable[[], Iterator[Result]]:
        def running() -> Iterator[Result]:
            try:
                yield from run()
            except BaseException:
                engines.drop()
                raise

        return running

    def clock(name: str) -> Clock:
        return Clock(BUDGETS[name])

    parts: dict[str, Callable[[], Iterable[Result]]] = {
        "starts": lambda: cuda_overhead.starts(engines, lines),
        "decodes": lambda: cuda_overhead.decodes(engines, files, lines, clock("decodes")),
        "prefills": lambda: cuda_overhead.prefills(engines, files, lines, clock("prefills")),
        "idle": lambda: cuda_capacity.idle(engines, files, lines, clock("idle")),
        "cold": lambda: cuda_many.cold(engines, files, lines, clock("cold")),
        "many": lambda: cuda_many.many(engines, files, lines, clock("many")),
        "capacity": lambda: cuda_capacity.capacity(engines, files, lines, clock("capacity")),
    }
    return {name: apart(run) for name, run in parts.items()}


def measure(folder: Path, model: Path | None, quick: bool) -> bool:
    """The gate, then all sections. Whether nothing failed."""
    from bench import cuda_setup as setup
    from bench.cuda_engines import Engines
    from bench.cuda_gate import engine_findings
    from bench.cuda_lines import Lines
    from bench.kernels import run_sections
    from bench.kernels_gate import run_gate
    from bench.kernels_report import circumstances, packages
    from bench.kernels_timing import this_device
    from lorafleet_runtime.model.checkpoint import read_config

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    tiny = setup.tiny_on(device)
    if not run_gate([lambda: engine_findings(folder / "gate", tiny, device)]):
        print("the gate failed: nothing is timed", file=sys.stderr)
        return False
    scale = tiny if quick else setup.LARGE if model is None else setup.of_model(read_config(model))
    card = this_device() if cuda else None
    lines = Lines(not quick, card.bandwidth if card else REFERENCE_BANDWIDTH, card.name if card else "interpreted",
                  f"{model.name if model else 'Llama-3-8B'}'s shapes")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=setup.folder_for(scale.config)) as room:
        path = model or setup.write_model(Path(room) / "model", scale.config, getattr(torch, scale.dtype), device)
        files = setup.write_adapters(folder / "adapters", scale)
        engines = Engines(scale, path, device)
        try:
            results, whole = run_sections(sections(engines, files, lines))
        finally:
            engines.drop()
    order = {"dependent_launches": "on"} if os.environ.get(DEPENDENT_LAUNCHES) == "1" else {}
    write(results, quick=quick, packages=packages(), also=circumstances(card) | order if card else order)
    if not quick:
        lines.draw()
    return whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="all sections in tiny form, nothing written")
    parser.add_argument("--dependent-launches", action="store_true", help=f"as {DEPENDENT_LAUNCHES}=1 has it")
    parser.add_argument("--model", type=Path, metavar="PATH", help="a checkpoint in place of random weights")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and not arguments.quick:
        from lorafleet_runtime.engine.gpu.device import why_none

        parser.error(f"no CUDA device: {why_none()}. --quick runs all sections in tiny form in Triton's interpreter")
    if cuda and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: Triton would interpret what is to be timed. Unset it")
    if arguments.model is not None and (arguments.quick or not arguments.model.exists()):
        parser.error("--model: --quick has a model of its own" if arguments.quick else f"--model: no {arguments.model}")
    if not cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # has to be there before any kernel is imported
    os.environ["LORAFLEET_KERNELS"] = "triton"
    if arguments.dependent_launches:
        os.environ[DEPENDENT_LAUNCHES] = "1"
    with tempfile.TemporaryDirectory() as folder:
        return 0 if measure(Path(folder), arguments.model, arguments.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
