"""One result, one JSON line, with its circumstances; and the table for people."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DATA = Path(__file__).parent / "data"
NOTHING: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class Result:
    """`ratio` is value / baseline where there is one; `met` says whether the goal was reached, None without a goal."""

    bench: str
    case: str
    metric: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None
    repeats: int = 1


def machine() -> str:
    """Processor, the vector instructions that decide its speed, cores and memory."""
    model, flags = platform.processor() or platform.machine(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        fields = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {k.strip(): v.strip() for k, v in fields.items()}
        model = fields.get("model name", model)
        known = fields.get("flags", "").split()
        flags = " ".join(f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in known)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model} ({flags}), {os.cpu_count()} cores, {memory:.0f} GiB"


def versions(packages: Sequence[str]) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def show(title: str, results: Iterable[Result]) -> None:
    """The table for people."""
    table = Table("case", "metric", "value", "baseline", "ratio", "goal", "met", title=title)
    for r in results:
        met = "" if r.met is None else ("yes" if r.met else "NO")
        table.add_row(
            r.case, r.metric, f"{r.value:.4g} {r.unit}", "" if r.baseline is None else f"{r.baseline:.4g}",
            "" if r.ratio is None else f"{r.ratio:.2f}", r.goal, met,
        )  # fmt: skip
    Console(width=160 if not sys.stdout.isatty() else None).print(table)


def write(
    results: Sequence[Result], *, quick: bool, packages: Sequence[str] = ("torch",), also: Mapping[str, str] = NOTHING
) -> None:
    """Print the table; append to `bench/data/NAME.jsonl` unless quick. `also`: further circumstances, as a card's."""
    if not results:
        return
    name = results[0].bench
    show(name, results)
    if quick:
        return
    circumstances: dict[str, Any] = {
        "machine": machine(),
        "versions": versions(packages),
        "commit": _commit(),
        "command": " ".join(["python -m", f"bench.{name}", *sys.argv[1:]]),
        **also,
    }
    DATA.mkdir(exist_ok=True)
    with open(DATA / f"{name}.jsonl", "a") as lines:
        for result in results:
            lines.write(json.dumps(asdict(result) | circumstances) + "\n")


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
