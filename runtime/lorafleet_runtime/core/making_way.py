"""Who gives up seat and pages for a waiting sequence."""

from __future__ import annotations

from collections.abc import Sequence as Several

from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.prefix import Prefix
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.sequence import Sequence


def who_makes_way(
    head: Sequence, found: list[Prefix], count: int, running: Several[Sequence], seats: int,
    room: Room, queue: FairQueue,
) -> list[Sequence] | None:  # fmt: skip
    """Whom to preempt, so that the head of the queue has one of `seats` and pages for its next `count` tokens after the
    prefix that was `found`: nobody where there is room, and None where the head has to wait.

    A tenant of whom nothing runs gets its place from more served ones that have several sequences running, newest
    first, each keeping one; others wait until somebody ends."""
    over = len(running) + 1 - seats
    pages = room.missing(head, found, count)
    if over <= 0 and pages <= 0:
        return []
    if not queue.is_newcomer(head):
        return None
    victims = []
    for candidate in queue.who_makes_way(head, running):
        victims.append(candidate)
        over, pages = over - 1, pages - room.gain(candidate, found)
        if over <= 0 and pages <= 0:
            return victims
    return None
