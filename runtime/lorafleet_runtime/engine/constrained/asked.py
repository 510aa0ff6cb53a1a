"""Whose masks a process was asked for and has not told, in the order in which it makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence


class Asked:
    """`answered` says of a request whether its mask is there, or is not waited for any more."""

    def __init__(self, answered: Callable[[str], bool]) -> None:
        self._answered = answered
        self._waiting: list[str] = []
        self._numbers: dict[int, str] = {}  # as the process counts them (`progress`); it does not count what it opens
        self._count = 0

    def begin(self, opened: Iterable[str]) -> None:
        """A new process, which opens these."""
        self._waiting = list(opened)
        self._numbers, self._count = {}, 0

    def add(self, request_ids: Sequence[str]) -> None:
        """The process is told tokens of these, and answers each."""
        self._waiting = [i for i in self._waiting if not self._answered(i)] + list(request_ids)
        self._numbers = {number: i for number, i in self._numbers.items() if not self._answered(i)}
        self._numbers |= enumerate(request_ids, self._count + 1)
        self._count += len(request_ids)

    def slow(self, making: int) -> str | None:
        """Whose mask the process is at, where `making` is its own count; if it makes none, whose would be next."""
        waiting = [i for i in self._waiting if not self._answered(i)]
        found = self._numbers.get(making, "")
        return found if found in waiting else next(iter(waiting), None)
