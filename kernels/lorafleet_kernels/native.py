"""The native library of one element type, as functions of tensors.

Every tensor is contiguous, on the CPU and of the library's element type: the caller's duty, as a check of each argument
would cost as much as the small operations do. `threads` says how many threads an operation may use, now.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.build import CannotBuild, default_folder, library

MOST_HEAD_SIZE = 256


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, c_int64) for name in ("tokens", "decodes", "sequences", "heads", "kv_heads", "size")),
        *((name, c_void_p) for name in ("positions", "owners", "starts", "tables", "pages", "cosines", "sines")),
        ("eps", c_float),
        ("threads", c_int32),
    )


_FALLIBLE = (
    "lorafleet_forward",
    "lorafleet_chunks",
    "lorafleet_tiles_ready",
    "lorafleet_tiles_turned",
    "lorafleet_tiles_plain",
)
_SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "lorafleet_add_rms_norm": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_float, c_int),
    "lorafleet_silu_and_mul": (c_void_p, c_void_p, c_int64, c_int64, c_int),
    "lorafleet_argmax": (c_void_p, POINTER(c_char_p), c_void_p, c_int64, c_int64, c_int),
    "lorafleet_tiles_ready": (),
    "lorafleet_tiles_turn": (c_void_p, c_void_p, c_int64, c_int64),
    "lorafleet_tiles_turned": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int),
    "lorafleet_tiles_plain": (c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_int),
    "lorafleet_lora": (c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int64, c_int64, c_int),
    "lorafleet_heads": (POINTER(_Step), c_void_p, c_void_p, c_void_p, c_void_p),
    "lorafleet_decode": (POINTER(_Step), c_void_p, c_void_p, c_void_p),
    "lorafleet_chunks": (POINTER(_Step), c_void_p, c_void_p, c_void_p),
    "lorafleet_forward": (c_void_p, POINTER(_Step), c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p),
}


class NativeAttention:
    """Attention of one step: rotates, writes keys and values, attends."""

    def __init__(
        self, native: Native, pool: Tensor, batch: AttentionBatch, sizes: HeadSizes, tables: tuple[Tensor, Tensor]
    ) -> None:
        self._decode = native.functions["lorafleet_decode"] if batch.decodes else None
        self._chunks = native.functions["lorafleet_chunks"] if batch.decodes < len(batch.counts) else None
        self._heads = native.functions["lorafleet_heads"]
        self._pool = pool
        self._layer_bytes = pool.stride(0) * pool.element_size()
        self._width = sizes.heads * sizes.size
        owners = [i for i, count in enumerate(batch.counts) for _ in range(count)]
        starts = [0]
        offsets = [0]
        pages: list[int] = []
        for count, table in zip(batch.counts, batch.pages, strict=True):
            starts.append(starts[-1] + count)
            pages += table
            offsets.append(len(pages))
        lists = (batch.positions, owners, starts, offsets, pages)
        self._alive = (*(torch.tensor(values, dtype=torch.int32) for values in lists), *tables)
        self._step = _Step(
            len(owners), batch.decodes, len(batch.counts), sizes.heads, sizes.kv_heads, sizes.size,
            *(t.data_ptr() for t in self._alive), sizes.eps, native.threads(),
        )  # fmt: skip

    @property
    def step(self) -> tuple[_Step, int, int]:
        """What the library is told of the step, where the first layer's pool is, and its elements."""
        return self._step, self._pool.data_ptr(), self._pool.stride(0)

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        pool, x = self._pool.data_ptr() + layer * self._layer_bytes, qkv.data_ptr()
        norms = (None, None) if q_norm is None or k_norm is None else (q_norm.data_ptr(), k_norm.data_ptr())
        out = torch.empty(qkv.shape[0], self._width, dtype=qkv.dtype)
        self._heads(self._step, x, pool, *norms)
        if self._decode is not None:
            self._decode(self._step, x, pool, out.data_ptr())
        if self._chunks is not None and self._chunks(self._step, x, pool, out.data_ptr()):
            raise MemoryError("no memory to lay a prompt's keys and values out: lower --max-batched-tokens")
        return out


