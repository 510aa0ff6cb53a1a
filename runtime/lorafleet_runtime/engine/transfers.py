"""Numbers to a device and back without waiting for what the device is doing.

torch waits for all that was launched whenever ordinary memory is copied, so on CUDA both ends are page-locked; what
comes back is there once its event has passed, whatever was launched after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def on_device(values: Sequence[object] | NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """`values`, numbers or rows of them, as a tensor of a device, in the order of its current stream."""
    host = torch.from_numpy(values).to(dtype) if isinstance(values, np.ndarray) else torch.tensor(values, dtype=dtype)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


class Sending:
    """Two buffers of the host in turn, so that one is filled while the other may still be on its way."""

    def __init__(self, elements: int, device: torch.device) -> None:
        """Of int32."""
        on_card = device.type == "cuda"
        self._buffers = [torch.zeros(elements, dtype=torch.int32, pin_memory=on_card) for _ in range(2)]
        self._sent = [torch.cuda.Event() for _ in range(2)] if on_card else []  # type: ignore[no-untyped-call]

    def next(self) -> NDArray[np.int32]:
        """A buffer that nothing reads any more, as it was two steps ago."""
        self._buffers.reverse()
        self._sent.reverse()
        if self._sent:
            self._sent[0].synchronize()
        memory: NDArray[np.int32] = self._buffers[0].numpy()
        return memory

    def send(self, to: Tensor) -> None:
        """The beginning of what `next` gave, to a tensor of the device that is as long."""
        to.copy_(self._buffers[0][: len(to)], non_blocking=True)
        if self._sent:
            self._sent[0].record()


class Arriving:
    """Tensors of one device on their way to the host, as they are at this place of its current stream."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = list(tensors)
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._tensors = [torch.empty_like(tensor, device="cpu", pin_memory=True) for tensor in tensors]
            for here, there in zip(self._tensors, tensors, strict=True):
                here.copy_(there, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=False)  # type: ignore[no-untyped-call]
            self._arrived.record()

    def wait(self) -> list[Tensor]:
        """The tensors, on the host. Raises what a step failed with on the device."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors
