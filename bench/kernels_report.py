"""What `bench.kernels` leaves behind apart from its lines: with what it was measured, and a chart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.kernels_cases import RANKS, geometric_mean
from bench.kernels_delta import Timed
from bench.kernels_pools import tunings
from bench.kernels_timing import Device
from bench.svg_chart import Line, write_chart
from lorafleet_kernels.gpu.card import Card

DOCS = Path(__file__).parent.parent / "docs" / "kernels"


def circumstances(device: Device) -> dict[str, str]:
    tuned = len(tunings(Card.of(device.device)))
    return {"card": device.name, "driver": device.driver, "forms": f"{tuned} tuned" if tuned else "default"}


def packages() -> list[str]:
    """Those whose versions matter; some builds of torch bring Triton under other names."""
    return [name for name in ("torch", "triton", "pytorch-triton", "vllm", "sglang") if _installed(name)]


def _installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def speedups(timed: Sequence[Timed]) -> list[Line]:
    """Of each rank, the geometric mean over groups and numbers of adapters, by rows."""
    found: dict[tuple[int, ...], dict[int, list[float]]] = {ranks: defaultdict(list) for ranks in RANKS}
    for t in timed:
        if t.speedup is not None:
            found[t.case.ranks][t.case.rows].append(t.speedup)
    lines = []
    for colour, (ranks, by_rows) in enumerate(found.items()):
        name = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]}-{ranks[-1]}"
        points = [(float(rows), geometric_mean(values)) for rows, values in sorted(by_rows.items())]
        if points:
            lines.append(Line(name, points, colour))
    return lines


def speedup_chart(timed: Sequence[Timed], device: Device) -> None:
    """`docs/kernels/decode.svg`; nothing where nothing else was measured."""
    lines = speedups(timed)
    if lines:
        title = f"Decode, shrink + expand: times faster than the best of the others, {device.name}"
        write_chart(DOCS / "decode.svg", title, "rows of the step", "times faster", lines)
