"""The GGUF container: metadata and where the tensors lie. Knows no models.

The gguf package's reader makes several numpy arrays for every token of the vocabulary, which takes longer
than dequantising a small model (2.7 s against 1.2 s for SmolLM2 135M); this one takes 0.06 s for that header.
"""

from __future__ import annotations

import mmap
import struct
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

from lorafleet_runtime.model.errors import InvalidCheckpoint, UnsupportedModel

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
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


def read_header(path: Path) -> GgufFile:
    """Read metadata and the table of tensors. Raises InvalidCheckpoint if it is not GGUF, or cut short."""
    length = path.stat().st_size
    if length < 24:
        raise InvalidCheckpoint(f"{path.name} is cut short ({length} bytes); copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Header(path, data).read()
        except (struct.error, OverflowError, UnicodeDecodeError, MemoryError) as error:
            raise InvalidCheckpoint(
                f"{path.name} is damaged or cut short in its header, copy it again: {error}"
            ) from error


class _Header:
    """A cursor over the mapped file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._at = path, data, 4

    def read(self) -> GgufFile:
        if self._data[:4] != b"GGUF":
            raise InvalidCheckpoint(f"{self._path.name} is not a GGUF file (it starts with {self._data[:4]!r})")
        version = self._scalar("<I")
        if version not in (2, 3):
            raise UnsupportedModel(f"{self._path.name} is GGUF version {version}; supported are 2 and 3, little-endian")
        tensors, fields = self._scalar("<Q"), self._scalar("<Q")
        metadata: dict[str, Any] = {}
        for _ in range(fields):
            key = self._string().decode()
            metadata[key] = self._value(self._scalar("<I"))
        table = [self._tensor() for _ in range(tensors)]
        alignment = int(metadata.get("general.alignment", 32)) or 32
        start = -(-self._at // alignment) * alignment
        return GgufFile(self._path, metadata, {t.name: t for t in (self._place(entry, start) for entry in table)})

    def _scalar(self, form: str) -> Any:
        value = struct.unpack_from(form, self._data, self._at)[0]
        self._at += struct.calcsize(form)
        return value

    def _string(self) -> bytes:
        begin = self._at + 8
        end = begin + struct.unpack_from("<Q", self._data, self._at)[0]
        if end > len(self._data):
            raise struct.error(f"a string ends at byte {end}, the file at {len(self._data)}")
        self._at = end
        return self._data[begin:end]

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._scalar("<I"), self._scalar("<Q")
            if element in _SCALARS:
                form = f"<{count}{_SCALARS[element][1]}"
                values = struct.unpack_from(form, self._data, self._at)
                self._at += struct.calcsize(form)
                return list(values)
            return [self._value(element) for _ in range(count)]
        if kind not in _SCALARS:
            raise struct.error(f"metadata of unknown type {kind}")
        return self._scalar(_SCALARS[kind])

    def _tensor(self) -> StoredTensor:
        name = self._string().decode()
        rank = self._scalar("<I")
        shape = tuple(int(self._scalar("<Q")) for _ in range(rank))[::-1]
        kind, offset = self._scalar("<I"), self._scalar("<Q")
        try:
            return StoredTensor(name, shape, GGMLQuantizationType(kind), offset, 0)
        except ValueError:
            raise UnsupportedModel(
                f"{name} has encoding {kind}, which is not supported yet; use Q4_K_M, Q8_0 or F16"
            ) from None

    def _place(self, entry: StoredTensor, start: int) -> StoredTensor:
        """Turn the offset within the data into one within the file, and see that the tensor is all there."""
        block, size = GGML_QUANT_SIZES[entry.kind]
        elements = 1
        for dimension in entry.shape:
            elements *= dimension
        placed = StoredTensor(entry.name, entry.shape, entry.kind, start + entry.offset, elements // block * size)
        if not entry.shape or entry.shape[-1] % block:
            raise InvalidCheckpoint(
                f"{self._path.name}: {entry.name} has shape {list(entry.shape)}, "
                f"which {entry.kind.name} cannot hold; copy the file again"
            )
        if placed.offset + placed.size > len(self._data):
            raise InvalidCheckpoint(
                f"{self._path.name} is cut short: {entry.name} ends at byte {placed.offset + placed.size}, "
                f"the file at {len(self._data)}; copy it again"
            )
        return placed