class Native:
    """The loaded library. Raises CannotBuild when it cannot be made or loaded."""

    def __init__(self, dtype: torch.dtype, threads: Callable[[], int], folder: Path | None = None) -> None:
        path = library(str(dtype).removeprefix("torch."), folder or default_folder())
        self.threads = threads
        try:
            ctypes.CDLL(_openmp_in_use(), ctypes.RTLD_GLOBAL)
            loaded = ctypes.CDLL(str(path))
            self.functions = {name: getattr(loaded, name) for name in _SIGNATURES}
        except (OSError, AttributeError) as error:
            raise CannotBuild(f"cannot load {path}: {error}") from error
        for name, function in self.functions.items():
            function.argtypes = _SIGNATURES[name]
            function.restype = c_int if name in _FALLIBLE else None

        self.has_tiles = bool(self.functions["lorafleet_tiles_ready"]())

    def tiles_fit(self, weight: Tensor) -> bool:
        """Whether `multiply` is made for this weight here."""
        outputs, inputs = weight.shape
        return self.has_tiles and outputs % 16 == 0 and inputs % 32 == 0 and weight.is_contiguous()

    def turn(self, weight: Tensor) -> Tensor:
        """`weight [O, K]` in the layout of `multiply`, flat."""
        outputs, inputs = weight.shape
        turned = torch.empty(-(-outputs // 32) * 32 * inputs, dtype=weight.dtype)
        self.functions["lorafleet_tiles_turn"](weight.data_ptr(), turned.data_ptr(), inputs, outputs)
        return turned

    def multiply(self, x: Tensor, turned: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        """`x [T, K]` times a turned weight of so many outputs, on matrix tiles: `[T, O]`."""
        return self._on_tiles("lorafleet_tiles_turned", x, turned, outputs, bias)

    def multiply_plain(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x [T, K]` times `weight [O, K]` as it lies, on matrix tiles: `[T, O]`. For few rows."""
        return self._on_tiles("lorafleet_tiles_plain", x, weight, weight.shape[0], bias)

    def _on_tiles(self, name: str, x: Tensor, weight: Tensor, outputs: int, bias: Tensor | None) -> Tensor:
        rows, inputs = x.shape
        y = torch.empty(rows, outputs, dtype=x.dtype)
        bias_at = None if bias is None else bias.data_ptr()
        call = self.functions[name]
        if call(x.data_ptr(), weight.data_ptr(), bias_at, y.data_ptr(), rows, inputs, outputs, self.threads()):
            raise MemoryError(f"no memory to turn {rows} rows of {inputs}: lower --max-batched-tokens")
        return y

    def add_rms_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        out = torch.empty_like(x)
        width = x.shape[-1]
        self.functions["lorafleet_add_rms_norm"](
            x.data_ptr(), None if delta is None else delta.data_ptr(), weight.data_ptr(), out.data_ptr(),
            x.numel() // width, width, eps, self.threads(),
        )  # fmt: skip
        return out

    def silu_and_mul(self, x: Tensor) -> Tensor:
        rows, width = x.shape[0], x.shape[1] // 2
        out = torch.empty(rows, width, dtype=x.dtype)
        self.functions["lorafleet_silu_and_mul"](x.data_ptr(), out.data_ptr(), rows, width, self.threads())
        return out

    def argmax(self, logits: Tensor, allowed: Sequence[bytes | None] = ()) -> Tensor:
        logits = logits.contiguous()  # several ranks' columns may be part of something wider
        rows, width = logits.shape
        tokens = torch.empty(rows, dtype=torch.int64)
        least = -(-width // 8)
        masks = [None if mask is None else mask.ljust(least, b"\0") for mask in allowed]
        at = (c_char_p * rows)(*masks) if masks else None
        self.functions["lorafleet_argmax"](logits.data_ptr(), at, tokens.data_ptr(), rows, width, self.threads())
        return tokens


def turn_back(turned: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The weight `[O, K]` that `Native.turn` laid out."""
    outputs, inputs = shape
    tiles = turned.view(-1, inputs // 32, 16, 16, 2)  # of 16 outputs: by 32 inputs, pairs of inputs, outputs, two
    return tiles.permute(0, 3, 1, 2, 4).reshape(-1, inputs)[:outputs].clone()


def fits(sizes: HeadSizes) -> bool:
    """Whether the native attention is made for such heads."""
    return sizes.size <= MOST_HEAD_SIZE and sizes.size % 2 == 0


def _openmp_in_use() -> str:
    """The OpenMP library that torch has loaded: one pool of threads for both. Raises OSError."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "gomp" in Path(path).name or "iomp" in Path(path).name:
            return path
    raise OSError("torch has loaded no OpenMP library that gcc's code can call")
