"""Kernels that start early read some things sooner, and compute the same bits. In the interpreter one grid ends before
the next begins; on a card that has such launches they overlap."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.gpu.card import LAUNCHES_DEPENDENTS, Card
from lorafleet_kernels.gpu.forms.lora import Variant
from tests.kernels.gpu.attention_twin import LAYER as ATTENTION_LAYER
from tests.kernels.gpu.attention_twin import a_case
from tests.kernels.gpu.fp8_twin import Pages, fp8_shape
from tests.kernels.gpu.lora_kit import LAYER, USUAL, make, shapes

pytestmark = pytest.mark.interpreted


@pytest.fixture(autouse=True)
def _there(device: torch.device) -> None:
    if Card.of(device).capability < LAUNCHES_DEPENDENTS:
        pytest.skip("this card has no dependent launches")


@pytest.mark.parametrize("variant", list(Variant))
@pytest.mark.parametrize("fp8", [None, torch.uint8], ids=["bf16", "fp8"])
def test_shrink_and_expand(variant: Variant, fp8: torch.dtype | None, device: torch.device) -> None:
    """Also of rows without an adapter, of adapters without this group, and of more ranks than are fetched."""
    ranks = [{"q_proj": 1, "v_proj": 40}, {"o_proj": 2}, {"k_proj": 5, "v_proj": 2}]
    case = make(ranks, ((0, 1, 0), (1, 3, -1), (3, 5, 1), (5, 9, 2)), torch.bfloat16, device, rows=9,
                variant=variant, fp8=fp8)  # fmt: skip
    shape = shapes(USUAL)["qkv"]
    x, y = case.inputs(9, shape.k), case.inputs(9, sum(shape.widths))
    early, untouched = y.clone(), y.clone()

    case.step(LAYER, "qkv", x, y)
    case.scratch.planes.fill_(torch.nan)
    case.step.dependent = True
    case.step(LAYER, "qkv", x, early)

    assert torch.equal(early, y)
    assert not torch.equal(y, untouched)


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_rotation_and_decodes(fp8: bool, device: torch.device) -> None:
    """Of rows in one piece and in several; page tables and lists of work have nothing but what they are told."""
    case = a_case(torch.bfloat16, HeadSizes(4, 2, 64, 1e-6), [1, 300, 17], [], device)
    shape = fp8_shape(case) if fp8 else case.shape()

    def run(dependent: bool) -> Tensor:
        chosen = replace(shape, dependent=dependent)
        attend = Pages.of(case).attention(case, chosen) if fp8 else case.attention(case.pool.clone(), chosen)
        return attend(ATTENTION_LAYER, case.qkv.clone(), None, None)

    assert torch.equal(run(True), run(False))
