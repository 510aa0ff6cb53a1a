"""What ships beside the default forms of attention: few, each once, and all of them seen by the gate."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_kernels.gpu.forms.attention import (
    SHIPPED_SIZES,
    DecodeTiles,
    PrefillTiles,
    decode_tiles,
    prefill_tiles,
)
from lorafleet_kernels.gpu.forms.attention_candidates import (
    CARDS,
    RESIDENT,
    decode_candidates,
    decode_forms,
    prefill_candidates,
    prefill_forms,
)
from lorafleet_kernels.reference_fp8 import FP8

BF16 = torch.bfloat16
POOLS = (BF16, FP8)


@pytest.mark.parametrize("kv", POOLS, ids=["16 bits", "fp8"])
@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("size", SHIPPED_SIZES)
def test_few_forms_ship_for_each_size_the_default_first(size: int, card: tuple[int, int], kv: torch.dtype) -> None:
    decodes = decode_candidates(size, 4, kv, card)
    prompts = prefill_candidates(size, 4, BF16, kv, card)

    assert (decodes[0], prompts[0]) == (decode_tiles(size, 4, kv, card), prefill_tiles(size, 4, BF16, card))
    for forms in (decodes, prompts):
        assert len(set(forms)) == len(forms) > 1
    assert {tiles.resident for tiles in decodes} == set(RESIDENT)
    assert len({replace(tiles, resident=1) for tiles in decodes}) <= 3
    assert len(prompts) <= 3


@pytest.mark.parametrize("kv", POOLS, ids=["16 bits", "fp8"])
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("size", SHIPPED_SIZES)
def test_the_gate_compiles_all_that_may_run_on_each_card(size: int, group: int, kv: torch.dtype) -> None:
    decodes, prompts = decode_forms(size, group, kv), prefill_forms(size, kv)

    for capability, card in CARDS.items():
        for tiles in decode_candidates(size, group, kv, capability):
            assert card in decodes[replace(tiles, resident=1)]
        for prompt in prefill_candidates(size, group, BF16, kv, capability):
            assert card in prompts[prompt]


def test_a_group_that_is_larger_than_a_tile_of_prompts_widens_it() -> None:
    assert all(tiles.rows >= 71 and tiles.queries(71) for tiles in prefill_candidates(256, 71, BF16, BF16, (8, 0)))


def test_heads_beyond_all_that_ships_have_their_default() -> None:
    assert {replace(t, resident=1) for t in decode_candidates(512, 4, BF16, (9, 0))} == {DecodeTiles(32, 8, 2, 1)}
    assert prefill_candidates(512, 4, BF16, BF16, (9, 0)) == (PrefillTiles(64, 32, 8, 2),)


def test_a_form_is_read_as_it_is_written() -> None:
    decode, prompts = DecodeTiles(64, 8, 5, 3), PrefillTiles(128, 64, 8, 3)

    assert DecodeTiles.parse(str(decode), 3) == decode
    assert PrefillTiles.parse(str(prompts)) == prompts
    with pytest.raises(ValueError, match="'n64 w8' is no form of decode attention: write it as n32 w4 s5"):
        DecodeTiles.parse("n64 w8", 1)
    with pytest.raises(ValueError, match="is no form of prompts' attention"):
        PrefillTiles.parse("m64 n32 w4 s3 ")
