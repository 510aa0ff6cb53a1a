"""Sections of `bench.kernels`: shrink + expand, decode and prefill, over the others; and fused over separate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from bench.kernels_cases import LLAMA_3_8B, DeltaCase, copies, delta_bytes, fp8_cases, geometric_mean
from bench.kernels_layers import context
from bench.kernels_pools import stored
from bench.kernels_rivals import Call, DeltaWork, Rival, Unavailable, checked
from bench.kernels_timing import Clock, Device, Timer, eager, result
from bench.record import Result
from lorafleet_kernels.gpu import elementwise
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.lora import Variant, variant_for
from lorafleet_runtime.model.config import GROUPS, DecoderConfig

GOAL = 1.3
"""Of the geometric mean over all decode cases, against the best of the others in each."""
FUSED = ((1, 1), (8, 8), (64, 8), (64, 64), (128, 16), (256, 32))
"""Rows and adapters."""
PAIR = "shrink + expand"


@dataclass(frozen=True, slots=True)
class Timed:
    """Seconds of ours, as chosen and in the other variant (None where it does not apply); and of each other."""

    case: DeltaCase
    ours: float
    other_variant: float | None
    others: dict[str, float]

    @property
    def best(self) -> tuple[str, float] | None:
        return min(self.others.items(), key=lambda item: item[1]) if self.others else None

    @property
    def speedup(self) -> float | None:
        return None if self.best is None else self.best[1] / self.ours


def work_for(case: DeltaCase, device: Device, model: DecoderConfig = LLAMA_3_8B) -> DeltaWork:
    """Enough copies of pool, x and y to outgrow the cache."""
    count = copies(delta_bytes(case, model), device.cache)
    config, targets = replace(model, num_layers=count), GROUPS[case.group]
    adapters = stored(config, case.ranks_of_adapters, targets, device.device, fp8=case.fp8)
    k = config.linear_shape(GROUPS[case.group][0])[1]
    width = sum(config.linear_shape(target)[0] for target in GROUPS[case.group])

    def noise(columns: int) -> torch.Tensor:
        return torch.empty(count, case.rows, columns, dtype=torch.bfloat16, device=device.device).normal_()

    return DeltaWork(case, adapters, noise(k), noise(width))


def over_copies(call: Call, work: DeltaWork) -> Callable[[], None]:
    def run() -> None:
        for i in range(work.copies):
            call(i)

    return run


def ours(work: DeltaWork, device: Device, forced: Variant | None = None) -> Call:
    step = work.adapters.step(work.case.segments, work.case.rows, Card.of(device.device), forced)
    return lambda i: step(i, work.case.group, work.x[i], work.y[i])


def measure(
    device: Device, cases: Sequence[DeltaCase], rivals: Sequence[Rival], clock: Clock,
    model: DecoderConfig = LLAMA_3_8B,
) -> Iterator[Timed]:  # fmt: skip
    """Cases in this order until the budget ends. What cannot be measured is named once for each reason."""
    told: set[tuple[str, str]] = set()
    for case in cases:
        if clock.over:
            return
        try:
            work = work_for(case, device, model)
            chosen = variant_for(case.rows, case.adapters)
            other = Variant.ROWS if chosen is Variant.TILES else Variant.TILES
            seconds = device.time(over_copies(ours(work, device), work), work.copies)
            swapped = device.time(over_copies(ours(work, device, other), work), work.copies)
        except torch.cuda.OutOfMemoryError:
            print(f"left out: {case}: this card's memory does not hold it")
            continue
        others = {}
        for rival in rivals:
            try:
                others[rival.name] = device.time(over_copies(checked(rival, work), work), work.copies)
            except (Unavailable, RuntimeError) as reason:  # also: out of memory, or cannot be captured
                short = str(reason).splitlines()[0][:160]
                if (rival.name, short) not in told:
                    told.add((rival.name, short))
                    print(f"not measured: {rival.name} on {case}: {short}", flush=True)
        yield Timed(case, seconds, swapped, others)


def delta_results(
    phase: str, timed: Sequence[Timed], total: int, device: Device, goal: float | None,
    model: DecoderConfig = LLAMA_3_8B,
) -> list[Result]:  # fmt: skip
    """A line or three a case, then geometric means."""
    found = []
    ratios: dict[str, list[float]] = defaultdict(list)
    for t in timed:
        case, best = f"{phase}, {t.case}", t.best
        metric = PAIR if best is None else f"{PAIR}, over {best[0]}"
        base = None if best is None else 1e6 * best[1]
        ratio = None if base is None else 1e6 * t.ours / base
        found.append(result(case, metric, 1e6 * t.ours, "us", base, ratio))
        share = delta_bytes(t.case, model) / t.ours / device.bandwidth
        found.append(result(case, f"{PAIR}, share of copy bandwidth", share, "", 1.0, share))
        if t.other_variant is not None:
            found.append(
                result(case, f"{PAIR}, the other variant", 1e6 * t.other_variant, "us", 1e6 * t.ours,
                       t.other_variant / t.ours)
            )  # fmt: skip
        for name, seconds in t.others.items():
            ratios[name].append(seconds / t.ours)
    case = f"{phase}, {len(timed)} of {total} cases"
    for name, of in ratios.items():
        found.append(
            result(f"{phase}, {len(of)} of {total} cases", f"times faster than {name}", geometric_mean(of), "x")
        )
    speedups = [t.speedup for t in timed if t.speedup is not None]
    if speedups:
        mean = geometric_mean(speedups)
        metric = f"times faster than the best of: {', '.join(sorted(ratios))}"
        wanted, met = ("", None) if goal is None else (f">= {goal}", mean >= goal)
        found.append(result(case, metric, mean, "x", goal=wanted, met=met, repeats=len(speedups)))
    return found


def launch_cost(
    device: Device, launched_singly: Timer = eager, model: DecoderConfig = LLAMA_3_8B, rows: int = 64, adapters: int = 8
) -> list[Result]:
    """The same case with and without a graph."""
    work = work_for(DeltaCase("qkv", rows, adapters, (16,)), device, model)
    run = over_copies(ours(work, device), work)
    captured, launched = device.time(run, work.copies), launched_singly(run, work.copies)
    case = f"decode, {work.case}, launched one by one"
    return [result(case, PAIR, 1e6 * launched, "us", 1e6 * captured, launched / captured)]


def fp8_results(
    device: Device, clock: Clock, model: DecoderConfig = LLAMA_3_8B, cases: Sequence[DeltaCase] = tuple(fp8_cases())
) -> list[Result]:
    """Adapters in fp8 over the same in bfloat16: by bytes alone, up to half the time."""
    found: list[Result] = []
    for case in cases:
        if clock.over:
            break
        seconds = {}
        for each in (case, replace(case, fp8=False)):
            work = work_for(each, device, model)
            seconds[each.fp8] = device.time(over_copies(ours(work, device), work), work.copies)
        ratio = seconds[True] / seconds[False]
        coded, plain = 1e6 * seconds[True], 1e6 * seconds[False]
        found.append(result(f"fp8, {case}", f"{PAIR}, over bfloat16", coded, "us", plain, ratio))
        share = delta_bytes(case, model) / seconds[True] / device.bandwidth
        found.append(result(f"fp8, {case}", f"{PAIR}, share of copy bandwidth", share, "", 1.0, share))
    return found


def fused_results(
    device: Device, clock: Clock, model: DecoderConfig = LLAMA_3_8B, sizes: Sequence[tuple[int, int]] = FUSED
) -> list[Result]:
    """An expand within the kernel that follows, over two launches; where the second stops paying off by rows."""
    found: list[Result] = []
    for rows, adapters in sizes:
        for group in GROUPS:
            if clock.over:
                return found
            work = work_for(DeltaCase(group, rows, adapters, (16,)), device, model)
            fused, apart = _ways(work, device)
            together = device.time(over_copies(fused, work), work.copies)
            separate = device.time(over_copies(apart, work), work.copies)
            case = f"fused, {work.case}"
            found.append(
                result(case, "shrink, expand and what follows", 1e6 * together, "us", 1e6 * separate,
                       together / separate)
            )  # fmt: skip
    return found


def _ways(work: DeltaWork, device: Device) -> tuple[Call, Call]:
    """Fused, and apart."""
    case, config = work.case, work.adapters.config
    step = work.adapters.step(case.segments, case.rows, Card.of(device.device))
    if case.group == "qkv":
        held = context(config, [16] * case.rows, (), device.device)

        def rotate(i: int, fused: bool) -> None:
            pending = None
            if fused:
                step.shrink(i, "qkv", work.x[i])
                pending = step.pending(i, "qkv", work.y[i])
            else:
                step(i, "qkv", work.x[i], work.y[i])
            held.attention._rotate_and_write(i, work.y[i], None, None, pending)

        return lambda i: rotate(i, True), lambda i: rotate(i, False)
    if case.group == "gate_up":

        def activate(i: int, fused: bool) -> None:
            if fused:
                step.shrink(i, "gate_up", work.x[i])
                step.expand_silu_and_mul(i, work.y[i])
            else:
                step(i, "gate_up", work.x[i], work.y[i])
                elementwise.silu_and_mul(work.y[i])

        return lambda i: activate(i, True), lambda i: activate(i, False)
    residual = torch.zeros_like(work.y)
    weight = torch.ones(config.hidden_size, dtype=work.y.dtype, device=device.device)

    def add(i: int, fused: bool) -> None:
        if fused:
            step.shrink(i, case.group, work.x[i])
            step.expand_add_rms_norm(i, case.group, residual[i], work.y[i], weight, config.rms_norm_eps)
        else:
            step(i, case.group, work.x[i], work.y[i])
            elementwise.add_rms_norm(residual[i], work.y[i], weight, config.rms_norm_eps)

    return lambda i: add(i, True), lambda i: add(i, False)
