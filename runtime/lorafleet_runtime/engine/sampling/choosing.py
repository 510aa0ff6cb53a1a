"""One step's logits to one sample a row: each row by the cheapest way that gives what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from lorafleet_runtime.engine.constrained.masks import Masks
from lorafleet_runtime.engine.sampling.sampler import (
    Logprobs,
    Row,
    Sampled,
    TokensOf,
    is_plain,
    pick,
    tokens_of,
    with_logprobs,
)
from lorafleet_runtime.engine.transfers import Arriving, on_device


@dataclass(frozen=True, slots=True)
class Choice:
    """Tokens `[rows]` int64 on the device that chose them, -1 where there is none; `errors` by row say why."""

    tokens: Tensor
    logprobs: Logprobs | None = None
    errors: Mapping[int, str] = field(default_factory=dict)

    def sent(self) -> Callable[[], list[Sampled]]:
        """Send the samples to the host; the result waits for them, and for nothing that was launched after them."""
        arriving = Arriving([self.tokens, *(self.logprobs.tensors if self.logprobs else ())])

        def read() -> list[Sampled]:
            tokens, *found = arriving.wait()
            at_hand = replace(self.logprobs, chosen=found[0], values=found[1], ids=found[2]) if self.logprobs else None
            samples = with_logprobs(tokens.tolist(), at_hand)
            for row, error in self.errors.items():
                samples[row] = Sampled(-1, error=error)
            return samples

        return read


class Argmax(Protocol):
    """A device's own way to the best token of each row of `logits [rows, V]`."""

    @property
    def argmax_obeys(self) -> bool:
        """Whether it takes masks."""
        ...

    def argmax(self, logits: Tensor, allowed: Sequence[bytes | None] = ()) -> Tensor: ...


def choose(logits: Tensor, rows: Sequence[Row], masks: Masks, device: Argmax, others: TokensOf = tokens_of) -> Choice:
    """A sample for every row of `logits [rows, V]`, which stay unchanged. The device's own argmax is for rows whose
    best token is all that is asked for, or the best that a mask allows where it obeys; others beside them cost them
    nothing, and are chosen by `others`."""
    places = [(row.request_id, row.position) for row in rows]
    errors = {i: masks.errors[place] for i, place in enumerate(places) if place in masks.errors}
    allowed = [masks.allowed.get(place) for place in places] if masks.allowed else []
    bound = set() if device.argmax_obeys else {i for i, mask in enumerate(allowed) if mask is not None}
    left = [
        i for i, row in enumerate(rows) if i not in errors and (i in bound or not is_plain(row.sampling, row.position))
    ]
    if not rows:
        return Choice(torch.empty(0, dtype=torch.int64))
    greedy = allowed if device.argmax_obeys else ()
    if not left:
        return Choice(device.argmax(logits, greedy), errors=errors)
    asked = [replace(rows[i], allowed=allowed[i]) for i in left] if allowed else [rows[i] for i in left]
    if len(left) == len(rows):
        picked = pick(logits.float(), asked, others)
        return Choice(picked.tokens, picked.logprobs)
    index = on_device(left, torch.int64, logits.device)
    picked = pick(logits[index].float(), asked, others)
    # The best token of all rows: picking out those that want it would take longer.
    tokens = device.argmax(logits, greedy).index_copy(0, index, picked.tokens)
    found = picked.logprobs
    if found is not None:
        found = replace(found, rows=tuple(left[row] for row in found.rows))
    return Choice(tokens, found, errors)
