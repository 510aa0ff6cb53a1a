"""Memory from the operating system: zeros, shared by many tensors, given back with the last of them."""

from __future__ import annotations

import gc

import psutil
import torch

from lorafleet_runtime.model.on_demand import LINE, Block, take, zeros_on_demand


def test_memory_holds_zeros_and_is_taken_only_where_it_is_touched() -> None:
    before = psutil.Process().memory_info().rss
    memory = zeros_on_demand((2**28,), torch.float32)
    memory[:10] = 1

    assert psutil.Process().memory_info().rss - before < 2**26
    assert not memory[10:1000].any()


def test_memory_can_be_taken_at_once_and_still_holds_zeros() -> None:
    before = psutil.Process().memory_info().rss
    memory = zeros_on_demand((2**26,), torch.float32)
    take(memory[5:])

    assert psutil.Process().memory_info().rss - before > 2**27
    assert not memory[:1000].any()


def test_a_block_keeps_every_tensor_and_begins_each_on_a_line() -> None:
    tensors = [torch.randn(shape).to(torch.bfloat16) for shape in ((3, 5), (1,), (64, 64), (7,))]
    block = Block(tensors, torch.bfloat16)

    moved = [block.move(tensor) for tensor in tensors]

    assert all(torch.equal(a, b) for a, b in zip(moved, tensors, strict=True))
    assert all(tensor.data_ptr() % LINE == 0 for tensor in moved)


def test_memory_goes_with_the_last_tensor_of_a_block() -> None:
    tensors = [torch.ones(2**22), torch.ones(2**22)]
    block = Block(tensors, torch.float32)
    moved = [block.move(tensor) for tensor in tensors]
    del block, tensors
    taken = psutil.Process().memory_info().rss
    moved.pop()
    gc.collect()
    assert moved[0][-1] == 1

    moved.clear()
    gc.collect()
    assert taken - psutil.Process().memory_info().rss > 2**24
