"""DoRA's factor is PEFT's, whatever the blocks it is computed in."""

from __future__ import annotations

import pytest
import torch

from lorafleet_runtime.model import dora
from lorafleet_runtime.model.adapter_weights import LoraPair
from lorafleet_runtime.model.errors import InvalidAdapter

torch.manual_seed(0)
WEIGHT = torch.randn(50, 16)
PAIR = LoraPair(torch.randn(3, 16), torch.randn(50, 3))


@pytest.mark.parametrize("elements", [1, 100, 2**24])
def test_rows_of_a_linear_layer_are_normed_as_peft_norms_them(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.dora import DoraLinearLayer

    monkeypatch.setattr(dora, "BLOCK_ELEMENTS", elements)
    magnitude = torch.rand(50) + 1
    norm = DoraLinearLayer(fan_in_fan_out=False).get_weight_norm(WEIGHT, PAIR.b @ PAIR.a, 1.0)

    torch.testing.assert_close(dora.row_factor(magnitude, WEIGHT, PAIR, "m"), magnitude / norm)


@pytest.mark.parametrize("elements", [1, 100, 2**24])
def test_columns_of_an_embedding_are_normed_as_peft_norms_them(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora.dora import DoraEmbeddingLayer

    monkeypatch.setattr(dora, "BLOCK_ELEMENTS", elements)
    magnitude = torch.rand(16) + 1
    norm = DoraEmbeddingLayer(fan_in_fan_out=True).get_weight_norm(WEIGHT, (PAIR.b @ PAIR.a).t(), 1.0)

    torch.testing.assert_close(dora.column_factor(magnitude, WEIGHT, PAIR, "m"), magnitude / norm)


def test_a_row_that_the_update_takes_to_zero_is_refused_by_name() -> None:
    gone = LoraPair(torch.eye(16), -WEIGHT)

    with pytest.raises(InvalidAdapter, match=r"q\.lora_magnitude_vector: DoRA's norm .* is zero"):
        dora.row_factor(torch.ones(50), WEIGHT, gone, "q.lora_magnitude_vector")
