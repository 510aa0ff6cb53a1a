"""When an engine that died is started again, and when that is given up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Restarts:
    """`delays[n]` seconds after the n-th death within `seconds`; one death more is the last.

    Whoever supervises this process then starts all of it anew, elsewhere if need be, with a back-off of its own.
    """

    delays: tuple[float, ...] = (0.0, 1.0, 5.0)
    seconds: float = 600.0

    def delay(self, deaths: Sequence[float]) -> float | None:
        """How long to wait after the last of these deaths, in monotonic seconds; None: give up."""
        recent = sum(deaths[-1] - death < self.seconds for death in deaths)
        return self.delays[recent - 1] if recent <= len(self.delays) else None


NEVER = Restarts(())
