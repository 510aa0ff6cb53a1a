"""What shrink + expand is measured against: one interface, and torch's own ways to compute a batch of adapters.

Each is given what suits it best: rows in order of their adapters, weights as dense matrices made beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.kernels_cases import DeltaCase, shapes
from bench.kernels_gate import add_deltas
from bench.kernels_pools import StoredAdapters
from lorafleet_kernels.gpu.forms.lora import GroupShape

MOST_COLUMNS = 4096
"""Ranks of all adapters and projections together, up to which multiplying by all of them can be worth it."""
TOLERANCE = 2e-2
"""Of the largest value: others round what goes from shrink to expand to bfloat16, and the sum twice."""

Call = Callable[[int], object]
"""Adds the deltas to one copy's `y`."""


class Unavailable(Exception):
    """It cannot be measured here, or not this case; the message says why."""


@dataclass(frozen=True)
class DeltaWork:
    """A case `copies` times over: layer i of the adapters' pool, `x [copies, T, K]`, `y [copies, T, O]`."""

    case: DeltaCase
    adapters: StoredAdapters
    x: Tensor
    y: Tensor

    @property
    def group(self) -> GroupShape:
        return shapes(self.adapters.config)[self.case.group]

    @property
    def copies(self) -> int:
        return len(self.x)

    @property
    def each(self) -> int:
        """Rows of an adapter."""
        return self.case.rows // self.case.adapters

    @property
    def rank(self) -> int:
        """The largest, to which others pad."""
        return max(self.case.ranks_of_adapters)

    @property
    def columns(self) -> list[slice]:
        """Of each projection, in y."""
        ends = [sum(self.group.widths[: i + 1]) for i in range(len(self.group.widths))]
        return [slice(end - width, end) for end, width in zip(ends, self.group.widths, strict=True)]

    @property
    def adapter_of_row(self) -> Tensor:
        """int32 `[T]`."""
        numbers = torch.arange(self.case.adapters, dtype=torch.int32, device=self.x.device)
        return numbers.repeat_interleave(self.each)

    @cached_property
    def deltas(self) -> Tensor:
        """`[T, O]` float64: what has to be added to the first copy's y."""
        found = torch.zeros(self.y.shape[1:], dtype=torch.float64, device=self.y.device)
        add_deltas(found, self.x[0].double(), self.adapters, 0, self.case.group, self.case.rows)
        return found

    def slots(self) -> tuple[Tensor, list[Tensor]]:
        """`a [copies, S, N, R, K]`, and of each projection `b [copies, N, out, R]`, padded to the largest rank. The
        first copy has the pool's values, so that results can be checked; the others noise."""
        count, shape = self.case.adapters, self.group
        a = self._noise(self.copies, len(shape.widths), count, self.rank, shape.k)
        b = [self._noise(self.copies, count, width, self.rank) for width in shape.widths]
        a[0].zero_()
        for number in range(count):
            view, first = self.adapters.views(number, 0, self.case.group), 0
            for s, part in enumerate(view.parts):
                rank = len(part.b)
                a[0, s, number, :rank] = view.a[first : first + rank]
                b[s][0, number].zero_()
                b[s][0, number, :, :rank] = part.b.t()
                first += rank
        return a, b

    def _noise(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.x.dtype, device=self.x.device).normal_(std=0.02)


class Rival(Protocol):
    @property
    def name(self) -> str: ...

    def prepare(self, work: DeltaWork) -> Call:
        """Raises Unavailable."""
        ...


def checked(rival: Rival, work: DeltaWork) -> Call:
    """Its call, after its first copy's result was compared with float64. Raises Unavailable."""
    try:
        call = rival.prepare(work)
        work.y[0].zero_()
        call(0)
        error = float((work.y[0].double() - work.deltas).abs().max() / work.deltas.abs().max())
    except Unavailable:
        raise
    except Exception as failure:  # what is foreign fails in ways of its own: that must not end ours
        lines = str(failure).strip().splitlines() or [""]
        raise Unavailable(f"{type(failure).__name__}: {lines[0][:160]}") from failure
    if not error <= TOLERANCE:
        raise Unavailable(f"its result is {error:.2g} of the largest value off, more than {TOLERANCE}")
    return call


class GroupedProducts:
    """`F.grouped_mm` over rows in order of their adapters."""

    name = "torch grouped_mm"

    def prepare(self, work: DeltaWork) -> Call:
        grouped: Any = getattr(F, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
        if grouped is None:
            raise Unavailable(f"torch {torch.__version__} has no grouped_mm")
        a, b = work.slots()
        a = a.transpose(1, 2).flatten(2, 3).contiguous()
        ends = torch.arange(1, work.case.adapters + 1, dtype=torch.int32, device=work.x.device) * work.each
        rank = work.rank

        def call(i: int) -> None:
            h = grouped(work.x[i], a[i].transpose(-1, -2), offs=ends)
            for s, columns in enumerate(work.columns):
                delta = grouped(h[:, s * rank : (s + 1) * rank], b[s][i].transpose(-1, -2), offs=ends)
                work.y[i][:, columns].add_(delta)

        return call


class BatchedProducts:
    """`bmm`: possible as all adapters have equally many rows here, and fast as their weights were gathered before."""

    name = "torch bmm"

    def prepare(self, work: DeltaWork) -> Call:
        a, b = work.slots()
        a = a.transpose(1, 2).flatten(2, 3).contiguous()
        count, rank = work.case.adapters, work.rank

        def call(i: int) -> None:
            h = torch.bmm(work.x[i].view(count, work.each, -1), a[i].transpose(-1, -2))
            y = work.y[i].view(count, work.each, -1)
            for s, columns in enumerate(work.columns):
                y[:, :, columns].baddbmm_(h[:, :, s * rank : (s + 1) * rank], b[s][i].transpose(-1, -2))

        return call


class MaskedProducts:
    """Every row times all adapters' A, what is not its own set to zero, times all B: two dense products."""

    name = "torch masked dense"

    def prepare(self, work: DeltaWork) -> Call:
        count, rank, slices = work.case.adapters, work.rank, len(work.group.widths)
        if slices * count * rank > MOST_COLUMNS:
            raise Unavailable(f"{slices * count * rank} columns, more than {MOST_COLUMNS}: mostly zeros")
        a, b = work.slots()
        a = a.flatten(1, 3)
        stacked = [each.transpose(-1, -2).flatten(1, 2).contiguous() for each in b]
        owner = torch.arange(count, dtype=torch.int32, device=work.x.device).repeat_interleave(rank).repeat(slices)
        mask = (work.adapter_of_row[:, None] == owner[None]).to(work.x.dtype)

        def call(i: int) -> None:
            h = (work.x[i] @ a[i].t()).mul_(mask)
            for s, columns in enumerate(work.columns):
                work.y[i][:, columns].addmm_(h[:, s * count * rank : (s + 1) * count * rank], stacked[s][i])

        return call


def torch_rivals() -> list[Rival]:
    return [GroupedProducts(), BatchedProducts(), MaskedProducts()]
