"""How fast an engine goes: what a step takes, and how much is admitted a second. Learned from what happened. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lorafleet_runtime.core.sequence import Sequence

_NEW = 0.2  # weight of a new step's duration


@dataclass(slots=True)
class Pace:
    """Seconds of a step = `base` + `per_token` · prompt tokens. 0 until something is known: then nobody is lost before
    its deadline."""

    base: float = 0.0
    per_token: float = 0.0
    _known: bool = False

    def learn(self, seconds: float, prompt_tokens: int) -> None:
        """A step took so long."""
        if not prompt_tokens:
            self.base += (seconds - self.base) * (_NEW if self._known else 1.0)
            self._known = True
        elif self._known:
            each = max(0.0, seconds - self.base) / prompt_tokens
            self.per_token += (each - self.per_token) * (_NEW if self.per_token else 1.0)

    def first_token(self, sequence: Sequence) -> float:
        """Seconds until a sequence that goes next has its first token."""
        return self.base + self.per_token * (sequence.prompt_len - sequence.cached)


@dataclass(slots=True)
class Rate:
    """Cost admitted a second while somebody waited; what is older fades."""

    memory: float  # seconds
    _cost: float = 0.0
    _seconds: float = 0.0

    def add(self, cost: float, seconds: float) -> None:
        kept = math.exp(-seconds / self.memory)
        self._cost, self._seconds = self._cost * kept + cost, self._seconds * kept + seconds

    @property
    def per_second(self) -> float | None:
        """None while too little has been seen."""
        if self._seconds < self.memory / 4 or self._cost <= 0:
            return None
        return self._cost / self._seconds
