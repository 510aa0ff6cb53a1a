"""What goes to the device is not changed on its way, and what comes back is of its own step."""

from __future__ import annotations

import pytest
import torch

from lorafleet_runtime.engine.transfers import Arriving, Sending, on_device

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def test_numbers_keep_their_shape_and_get_their_type() -> None:
    pairs = on_device([(1, 2), (3, 4)], torch.int64, DEVICE)
    fractions = on_device([0.5, 0.25], torch.float32, DEVICE)

    assert (pairs.tolist(), pairs.dtype) == ([[1, 2], [3, 4]], torch.int64)
    assert (fractions.tolist(), fractions.dtype) == ([0.5, 0.25], torch.float32)
    assert pairs.device.type == DEVICE.type


def test_a_buffer_is_not_written_while_the_one_before_it_may_be_read() -> None:
    sending = Sending(4, DEVICE)
    received = [torch.zeros(4, dtype=torch.int32, device=DEVICE) for _ in range(3)]
    buffers = []
    for step, to in enumerate(received):
        buffers.append(sending.next())
        buffers[-1][:] = step
        sending.send(to)

    assert buffers[0] is not buffers[1]
    assert buffers[0].ctypes.data == buffers[2].ctypes.data != buffers[1].ctypes.data
    assert [to.tolist() for to in received] == [[step] * 4 for step in range(3)]


def test_only_as_much_is_sent_as_there_is_room_for() -> None:
    sending = Sending(8, DEVICE)
    sending.next()[:] = 5
    to = torch.zeros(3, dtype=torch.int32, device=DEVICE)
    sending.send(to)

    assert to.tolist() == [5, 5, 5]


def test_what_arrives_is_on_the_host() -> None:
    tokens, scores = torch.arange(3, device=DEVICE), torch.ones(2, 2, device=DEVICE)
    arriving = Arriving([tokens, scores])

    here = arriving.wait()
    assert [tensor.device.type for tensor in here] == ["cpu", "cpu"]
    assert here[0].tolist() == [0, 1, 2]
    assert here[1].shape == (2, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_what_is_launched_later_is_neither_waited_for_nor_seen() -> None:
    tokens = torch.arange(3, device=DEVICE)
    arriving = Arriving([tokens])
    torch.cuda._sleep(2_000_000_000)  # type: ignore[no-untyped-call]
    tokens.zero_()
    busy = torch.cuda.Event()  # type: ignore[no-untyped-call]
    busy.record()

    assert arriving.wait()[0].tolist() == [0, 1, 2]
    assert not busy.query()  # type: ignore[no-untyped-call]
