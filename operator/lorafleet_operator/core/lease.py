"""Who acts: one holder of a Lease, and the epoch that fences everyone else. Pure: decides, writes nothing.

The times of the Lease are other machines' clocks, so they are never compared with ours: a candidate watches whether
the record changes, and takes over once it has not changed for the lease's duration by its own monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Record:
    """A Lease as read. `version` changes with every write of it."""

    holder: str
    transitions: int
    duration_seconds: float
    version: str


@dataclass(frozen=True, slots=True)
class View:
    """What a candidate knows: the last version it saw, and since when (monotonic seconds)."""

    version: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`act`: what to write now; `epoch` is the number to act under when that write succeeds, or while holding."""

    act: Literal["create", "renew", "take", "wait"]
    epoch: int
    view: View


def decide(record: Record | None, me: str, view: View, now: float) -> Verdict:
    """What `me` should write. An epoch is a Lease's transitions + 1: it grows with every change of holder."""
    if record is None:
        return Verdict("create", 1, View())
    seen = view if record.version == view.version else View(record.version, now)
    if record.holder == me:
        return Verdict("renew", record.transitions + 1, seen)
    if not record.holder or now - seen.since >= record.duration_seconds:
        return Verdict("take", record.transitions + 2, seen)
    return Verdict("wait", record.transitions + 1, seen)


def still_mine(renewed_at: float, now: float, duration_seconds: float) -> bool:
    """May the holder still act? It stops well before a successor may start: two thirds of the duration."""
    return now - renewed_at < duration_seconds * 2 / 3
