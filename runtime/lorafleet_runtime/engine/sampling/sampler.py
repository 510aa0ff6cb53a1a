"""Choosing tokens: from logits and what each request asks for to one token id a row.

A draw is counted by (seed, position), so a seed gives the same tokens in any batch. Knows no requests.

A token is drawn by inverting the cumulative distribution in the order of token ids. In the order of
probabilities, two almost equal tokens trade places, and with them their whole intervals, when logits are
rounded otherwise, as another batch shape does; in the order of ids, edges move by that rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_kernels.reference import argmax
from lorafleet_runtime.engine.sampling.penalties import Row, adjust, changes
from lorafleet_runtime.engine.sampling.philox import uniforms
from lorafleet_runtime.engine.transfers import on_device
from lorafleet_runtime.protocol import Sampling

__all__ = ["Logprobs", "Picked", "Row", "Sampled", "pick", "sample"]

# Below this, temperature is greedy, as in vLLM: dividing by less overflows float32, and changes no choice.
GREEDY = 1e-5
_BLOCK = 256
# How many of a row's best tokens are looked at, and then how many, before all of the vocabulary is.
_CANDIDATES = 256
_MORE_CANDIDATES = 8192


@dataclass(frozen=True, slots=True)
class Sampled:
    """One row's token; `logprob` and `top` (best first) are of the model's own distribution, unchanged.

    `token_id` is -1 if there is none: `error` says why, "CODE: message", or if it is empty, the row's logits are not
    finite: the model, or this row's adapter, has overflowed.
    """

    token_id: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)
    error: str = ""


TokensOf = Callable[[Tensor, Sequence[Row]], Tensor]
"""Tokens `[n]` int64, -1 where there is none, of adjusted logits `[n, V]` float32."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of the `rows` that want them, `most` at most: of their tokens `chosen [w]`, and the best `values, ids [w, most]`,
    best first; `counts`: how many of these each row gets."""

    rows: tuple[int, ...]
    counts: tuple[int, ...]
    chosen: Tensor
    values: Tensor
    ids: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.chosen, self.values, self.ids


@dataclass(frozen=True, slots=True)
class Picked:
    """Tokens `[n]` where they were chosen, to be read when they are wanted."""

    tokens: Tensor
    logprobs: Logprobs | None

    def read(self) -> list[Sampled]:
        """Waits for the device."""
        return with_logprobs(self.tokens.tolist(), self.logprobs)


def sample(logits: Tensor, rows: Sequence[Row]) -> list[Sampled]:
    """`pick`, and what it gives."""
    return pick(logits, rows).read()


def tokens_of(adjusted: Tensor, rows: Sequence[Row]) -> Tensor:
    """The plain operations' `TokensOf`."""
    drawn = [i for i, row in enumerate(rows) if row.sampling.temperature >= GREEDY]
    if len(drawn) == len(rows):
        return _draw(adjusted, rows)
    tokens = argmax(adjusted)
    if drawn:
        index = on_device(drawn, torch.int64, adjusted.device)
        tokens[index] = _draw(adjusted[index], [rows[i] for i in drawn])
    return tokens


def pick(logits: Tensor, rows: Sequence[Row], tokens_of: TokensOf = tokens_of) -> Picked:
    """Choose a token for every row of `logits [B, V]` float32, which stay unchanged; `rows` has length B.

    A row's token depends on its own logits and its own `Row` only, wherever in whatever batch it stands.
    """
    tokens = tokens_of(adjust(logits, rows), rows)
    wanted = [i for i, row in enumerate(rows) if row.sampling.logprobs >= 0]
    return Picked(tokens, _logprobs(logits, tokens, rows, wanted) if wanted else None)


def with_logprobs(tokens: Sequence[int], found: Logprobs | None) -> list[Sampled]:
    """Each row's sample. `found` is on the host, or waits for the device."""
    samples = [Sampled(token) for token in tokens]
    if found is None:
        return samples
    chosen, values, ids = (tensor.tolist() for tensor in found.tensors)
    for at, (row, count) in enumerate(zip(found.rows, found.counts, strict=True)):
        best = list(zip(ids[at], values[at], strict=True))[:count]
        samples[row] = Sampled(tokens[row], chosen[at], sorted(best, key=lambda t: (-t[1], t[0])))
    return samples


def is_plain(sampling: Sampling, position: int) -> bool:
    """Whether the best token of the model's own logits is all that is asked for at that position of the output."""
    return sampling.temperature < GREEDY and sampling.logprobs < 0 and not changes(sampling, position)


