"""What requests change in their logits before a token is chosen: biases, suppressed ends, penalties, constraints.

vLLM's semantics and order: end tokens that are too early and logit_bias first, then the repetition, frequency
and presence penalties. What a constraint forbids comes last, so that nothing brings it back. Knows neither
temperature nor randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorafleet_kernels import masks
from lorafleet_runtime.engine.transfers import on_device
from lorafleet_runtime.protocol import Sampling


@dataclass(frozen=True, slots=True)
class Row:
    """One row of logits: whose it is, and which token of the output it will give.

    `position` counts output tokens from 0, resumed ones included. `allowed`, of a constrained request: one bit a token,
    the lowest of the first byte for id 0; tokens beyond its end are not allowed.
    """

    sampling: Sampling
    position: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    allowed: bytes | None = None
    request_id: str = ""


def adjust(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """`logits [B, V]` with every row's changes made; the same tensor if there are none, and never in place.

    Token ids outside the vocabulary are passed over: the front end refuses them, and one that gets through
    must not end the step of all the others.
    """
    biased = [i for i, row in enumerate(rows) if _has_bias(row.sampling, row.position)]
    penalised = [i for i, row in enumerate(rows) if reads_tokens(row.sampling)]
    bound = [i for i, row in enumerate(rows) if row.allowed is not None]
    if biased or penalised or bound:
        logits = logits.clone()
    if biased:
        _add_biases(logits, rows, biased)
    if penalised:
        _penalise(logits, rows, penalised)
    if bound:
        _forbid(logits, rows, bound)
    return logits


def changes(sampling: Sampling, position: int) -> bool:
    """Whether `adjust` would change the logits of such a request at that position of its output, but for its mask."""
    return _has_bias(sampling, position) or reads_tokens(sampling)


def reads_output(sampling: Sampling) -> bool:
    """Whether what is sampled next depends on the tokens before it, beyond what the model makes of them."""
    return reads_tokens(sampling) or sampling.constraint is not None


def reads_tokens(sampling: Sampling) -> bool:
    """Whether `adjust` looks at a row's tokens."""
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0


def _has_bias(sampling: Sampling, position: int) -> bool:
    return bool(sampling.logit_bias) or _too_early(sampling, position)


def _too_early(sampling: Sampling, position: int) -> bool:
    return position < sampling.min_tokens and bool(sampling.stop_token_ids)


def _add_biases(logits: Tensor, rows: Sequence[Row], chosen: list[int]) -> None:
    at: list[tuple[int, int]] = []
    values: list[float] = []
    for index in chosen:
        row = rows[index]
        biases = dict(row.sampling.logit_bias)
        if _too_early(row.sampling, row.position):
            biases |= dict.fromkeys(row.sampling.stop_token_ids, -float("inf"))
        for token, bias in biases.items():
            if 0 <= token < logits.shape[1]:
                at.append((index, token))
                values.append(bias)
    if at:
        row_of, token_of = on_device(at, torch.int64, logits.device).T
        logits[row_of, token_of] += on_device(values, logits.dtype, logits.device)


def _penalise(logits: Tensor, rows: Sequence[Row], chosen: list[int]) -> None:
    """One gather and one scatter for the batch, at the tokens that have occurred."""
    parts: list[NDArray[np.float64]] = []
    for index in chosen:
        row, s = rows[index], rows[index].sampling
        output, counts = _occurring(row.output_token_ids, logits.shape[1])
        tokens = output
        if s.repetition_penalty != 1.0:
            tokens = np.union1d(output, _occurring(row.prompt_token_ids, logits.shape[1])[0])
        count = np.zeros(tokens.size)
        count[np.searchsorted(tokens, output)] = counts
        subtracted = s.frequency_penalty * count + s.presence_penalty * (count > 0)
        repetition = np.full(tokens.size, s.repetition_penalty)
        parts.append(np.stack((np.full(tokens.size, index), tokens, repetition, subtracted)))
    table = np.concatenate(parts, axis=1)
    row_of, token_of = on_device(table[:2], torch.int64, logits.device)
    repetition, subtracted = on_device(table[2:], logits.dtype, logits.device)
    values = logits[row_of, token_of]
    values = torch.where(values > 0, values / repetition, values * repetition)
    logits[row_of, token_of] = values - subtracted


def _forbid(logits: Tensor, rows: Sequence[Row], bound: list[int]) -> None:
    """-inf where a constrained row's `allowed` has no bit."""
    bits = masks.packed([rows[i].allowed or b"" for i in bound], logits.shape[1])
    there = on_device(bits, torch.int32, logits.device)
    index = on_device(bound, torch.int64, logits.device)
    logits.index_add_(0, index, masks.penalties(there, logits.shape[1], logits.dtype))


def _occurring(token_ids: Sequence[int], vocabulary: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    tokens, counts = np.unique(np.asarray(token_ids, dtype=np.int64), return_counts=True)
    known = (tokens >= 0) & (tokens < vocabulary)
    return tokens[known], counts[known]
