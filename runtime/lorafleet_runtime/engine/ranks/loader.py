"""Adapters are read by every rank, each its part; one is finished when all ranks have it, and fails when one fails."""

from __future__ import annotations

import queue
from dataclasses import dataclass, field

from lorafleet_runtime.engine.adapters.loader import AdapterLoader, AdapterReader, Loaded
from lorafleet_runtime.engine.ranks.messages import AdapterRead, DropAdapter, ReadAdapter
from lorafleet_runtime.engine.ranks.ranks import Ranks
from lorafleet_runtime.protocol import LoadAdapter


@dataclass(slots=True)
class _Asked:
    """A load under way: what this rank read, and what the others answered, by rank."""

    ticket: int
    own: Loaded | None = None
    answers: dict[int, AdapterRead] = field(default_factory=dict)


class RankedLoader(AdapterLoader):
    """As `AdapterLoader`. What it hands out is `claim`ed before the next `finished`, or the other ranks drop it."""

    def __init__(self, reader: AdapterReader, ranks: Ranks) -> None:
        super().__init__(reader)
        self._ranks = ranks
        self._answers: queue.SimpleQueue[tuple[int, AdapterRead]] = queue.SimpleQueue()
        self._asked: dict[str, _Asked] = {}  # by adapter id
        self._handed_out: dict[tuple[str, str], int] = {}  # tickets by adapter id and revision
        self._tickets = 0
        ranks.on_read = self._answered

    def submit(self, message: LoadAdapter) -> None:
        self._drop(message.adapter)
        self._tickets += 1
        self._asked[message.adapter] = _Asked(self._tickets)
        self._ranks.send(ReadAdapter(self._tickets, message.folder))
        super().submit(message)

    def cancel(self, adapter: str) -> None:
        self._drop(adapter)
        super().cancel(adapter)

    def finished(self) -> list[Loaded]:
        for ticket in self._handed_out.values():
            self._ranks.send(DropAdapter(ticket))
        self._handed_out.clear()
        for loaded in super().finished():
            self._asked[loaded.message.adapter].own = loaded
        self._collect()
        return [self._hand_out(adapter) for adapter in [a for a, asked in self._asked.items() if self._complete(asked)]]

    def claim(self, adapter: str, revision: str) -> int:
        """The ticket by which the other ranks have kept their parts of what was handed out."""
        return self._handed_out.pop((adapter, revision))

    def _answered(self, rank: int, answer: AdapterRead) -> None:
        self._answers.put((rank, answer))
        self.on_done()

    def _collect(self) -> None:
        by_ticket = {asked.ticket: asked for asked in self._asked.values()}
        while not self._answers.empty():
            rank, answer = self._answers.get_nowait()
            if answer.ticket in by_ticket:
                by_ticket[answer.ticket].answers[rank] = answer

    def _complete(self, asked: _Asked) -> bool:
        return asked.own is not None and len(asked.answers) == self._ranks.size - 1

    def _hand_out(self, adapter: str) -> Loaded:
        asked = self._asked[adapter]
        assert asked.own is not None
        loaded = outcome(asked.own, asked.answers)
        if loaded.packed is None:
            self._drop(adapter)
        else:
            self._handed_out[adapter, loaded.message.revision] = self._asked.pop(adapter).ticket
        return loaded

    def _drop(self, adapter: str) -> None:
        asked = self._asked.pop(adapter, None)
        if asked is not None:
            self._ranks.send(DropAdapter(asked.ticket))


def outcome(own: Loaded, answers: dict[int, AdapterRead]) -> Loaded:
    """This rank's outcome, or the failure of the first rank that failed; every part must have the same pages."""
    if own.packed is None:
        return own
    pages = own.packed.layout.pages
    for rank, answer in sorted(answers.items()):
        if answer.reason:
            return Loaded(own.message, reason=answer.reason, error=f"on rank {rank}: {answer.error}")
        if answer.pages != pages:
            text = f"its part takes {answer.pages} pages on rank {rank} and {pages} on rank 0: did its files change?"
            return Loaded(own.message, reason="InvalidAdapter", error=text)
    return own
