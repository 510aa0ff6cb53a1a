"""Adapters' weights lie in locked memory as long as anyone looks at them, and no longer."""

from __future__ import annotations

import gc
import mmap
from dataclasses import dataclass, field

import pytest
import structlog
import torch

from lorafleet_runtime.engine.gpu.page_locked import PageLocking


@dataclass
class Locks:
    """Of a system that allows `budget` bytes."""

    budget: int = 1 << 20
    held: dict[int, int] = field(default_factory=dict)

    def cudaHostRegister(self, pointer: int, size: int, flags: int) -> int:
        if sum(self.held.values()) + size > self.budget:
            return 2
        assert pointer % mmap.PAGESIZE == 0
        self.held[pointer] = size
        return 0

    def cudaHostUnregister(self, pointer: int) -> int:
        del self.held[pointer]
        return 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_locked_is_equal_and_exactly_as_large(dtype: torch.dtype) -> None:
    locks = Locks()
    blob = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(2)).to(dtype)

    locked = PageLocking(lambda: locks)(blob)

    assert torch.equal(locked, blob)
    assert (locked.dtype, locked.shape) == (blob.dtype, blob.shape)
    assert locks.held == {locked.data_ptr(): blob.nbytes}


def test_it_is_unlocked_with_the_last_tensor_over_it() -> None:
    locks = Locks()
    locked = PageLocking(lambda: locks)(torch.ones(4, 4))
    view = locked[1:].flatten()
    del locked
    gc.collect()
    assert len(locks.held) == 1
    assert view.sum() == 12

    del view
    gc.collect()
    assert not locks.held


def test_where_no_more_may_be_locked_the_tensor_stays_as_it_is_and_one_line_says_so() -> None:
    locks = Locks(budget=100)
    locking = PageLocking(lambda: locks)
    blobs = [torch.ones(20), torch.ones(20), torch.ones(20)]
    with structlog.testing.capture_logs() as logs:
        kept = [locking(blob) for blob in blobs]

    assert [here is there for here, there in zip(kept, blobs, strict=True)] == [False, True, True]
    assert len(logs) == 1
    assert "ulimit -l" in logs[0]["event"]


def test_an_adapter_of_nothing_needs_no_memory() -> None:
    locks = Locks()
    empty = torch.empty(0)
    assert PageLocking(lambda: locks)(empty) is empty
    assert not locks.held
