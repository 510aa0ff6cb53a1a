"""How many tokens a request will be answered with, as far as its tenant's past tells [VTC 4.4].

Charged at admission, the expectation keeps a tenant whose cost has not shown yet from being admitted too often; what
was expected too much is given back at the end, so that what is charged in total never depends on it."""

from __future__ import annotations

from typing import Protocol

from lorafleet_runtime.core.sequence import Sequence

WINDOW = 5


class Predictor(Protocol):
    def expected(self, sequence: Sequence) -> int:
        """Output tokens, at least 0."""
        ...

    def learn(self, sequence: Sequence) -> None:
        """A sequence has come to its own end."""
        ...


class MovingAverage:
    """n̂ ← (4·n̂ + n) / 5 per tenant, as the paper's "VTC (predict)", and never more than a request may be answered with;
    nothing is expected of a first request."""

    def __init__(self) -> None:
        self._mean: dict[str, float] = {}

    def expected(self, sequence: Sequence) -> int:
        return min(round(self._mean.get(sequence.tenant, 0.0)), sequence.sampling.max_tokens)

    def learn(self, sequence: Sequence) -> None:
        before = self._mean.get(sequence.tenant)
        length = float(sequence.output_len)
        self._mean[sequence.tenant] = length if before is None else (before * (WINDOW - 1) + length) / WINDOW