def _draw(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """One token a row `[n]`, from `logits [n, V]` at the rows' temperatures and filters."""
    settings = [row.sampling for row in rows]
    if any(s.temperature != 1.0 for s in settings):
        logits = logits / _column([s.temperature for s in settings], logits)
    best = logits.amax(dim=-1, keepdim=True)
    weights = _exponentials(logits - best)  # probabilities up to a factor: the best token's is 1
    if any(s.min_p > 0.0 for s in settings):
        weights = torch.where(weights >= _column([s.min_p for s in settings], weights), weights, 0.0)
    filtered = [i for i, s in enumerate(settings) if s.top_k > 0 or s.top_p < 1.0]
    if filtered:
        weights = torch.where(logits >= _cutoffs(logits, weights, settings, filtered), weights, 0.0)
    u = uniforms([s.seed for s in settings], [row.position for row in rows])
    tokens = _invert(weights, on_device(u, torch.float64, logits.device))
    return torch.where(best.squeeze(1).isfinite(), tokens, -1)


def _exponentials(values: Tensor) -> Tensor:
    """e^values, in their place."""
    if values.device.type != "cpu":
        return values.exp_()
    # torch's exponential takes a CPU 25 times as long for -inf, which is where masks forbid; numpy's does not.
    np.exp(values.numpy(), out=values.numpy())
    return values


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """The first column of `weights [n, V]` at which the running sum exceeds u · total.

    Summed by blocks, so that one block a row is scanned and no more.
    """
    blocks = _blocks(weights)
    ends = _block_sums(blocks).cumsum(dim=-1)
    target = _below((u * ends[:, -1]).unsqueeze(1), ends)
    block = torch.searchsorted(ends, target, right=True).clamp_(max=ends.shape[1] - 1)
    start = F.pad(ends, (1, 0)).gather(1, block)
    inner = blocks[torch.arange(len(blocks), device=blocks.device), block.squeeze(1)]
    inner_ends = inner.cumsum(dim=-1, dtype=torch.float64)
    column = torch.searchsorted(inner_ends, _below(target - start, inner_ends), right=True)
    return (block * _BLOCK + column).squeeze(1).clamp_(max=weights.shape[1] - 1)


def _blocks(weights: Tensor) -> Tensor:
    """`[n, V]` → `[n, V / block, block]`, with zeros after the end."""
    return F.pad(weights, (0, -weights.shape[1] % _BLOCK)).view(len(weights), -1, _BLOCK)


def _block_sums(blocks: Tensor) -> Tensor:
    """Float32 within a block, float64 from there on: float32 over a vocabulary would lose rare tokens."""
    return blocks.sum(dim=-1).double()


def _below(values: Tensor, ends: Tensor) -> Tensor:
    """`values [n, 1]`, below the last of `ends`: one that rounding puts at the end means the last weight."""
    last = ends[:, -1:]
    return torch.minimum(values, torch.nextafter(last, torch.zeros_like(last)))


def _cutoffs(logits: Tensor, weights: Tensor, settings: Sequence[Sampling], filtered: list[int]) -> Tensor:
    """The lowest logit that top_k and top_p keep in each row `[n, 1]`; -inf where neither is asked for.

    The best few hundred tokens decide it for most rows; more are sorted for those that they do not.
    """
    cutoffs = torch.full((len(settings), 1), -torch.inf, device=logits.device)
    counts = (_CANDIDATES, _MORE_CANDIDATES, logits.shape[1])
    totals = _block_sums(_blocks(weights)).sum(dim=-1, keepdim=True)
    left = filtered
    for count in sorted({min(count, logits.shape[1]) for count in counts}):
        index = on_device(left, torch.int64, logits.device)
        asked = [settings[i] for i in left]
        best = _best(logits[index], count)
        found, decided = _lowest_kept(best, totals[index], asked, count == logits.shape[1])
        cutoffs[index] = found
        left = [i for i, done in zip(left, decided.tolist(), strict=True) if not done]
        if not left:
            break
    return cutoffs


def _best(logits: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, best first."""
    if logits.device.type != "cpu":
        whole = count == logits.shape[1]
        return logits.sort(descending=True).values if whole else logits.topk(count).values
    # numpy selects and sorts with vector instructions, 3 and 15 times as fast as torch does on a CPU.
    values = logits.numpy()
    if count < logits.shape[1]:
        values = np.partition(values, -count, axis=-1)[:, -count:]
    return torch.from_numpy(np.sort(values, axis=-1)[:, ::-1].copy())


def _lowest_kept(values: Tensor, totals: Tensor, settings: Sequence[Sampling], whole: bool) -> tuple[Tensor, Tensor]:
    """Of each row's best logits, `values [n, K]`, best first: the lowest that is kept `[n, 1]`, and whether
    those that follow could not change it `[n]`; none follow if `whole`.

    vLLM's order: min_p, top_k, then top_p over what is left. As the answer is a logit and not a count, tokens
    equal to the last one kept are kept as well, however a device sorts equals. `totals [n, 1]` is the weight
    that min_p leaves.
    """
    top_k = _column([max(s.top_k, 0) for s in settings], values).long()
    top_p = _column([s.top_p for s in settings], totals)
    weights = _exponentials(values - values[:, :1])
    kth = values.gather(1, top_k.clamp(1, values.shape[1]) - 1)
    left = (weights >= _column([s.min_p for s in settings], weights)) & ((values >= kth) | (top_k == 0))
    weights = torch.where(left, weights, 0.0)
    ends_inside = ~left[:, -1:] | whole
    mass = torch.where(ends_inside, weights.sum(dim=-1, keepdim=True, dtype=totals.dtype), totals)
    before = weights.cumsum(dim=-1, dtype=totals.dtype) - weights
    kept = left & ((before < top_p * mass) | (top_p >= 1.0))
    kept[:, 0] = True
    lowest = values.gather(1, kept.sum(dim=-1, keepdim=True) - 1)
    return lowest, (ends_inside | ((top_k == 0) & (values[:, -1:] < lowest))).squeeze(1)


def _logprobs(logits: Tensor, tokens: Tensor, rows: Sequence[Row], wanted: list[int]) -> Logprobs:
    index = on_device(wanted, torch.int64, logits.device)
    logprobs = logits[index].log_softmax(dim=-1)
    chosen = logprobs.gather(1, tokens[index].clamp(min=0).unsqueeze(1)).squeeze(1)
    counts = tuple(rows[i].sampling.logprobs for i in wanted)
    values, ids = logprobs.topk(min(max(counts), logits.shape[1]), dim=-1)
    return Logprobs(tuple(wanted), counts, chosen, values, ids)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return on_device(values, like.dtype, like.device).unsqueeze(1)
