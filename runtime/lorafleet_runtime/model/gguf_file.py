"""The tensors of a GGUF file, dequantised as they are read. Knows no models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from torch import Tensor

from lorafleet_runtime.gguf_header import Header, TableEntry, read_header
from lorafleet_runtime.model.errors import InvalidCheckpoint, UnsupportedModel

_CHUNK = 2**18  # elements dequantised at once: small enough for a core's cache


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in the file; `shape` in torch's order (rows first), `offset` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """The header of one file; strings stay bytes, as vocabularies hold broken UTF-8."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def read(self, tensor: StoredTensor, dtype: torch.dtype) -> Tensor:
        """The tensor, dequantised. A few rows at a time, so that only the result is ever held whole.

        Raises UnsupportedModel for an encoding that cannot be dequantised.
        """
        block, size = GGML_QUANT_SIZES[tensor.kind]
        width = tensor.shape[-1]
        values = torch.empty(tensor.shape, dtype=dtype)
        rows = values.view(-1, width)
        row_bytes = width // block * size
        step = max(1, _CHUNK // width)
        with self.path.open("rb") as file:
            file.seek(tensor.offset)
            for begin in range(0, rows.shape[0], step):
                target = rows[begin : begin + step]
                raw = np.fromfile(file, np.uint8, target.shape[0] * row_bytes)
                if raw.size != target.shape[0] * row_bytes:
                    raise InvalidCheckpoint(f"{self.path.name} is cut short in {tensor.name}; copy it again")
                target.copy_(torch.from_numpy(_dequantize(raw.reshape(-1, row_bytes), tensor)))
        return values


def _dequantize(raw: NDArray[np.uint8], tensor: StoredTensor) -> NDArray[np.float32]:
    try:
        return np.asarray(dequantize(raw, tensor.kind), np.float32)
    except NotImplementedError:
        raise UnsupportedModel(
            f"{tensor.name}: encoding {tensor.kind.name} is not supported yet; use Q4_K_M, Q8_0 or F16"
        ) from None


def open_gguf(path: Path) -> GgufFile:
    """Read metadata and the table of tensors. Raises InvalidCheckpoint if it is not GGUF, or cut short."""
    header = read_header(path)
    return GgufFile(path, header.metadata, {entry.name: _place(entry, header) for entry in header.tensors})


def _place(entry: TableEntry, header: Header) -> StoredTensor:
    """Where the tensor lies in the file, and that it is all there."""
    try:
        kind = GGMLQuantizationType(entry.kind)
    except ValueError:
        raise UnsupportedModel(
            f"{entry.name} has encoding {entry.kind}, which is not supported yet; use Q4_K_M, Q8_0 or F16"
        ) from None
    block, size = GGML_QUANT_SIZES[kind]
    if not entry.shape or entry.shape[-1] % block:
        raise InvalidCheckpoint(
            f"{header.path.name}: {entry.name} has shape {list(entry.shape)}, which {kind.name} cannot hold; "
            "copy the file again"
        )
    offset = header.data_start + entry.offset
    end = offset + math.prod(entry.shape) // block * size
    if end > header.length:
        raise InvalidCheckpoint(
            f"{header.path.name} is cut short: {entry.name} ends at byte {end}, the file at {header.length}; "
            "copy it again"
        )
    return StoredTensor(entry.name, entry.shape, kind, offset, end - offset)
