"""How fast the engine has been going lately: a window over finished steps."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 10.0


class Throughput:
    """Sums over the steps of the last ten seconds."""

    def __init__(self) -> None:
        self._steps: deque[tuple[float, float, int]] = deque()  # (ended at, seconds, tokens)
        self._seconds = 0.0
        self._tokens = 0

    def add(self, now: float, seconds: float, tokens: int) -> None:
        self._steps.append((now, seconds, tokens))
        self._seconds += seconds
        self._tokens += tokens
        self._expire(now)

    @property
    def step_seconds(self) -> float:
        """Mean duration of a step; 0 before the first."""
        return self._seconds / len(self._steps) if self._steps else 0.0

    def tokens_per_second(self, now: float) -> float:
        """Sampled tokens per second of wall time over the window; 0 when idle for that long."""
        self._expire(now)
        if not self._steps:
            return 0.0
        ended, seconds, _ = self._steps[0]
        return self._tokens / max(now - (ended - seconds), 1e-6)

    def _expire(self, now: float) -> None:
        while self._steps and self._steps[0][0] < now - WINDOW_SECONDS:
            _, seconds, tokens = self._steps.popleft()
            self._seconds -= seconds
            self._tokens -= tokens
