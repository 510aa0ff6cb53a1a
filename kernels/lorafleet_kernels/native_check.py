"""Before it is used, a freshly loaded library computes every operation once beside the reference.

Compilers and processors differ; a wrong sum would only show as bad text. Takes a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lorafleet_kernels import reference
from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.native import Native, NativeAttention
from lorafleet_kernels.native_lora import AdapterTable, NativeLora
from lorafleet_kernels.reference_attention import ReferenceAttention, Scratch

TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
"""Of values near 1. In bfloat16 the reference rounds in more places."""
SIZES = (HeadSizes(6, 2, 72, 1e-5), HeadSizes(3, 1, 64, 1e-5))
BATCH = AttentionBatch(
    positions=[0, 16, 150, *range(40), *range(21, 34)],
    counts=[1, 1, 1, 40, 13],
    pages=[[3], [0, 9], [4, 1, 2, 5, 6, 7, 8, 10, 11, 12], [13, 14, 15], [16, 17, 18]],
    decodes=3,
)


def first_difference(native: Native, dtype: torch.dtype) -> str:
    """What disagrees with the reference; empty when nothing does."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    checks: tuple[tuple[str, Callable[[Native, Callable[..., Tensor]], tuple[Tensor, Tensor]]], ...] = (
        ("add_rms_norm", _add_rms_norm), ("silu_and_mul", _silu_and_mul), ("argmax", _argmax), ("lora", _lora),
        ("attention", _attention), ("multiply", _multiply),
    )  # fmt: skip
    for name, check in checks:
        expected, got = (t.double() for t in check(native, random))
        worst = float((expected - got).abs().max())
        if not worst <= TOLERANCES[dtype] * max(1.0, float(expected.abs().max())):
            return f"the compiled {name} differs from the reference by {worst:.2g} in {dtype}"
    return ""


def _add_rms_norm(native: Native, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x, delta, weight = random(5, 83), random(5, 83), random(83)
    mine = x.clone()
    expected = reference.add_rms_norm(x, delta, weight, 1e-5)
    got = native.add_rms_norm(mine, delta, weight, 1e-5)
    return torch.cat((x, expected)), torch.cat((mine, got))


def _silu_and_mul(native: Native, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x = random(3, 2 * 50)
    return reference.silu_and_mul(x), native.silu_and_mul(x)


def _argmax(native: Native, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    logits = random(5, 1000)
    logits[1, 7] = float("inf")
    logits[2, 9] = float("nan")
    logits[3, 998] = logits[3].max() + 1
    bound = [None, b"\xff" * 125, None, None, bytes(range(1, 120))]
    found = [torch.cat((by.argmax(logits), by.argmax(logits, bound))) for by in (reference, native)]
    return found[0], found[1]


def _multiply(native: Native, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    x, weight, bias = random(37, 64), random(48, 64) / 8, random(48)
    expected = torch.nn.functional.linear(x, weight, bias)
    if not native.tiles_fit(weight):
        return expected, expected
    apart = native.multiply_plain(x, weight, bias)
    return torch.cat((expected, expected)), torch.cat((native.multiply(x, native.turn(weight), 48, bias), apart))


def _lora(native: Native, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    outs, inputs = ((0, 130), (130, 147)), 83
    adapters = []
    for ranks in ((5, 3), (16, 8)):
        parts = tuple(
            reference.LoraPart(begin, end, random(rank, end - begin) / 8)
            for (begin, end), rank in zip(outs, ranks, strict=True)
        )
        adapters.append((random(sum(ranks), inputs) / 8, parts))
    x, expected = random(24, inputs), random(24, 147)
    got = expected.clone()
    bounds = ((0, 1), (4, 24))
    for (begin, end), (a, parts) in zip(bounds, adapters, strict=True):
        reference.lora_segment(expected[begin:end], x[begin:end], a, parts)
    tables = [AdapterTable.of([{"qkv": _Weights(a, parts)}]) for a, parts in adapters]
    NativeLora(native, [(*bound, table) for bound, table in zip(bounds, tables, strict=True)])(0, "qkv", x, got)
    return expected, got


class _Weights:
    def __init__(self, a: Tensor, parts: tuple[reference.LoraPart, ...]) -> None:
        self.a, self.parts = a, parts


def _attention(native: Native, random: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    pairs = [_attention_of(native, random, sizes) for sizes in SIZES]
    return torch.cat([expected for expected, _ in pairs]), torch.cat([got for _, got in pairs])


def _attention_of(native: Native, random: Callable[..., Tensor], sizes: HeadSizes) -> tuple[Tensor, Tensor]:
    pool = random(2, 20, 2, reference.PAGE_TOKENS, sizes.kv_heads, sizes.size)
    angles = torch.outer(torch.arange(200.0), torch.arange(sizes.size).float().add(1).reciprocal()).unsqueeze(1)
    tables = (angles.cos().to(pool.dtype), angles.sin().to(pool.dtype))
    qkv, norms = random(len(BATCH.positions), (sizes.heads + 2 * sizes.kv_heads) * sizes.size), random(2, sizes.size)
    mine, mine_qkv = pool.clone(), qkv.clone()
    expected = ReferenceAttention(pool, BATCH, sizes, tables, Scratch())(1, qkv, *norms)
    got = NativeAttention(native, mine, BATCH, sizes, tables)(1, mine_qkv, *norms)
    return torch.cat((pool.flatten(), expected.flatten())), torch.cat((mine.flatten(), got.flatten()))
