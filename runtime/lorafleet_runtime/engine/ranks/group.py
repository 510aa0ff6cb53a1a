"""The ranks' collectives over torch.distributed: gloo between processes of one machine, nccl between its GPUs."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore, Work

STUCK_SECONDS = 120.0
"""A rank that ends is noticed at once, by its pipe; this is for one that is alive and does not answer."""
LOOPBACK = "lo" if os.uname().sysname == "Linux" else "lo0"


class _Backend(Protocol):
    """What torch's gloo and nccl groups have in common, which its own stubs leave out."""

    def allreduce(self, tensors: list[Tensor]) -> Work: ...

    def _allgather_base(self, whole: Tensor, part: Tensor) -> Work: ...

    def gather(self, parts: list[list[Tensor]], part: list[Tensor], options: dist.GatherOptions) -> Work: ...


class RankGroup:
    """`model.collectives.Collectives`. A group of its own, not torch's default one: a process may have several."""

    def __init__(self, rendezvous: Path, rank: int, size: int, device: torch.device) -> None:
        """Returns once every rank has joined. `rendezvous` is a file that none of them has made yet."""
        self.rank = rank
        self.size = size
        store = FileStore(str(rendezvous), size)
        patience = timedelta(seconds=STUCK_SECONDS)
        if device.type == "cuda":
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = patience
            self._group = cast(_Backend, dist.ProcessGroupNCCL(store, rank, size, options))
        else:
            # gloo listens where the host's name leads, unless told: ranks of one machine need no network.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
            self._group = cast(_Backend, dist.ProcessGroupGloo(store, rank, size, patience))
        self.all_reduce(torch.zeros(1, device=device))  # nccl meets through the store as late as here

    def all_reduce(self, part: Tensor) -> Tensor:
        part = part.contiguous()
        self._group.allreduce([part]).wait()
        return part

    def all_gather(self, part: Tensor) -> Tensor:
        whole = part.new_empty(self.size, part.numel())
        self._group._allgather_base(whole, part.reshape(1, -1)).wait()
        return whole

    def gather_columns(self, part: Tensor, columns: int) -> Tensor:
        each = -(-columns // self.size)
        if part.shape[1] < each:
            part = torch.nn.functional.pad(part, (0, each - part.shape[1]))
        options = dist.GatherOptions()
        options.rootRank = 0
        if self.rank:
            self._group.gather([], [part.contiguous()], options).wait()
            return part
        parts = [torch.empty_like(part) for _ in range(self.size)]
        self._group.gather([parts], [part.contiguous()], options).wait()
        return torch.cat(parts, dim=1)[:, :columns]
