"""The adapters of a step as the native library reads them: tables of where each one's matrices lie."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from ctypes import c_int64, c_void_p
from typing import Protocol

import torch
from torch import Tensor

from lorafleet_kernels.batch import LoraWeights
from lorafleet_kernels.native import Native

MOST_PARTS = 3
LORA_GROUPS = ("qkv", "o", "gate_up", "down")
"""The order of a layer's groups in an adapter's table."""
WORDS = 2 + 3 * MOST_PARTS
"""Of 64 bits, in a group of the table (`group_t`): a; inputs and parts; then each part's columns, rank, and b."""
POINTERS = (0, *(4 + 3 * part for part in range(MOST_PARTS)))
_Part = tuple[int, int, int, int]
"""Columns begin and end, rank, and where b is."""
_Groups = Mapping[str, tuple[int, int, Sequence[_Part]]]
"""By name: where a is, its inputs, its parts."""


class _Segment(ctypes.Structure):
    _fields_ = (("begin", c_int64), ("end", c_int64), ("groups", c_void_p))


class Slice(Protocol):
    """Where one projection lies in its layer's vector, in elements: `a [rank, k]`, `b [rank, end - begin]`."""

    @property
    def a(self) -> int: ...
    @property
    def b(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def k(self) -> int: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


class AdapterTable:
    """Where the matrices of one adapter lie, by layer and group. Keeps the memory alive that it points to."""

    def __init__(self, words: Tensor, alive: object) -> None:
        self._words, self._alive = words, alive
        self.address = words.data_ptr()

    @classmethod
    def of(cls, layers: Sequence[Mapping[str, LoraWeights]]) -> AdapterTable:
        """Of matrices that are wherever they are."""
        placed: list[_Groups] = [
            {
                name: (w.a.data_ptr(), w.a.shape[1], [(p.begin, p.end, p.b.shape[0], p.b.data_ptr()) for p in w.parts])
                for name, w in layer.items()
            }
            for layer in layers
        ]
        return cls(_words(placed), layers)


class TableTemplate:
    """The table of every adapter of one layout, but for where its pages are: thousands share it."""

    def __init__(self, layers: Sequence[Mapping[str, Sequence[Slice]]], itemsize: int) -> None:
        placed: list[_Groups] = [
            {
                name: (s[0].a * itemsize, s[0].k, [(p.begin, p.end, p.rank, p.b * itemsize) for p in s])
                for name, s in layer.items()
            }
            for layer in layers
        ]
        self._words = _words(placed)
        self._pointers = torch.zeros_like(self._words)
        self._layers = torch.arange(len(self._words)) // len(LORA_GROUPS)
        for index, layer in enumerate(placed):
            for name, (_, _, parts) in layer.items():
                row = index * len(LORA_GROUPS) + LORA_GROUPS.index(name)
                self._pointers[row, torch.tensor(POINTERS[: 1 + len(parts)])] = 1

    def at(self, vectors: Tensor) -> AdapterTable:
        """For an adapter whose `vectors [layers, elements]` are these."""
        begins = vectors.data_ptr() + self._layers * (vectors.stride(0) * vectors.element_size())
        return AdapterTable(self._words + self._pointers * begins.unsqueeze(1), vectors)


class NativeLora:
    """The adapters of one step, for every layer and group: adds their deltas in place."""

    def __init__(self, native: Native, segments: Sequence[tuple[int, int, AdapterTable]]) -> None:
        self._alive = [table for _, _, table in segments]
        self.segments = (_Segment * len(segments))(
            *(_Segment(begin, end, table.address) for begin, end, table in segments)
        )
        self._call = native.functions["lorafleet_lora"]
        self._threads = native.threads
        self._numbers = {name: number for number, name in enumerate(LORA_GROUPS)}

    def __call__(self, layer: int, group: str, x: Tensor, y: Tensor) -> None:
        number = layer * len(LORA_GROUPS) + self._numbers[group]
        self._call(
            self.segments, len(self.segments), number, x.data_ptr(), y.data_ptr(), x.shape[1], y.shape[1],
            self._threads(),
        )  # fmt: skip


def _words(layers: Sequence[_Groups]) -> Tensor:
    """The table; behind its last group, an empty one."""
    rows = [[0] * WORDS for _ in range(len(layers) * len(LORA_GROUPS) + 1)]
    for index, layer in enumerate(layers):
        for name, (a, inputs, parts) in layer.items():
            row = rows[index * len(LORA_GROUPS) + LORA_GROUPS.index(name)]
            row[0], row[1] = a, _two(inputs, len(parts))
            for number, (begin, end, rank, b) in enumerate(parts[:MOST_PARTS]):
                row[2 + 3 * number : 5 + 3 * number] = _two(begin, end), rank, b
    return torch.tensor(rows, dtype=torch.int64)


def _two(low: int, high: int) -> int:
    """Two numbers of 32 bits in a word."""
    return low | high << 32
