"""Masks of tokens: one bit a token, the lowest bit of the first byte for id 0; 1 where it may be chosen.

Ids beyond a mask's end may not be chosen; bits beyond the vocabulary say nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_OF_BYTES = torch.where((torch.arange(256)[:, None] >> torch.arange(8) & 1).bool(), 0.0, -torch.inf)
"""What is added to the logits of the eight tokens of a mask's byte: looked up, as choosing bit by bit takes a processor
five times as long, which cannot foresee them."""


def packed(masks: Sequence[bytes], vocabulary: int) -> NDArray[np.uint8]:
    """`[n, ⌈V / 8⌉]`, each as long as the vocabulary."""
    width = -(-vocabulary // 8)
    whole = bytearray().join(mask[:width].ljust(width, b"\0") for mask in masks)
    return np.frombuffer(whole, dtype=np.uint8).reshape(len(masks), width)


def penalties(bits: Tensor, vocabulary: int, dtype: torch.dtype) -> Tensor:
    """What is added to logits `[n, V]`, of `packed` masks as integers: -inf where a token may not be chosen, else 0."""
    table = _OF_BYTES.to(bits.device, dtype)
    return F.embedding(bits, table).view(len(bits), -1)[:, :vocabulary]
