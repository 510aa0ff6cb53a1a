"""Every native operation against the reference, over ragged shapes, in both element types."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lorafleet_kernels import reference
from lorafleet_kernels.batch import AttentionBatch, HeadSizes
from lorafleet_kernels.build import CannotBuild
from lorafleet_kernels.native import Native, NativeAttention
from lorafleet_kernels.native_lora import AdapterTable, NativeLora
from lorafleet_kernels.reference_attention import ReferenceAttention, Scratch

DTYPES = (torch.float32, torch.bfloat16)
ATOL = {torch.float32: 2e-4, torch.bfloat16: 0.06}
RTOL = {torch.float32: 1e-4, torch.bfloat16: 0.02}

seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)
few = settings(max_examples=60)


@pytest.fixture(scope="module")
def native() -> Callable[[torch.dtype], Native]:
    try:
        made = {dtype: Native(dtype, lambda: 2) for dtype in DTYPES}
    except CannotBuild as error:
        pytest.skip(f"no native operations here: {error}")
    return made.__getitem__


def close(got: Tensor, expected: Tensor) -> None:
    dtype = got.dtype
    torch.testing.assert_close(got.float(), expected.float(), atol=ATOL[dtype], rtol=RTOL[dtype])


def normal(seed: int, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@given(dtypes, seeds, st.integers(1, 70), st.integers(1, 100))
@few
def test_norm_adds_in_place_and_scales_as_the_reference(
    native: Callable[[torch.dtype], Native], dtype: torch.dtype, seed: int, rows: int, width: int
) -> None:
    x, delta, weight = (
        normal(seed, dtype, rows, width),
        normal(seed + 1, dtype, rows, width),
        normal(seed, dtype, width),
    )
    mine = x.clone()

    got = native(dtype).add_rms_norm(mine, delta, weight, 1e-5)

    close(got, reference.add_rms_norm(x, delta, weight, 1e-5))
    assert torch.equal(mine, x)
    close(native(dtype).add_rms_norm(mine, None, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@given(dtypes, seeds, st.integers(1, 40), st.integers(1, 100), st.sampled_from([1.0, 30.0, 1000.0]))
@few
def test_the_gated_activation_is_the_references_for_any_size_of_gate(
    native: Callable[[torch.dtype], Native], dtype: torch.dtype, seed: int, rows: int, width: int, scale: float
) -> None:
    x = normal(seed, dtype, rows, 2 * width) * scale

    close(native(dtype).silu_and_mul(x) / scale**2, reference.silu_and_mul(x) / scale**2)


@given(dtypes, seeds, st.integers(1, 9), st.integers(1, 90), st.data())
@few
def test_greedy_takes_the_lowest_of_equals_and_refuses_what_is_not_finite(
    native: Callable[[torch.dtype], Native], dtype: torch.dtype, seed: int, rows: int, width: int, data: st.DataObject
) -> None:
    logits = torch.randint(-3, 4, (rows, width), generator=torch.Generator().manual_seed(seed)).to(dtype)
    at = st.tuples(st.integers(0, rows - 1), st.integers(0, width - 1))
    for place, value in data.draw(
        st.lists(st.tuples(at, st.sampled_from([torch.inf, -torch.inf, torch.nan])), max_size=4)
    ):
        logits[place] = value

    expected = reference.argmax(logits)
    for row in range(rows):
        if expected[row] >= 0:
            expected[row] = int((logits[row] == logits[row].max()).nonzero()[0])

    assert native(dtype).argmax(logits).tolist() == expected.tolist()


masks = st.none() | st.binary(max_size=14) | st.sampled_from([b"", bytes(12), b"\xff" * 12])


@given(dtypes, seeds, st.lists(masks, min_size=1, max_size=9), st.integers(1, 90), st.data())
@few
def test_greedy_takes_the_lowest_of_the_equals_that_masks_allow_however_long_they_are(
    native: Callable[[torch.dtype], Native],
    dtype: torch.dtype,
    seed: int,
    allowed: list[bytes | None],
    width: int,
    data: st.DataObject,
) -> None:
    logits = torch.randint(-3, 4, (len(allowed), width), generator=torch.Generator().manual_seed(seed)).to(dtype)
    at = st.tuples(st.integers(0, len(allowed) - 1), st.integers(0, width - 1))
    for place, value in data.draw(
        st.lists(st.tuples(at, st.sampled_from([torch.inf, -torch.inf, torch.nan])), max_size=3)
    ):
        logits[place] = value
    expected: list[int] = []
    for row, mask in zip(logits.tolist(), allowed, strict=True):
        may = [i for i in range(width) if mask is None or (i < 8 * len(mask) and mask[i // 8] >> i % 8 & 1)]
        broken = any(value != value or value == torch.inf for value in row)
        best = max((row[i] for i in may), default=-torch.inf)
        expected.append(-1 if broken or best == -torch.inf else next(i for i in may if row[i] == best))

    before = logits.clone()
    assert native(dtype).argmax(logits, allowed).tolist() == expected
    assert reference.argmax(logits, allowed).tolist() == expected
    assert torch.equal(logits.nan_to_num(), before.nan_to_num())


@dataclass
class Weights:
    a: Tensor
    parts: list[reference.LoraPart]


def adapter(seed: int, dtype: torch.dtype, inputs: int, outs: list[int], rng: random.Random) -> Weights:
    ranks = [rng.choice((1, 3, 4, 8, 16, 17, 32, 64, 300)) for _ in outs]
    parts, begin = [], 0
    for index, (rank, out) in enumerate(zip(ranks, outs, strict=True)):
        parts.append(reference.LoraPart(begin, begin + out, normal(seed + index, dtype, rank, out) / (2 * rank**0.5)))
        begin += out
    kept = [i for i in range(len(outs)) if rng.random() < 0.8] or [0]
    a = normal(seed - 1, dtype, sum(ranks[i] for i in kept), inputs) / inputs**0.5
    return Weights(a, [parts[i] for i in kept])


@given(
    dtypes, seeds, st.sampled_from([33, 64, 96]), st.lists(st.sampled_from([7, 32, 50, 96]), min_size=1, max_size=3),
    st.lists(st.integers(1, 200), min_size=1, max_size=5),
)  # fmt: skip
@few
def test_each_segment_gets_its_adapters_deltas_and_no_other_row_changes(
    native: Callable[[torch.dtype], Native],
    dtype: torch.dtype,
    seed: int,
    inputs: int,
    outs: list[int],
    lengths: list[int],
) -> None:
    rng = random.Random(seed)
    rows, outputs = sum(lengths), sum(outs)
    x, y = normal(seed, dtype, rows, inputs), normal(seed + 9, dtype, rows, outputs)
    expected, begin, segments = y.clone(), 0, []
    for index, length in enumerate(lengths):
        if rng.random() < 0.7:
            weights = adapter(seed + 100 * index, dtype, inputs, outs, rng)
            changed = slice(begin, begin + length)
            reference.lora_segment(expected[changed], x[changed], weights.a, weights.parts)
            segments.append((begin, begin + length, AdapterTable.of([{}, {"gate_up": weights}])))
        begin += length

    lora = NativeLora(native(dtype), segments)
    untouched = y.clone()
    lora(0, "gate_up", x, untouched)
    lora(1, "gate_up", x, y)

    assert torch.equal(untouched, normal(seed + 9, dtype, rows, outputs)), "a layer that no adapter has is left alone"
    close(y, expected)


def tables(dtype: torch.dtype, size: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(600.0), 0.7 ** torch.arange(size // 2).float())
    both = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return both.cos().to(dtype), both.sin().to(dtype)


@given(
    dtypes, seeds, st.sampled_from([(1, 1), (3, 1), (9, 3), (7, 1), (10, 2)]), st.sampled_from([16, 24, 64, 96, 128]),
    st.booleans(), st.lists(st.integers(0, 300), max_size=5),
    st.lists(st.tuples(st.integers(0, 150), st.integers(2, 70)), max_size=3),
)  # fmt: skip
@few
def test_attention_is_the_references_over_decodes_and_chunks_with_history(
    native: Callable[[torch.dtype], Native], dtype: torch.dtype, seed: int, heads: tuple[int, int], size: int,
    norms: bool, decodes: list[int], chunks: list[tuple[int, int]],
) -> None:  # fmt: skip
    if not decodes and not chunks:
        return
    spans = [*((start, 1) for start in decodes), *chunks]
    needed = [-(-(start + count) // 16) for start, count in spans]
    ids = list(range(sum(needed) + 3))
    random.Random(seed).shuffle(ids)
    batch = AttentionBatch(
        [start + i for start, count in spans for i in range(count)],
        [count for _, count in spans],
        [[ids.pop() for _ in range(pages)] for pages in needed],
        len(decodes),
    )
    sizes = HeadSizes(*heads, size, 1e-6)
    pool = normal(seed, dtype, 2, sum(needed) + 3, 2, 16, sizes.kv_heads, size)
    qkv = normal(seed + 1, dtype, len(batch.positions), (sizes.heads + 2 * sizes.kv_heads) * size)
    q_norm, k_norm = (normal(seed + 2, dtype, 2, size)) if norms else (None, None)
    expected_pool = pool.clone()

    expected = ReferenceAttention(expected_pool, batch, sizes, tables(dtype, size), Scratch())(1, qkv, q_norm, k_norm)
    got = NativeAttention(native(dtype), pool, batch, sizes, tables(dtype, size))(1, qkv.clone(), q_norm, k_norm)

    close(pool, expected_pool)
    close(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_rows_attention_does_not_depend_on_the_batch(
    native: Callable[[torch.dtype], Native], dtype: torch.dtype
) -> None:
    sizes, both = HeadSizes(4, 2, 32, 1e-6), tables(dtype, 32)
    pool = normal(1, dtype, 1, 30, 2, 16, 2, 32)
    qkv = normal(2, dtype, 2, 8 * 32)
    together = AttentionBatch([40, 200], [1, 1], [[0, 1, 2], [*range(3, 16)]], 2)
    alone = AttentionBatch([200], [1], [[*range(3, 16)]], 1)

    first = NativeAttention(native(dtype), pool.clone(), together, sizes, both)(0, qkv.clone(), None, None)
    second = NativeAttention(native(dtype), pool.clone(), alone, sizes, both)(0, qkv[1:].clone(), None, None)

    assert torch.equal(first[1:], second)
