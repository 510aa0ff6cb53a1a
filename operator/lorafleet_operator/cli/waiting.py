"""What people see while a fleet comes up: bars at a terminal, one line per change elsewhere. Knows items, no fleet."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from lorafleet_operator.local.progress import Item

ADAPTERS_SHOWN = 12  # bars of single adapters; beyond, one bar counts them all


class Lines:
    """One line for each change of stage."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._stages: dict[tuple[str, str], str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def show(self, items: Sequence[Item]) -> None:
        """Print what has changed since the last call."""
        for item in items:
            key = (item.kind, item.name)
            if self._stages.get(key) != item.stage:
                self._stages[key] = item.stage
                said = f": {item.message}" if item.message else ""
                self._out.print(f"{item.kind} {item.name} is {item.stage}{said}", markup=False)


class Bars:
    """A bar for each base model and, while they are few, each adapter; what fails gets its line above them."""

    def __init__(self, out: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(), console=out, transient=True,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, items: Sequence[Item]) -> None:
        """Bring the bars up to date."""
        adapters = [item for item in items if item.kind == "LoRAAdapter"]
        few = len(adapters) <= ADAPTERS_SHOWN
        for item in items:
            if item.kind == "BaseModel" or few:
                self._bar(f"{item.kind} {item.name}", item.done, item.stage)
            if item.stage == "failed" and f"{item.name} {item.message}" not in self._told:
                self._told.add(f"{item.name} {item.message}")
                self._progress.console.print(f"{item.kind} {item.name} failed: {item.message}", markup=False)
        if not few:
            ready = sum(item.stage == "ready" for item in adapters)
            self._bar("LoRAAdapters", ready / len(adapters), f"{ready}/{len(adapters)} ready")

    def _bar(self, name: str, done: float, state: str) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1.0, state=state)
        self._progress.update(self._tasks[name], completed=done, state=state)
