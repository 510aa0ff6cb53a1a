"""One step's logits to one sample a row: each row by the cheapest way that gives what it asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lorafleet_runtime.engine.constrained.requests import Masks
from lorafleet_runtime.engine.sampling.sampler import Row, Sampled, is_plain, sample


def choose(logits: Tensor, rows: Sequence[Row], masks: Masks, argmax: Callable[[Tensor], Tensor]) -> list[Sampled]:
    """A sample for every row of `logits [rows, V]`, which stay unchanged. `argmax` is the device's own, for rows whose
    best token is all that is asked for; others beside them cost them nothing."""
    plain = [i for i, row in enumerate(rows) if is_plain(row.sampling, row.position)]
    if len(plain) == len(rows):
        return [Sampled(token) for token in argmax(logits).tolist()] if rows else []
    found: dict[int, Sampled] = {}
    for index, row in enumerate(rows):
        if row.request_id in masks.errors:
            found[index] = Sampled(-1, error=masks.errors[row.request_id])
    if plain:
        tokens = argmax(logits).tolist()  # of all rows: picking out these would take longer
        found |= {index: Sampled(tokens[index]) for index in plain}
    left = [i for i in range(len(rows)) if i not in found]
    if left:
        chosen = logits if len(left) == len(rows) else logits[torch.tensor(left, device=logits.device)]
        asked = [replace(rows[i], allowed=masks.allowed.get(rows[i].request_id)) for i in left]
        samples = sample(chosen.float(), asked)
        found |= dict(zip(left, samples, strict=True))
    return [found[index] for index in range(len(rows))]
