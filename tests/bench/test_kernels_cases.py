"""What the kernel bench counts, against numbers worked out by hand for Llama-3-8B."""

from __future__ import annotations

import pytest

from bench.kernels_cases import (
    LLAMA_3_8B,
    DeltaCase,
    adapter_bytes,
    base_bytes,
    copies,
    decode_cases,
    delta_bytes,
    floor,
    fp8_cases,
    geometric_mean,
    kv_bytes,
    prefill_cases,
    segments,
    shapes,
)

H200 = 4.3e12


def test_an_adapter_of_rank_16_costs_what_bytes_say() -> None:
    assert adapter_bytes(1) == 2 * 32 * 81_920
    assert 1e6 * adapter_bytes(16) / H200 == pytest.approx(19.5, abs=0.05)


def test_the_base_model_reads_15_gigabytes() -> None:
    assert base_bytes() == 13_958_643_712 + 1_050_673_152
    assert 1e3 * base_bytes() / H200 == pytest.approx(3.49, abs=0.005)
    assert 32 * kv_bytes(1) == 131_072


@pytest.mark.parametrize(("rows", "adapters", "base", "overhead"), [(64, 8, 5.49, 0.028), (64, 64, 5.49, 0.227)])
def test_the_floor_is_that_of_the_table(rows: int, adapters: int, base: float, overhead: float) -> None:
    found = floor(rows, adapters, H200)

    assert found.base == pytest.approx(base, abs=0.005)
    assert found.overhead == pytest.approx(overhead, abs=0.0005)


def test_bytes_of_a_case_are_its_adapters_and_activations() -> None:
    case = DeltaCase("qkv", 64, 8, (16,))

    assert delta_bytes(case) == 8 * 16 * (3 * 4096 + 6144) * 2 + 64 * (4096 + 2 * 6144) * 2
    assert delta_bytes(DeltaCase("down", 2048, 1, (8,))) == 8 * (14336 + 4096) * 2 + 2048 * (14336 + 8192) * 2


def test_adapters_in_fp8_are_half_and_a_scale_for_each_rank() -> None:
    case = DeltaCase("qkv", 64, 8, (16,), fp8=True)

    assert str(case) == "qkv: 64 rows, 8 adapters r16 fp8"
    assert delta_bytes(case) == 8 * 16 * (3 * 4096 + 6144 + 3 * 4) + 64 * (4096 + 2 * 6144) * 2
    assert {c.group for c in fp8_cases()} == set(shapes(LLAMA_3_8B))


def test_shapes_are_llamas() -> None:
    assert {name: (g.k, g.widths) for name, g in shapes(LLAMA_3_8B).items()} == {
        "qkv": (4096, (4096, 1024, 1024)),
        "o": (4096, (4096,)),
        "gate_up": (4096, (14336, 14336)),
        "down": (14336, (4096,)),
    }


def test_a_cycle_outgrows_the_cache_twice() -> None:
    for moved in (1, 131_072, 60 << 20, 1 << 33):
        assert copies(moved, 50 << 20) * moved > 2 * (50 << 20)
    assert copies(1 << 33, 50 << 20) == 2


def test_cases_cover_batches_ranks_and_numbers_of_adapters() -> None:
    cases = decode_cases()
    assert len(set(cases)) == len(cases)
    assert {c.group for c in cases} == {"qkv", "o", "gate_up", "down"}
    assert {c.rows for c in cases} >= {1, 256}
    assert any(c.adapters == c.rows == 256 for c in cases)
    assert {c.ranks for c in cases} == {(8,), (16,), (32,), (64,), (128,), (8, 16, 32, 64, 128)}
    assert {c.adapters for c in prefill_cases()} == {1, 2, 4, 8}
    assert cases == decode_cases()
    # Any tenth of them has all groups and both few and many rows: a budget that ends early leaves a fair sample.
    tenth = cases[: len(cases) // 10]
    assert len({c.group for c in tenth}) == 4
    assert min(c.rows for c in tenth) <= 8
    assert max(c.rows for c in tenth) == 256


def test_segments_are_equal_or_refused() -> None:
    assert segments(6, 3) == [(0, 2, 0), (2, 4, 1), (4, 6, 2)]
    with pytest.raises(ValueError, match="no multiple"):
        segments(7, 2)


def test_the_mean_is_geometric() -> None:
    assert geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no values"):
        geometric_mean([])
