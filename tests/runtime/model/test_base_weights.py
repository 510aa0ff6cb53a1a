"""The base model's matrices are found again in whatever form its products have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafleet_runtime.model.base_weights import needed
from lorafleet_runtime.model.checkpoint_weights import CheckpointWeights
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.decoder_weights import DecoderWeights
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.linear import Form
from lorafleet_runtime.model.tiny import random_weights, save_tiny_model, tiny_config
from lorafleet_runtime.model.weights import BLOCKS


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_matrix_is_the_checkpoints_in_every_form(form: Form, dtype: torch.dtype) -> None:
    config = tiny_config("qwen2")
    weights = {name: tensor.to(dtype) for name, tensor in random_weights(config, 3).items()}
    model = Decoder(config, dict(weights), 64)
    for linear in model.linears():
        linear.use(form)
    base = DecoderWeights(model)

    for layer in range(config.num_layers):
        for target in LORA_TARGETS:
            name = f"layers.{layer}.{BLOCKS[target]}.{target}"
            assert torch.equal(base.projection(layer, target), weights[f"{name}.weight"])
            bias = base.bias(layer, target)
            assert (bias is None) == (f"{name}.bias" not in weights)
            assert bias is None or torch.equal(bias, weights[f"{name}.bias"])
    assert torch.equal(base.lm_head(), weights["lm_head.weight"])
    assert torch.equal(base.embedding(), weights["embed_tokens.weight"])


def test_a_tied_lm_head_is_the_embedding() -> None:
    config = tiny_config(tie_word_embeddings=True)
    base = DecoderWeights(Decoder(config, random_weights(config, 0), 64))

    assert torch.equal(base.lm_head(), base.embedding())


@pytest.mark.parametrize("tied", [False, True])
def test_a_rank_reads_the_same_whole_matrices_from_the_checkpoint_again(tmp_path: Path, tied: bool) -> None:
    config = tiny_config("qwen2", tie_word_embeddings=tied)
    path = save_tiny_model(tmp_path, config, seed=3)
    here = DecoderWeights(Decoder(config, random_weights(config, 3), 64))
    again = CheckpointWeights(path, config, torch.float32)

    for target in LORA_TARGETS:
        assert torch.equal(again.projection(1, target), here.projection(1, target))
        bias = again.bias(1, target)
        assert (bias is None) == (target not in ("q_proj", "k_proj", "v_proj"))
        assert bias is None or torch.equal(bias, here.bias(1, target))  # type: ignore[arg-type]
    assert torch.equal(again.embedding(), here.embedding())
    assert torch.equal(again.lm_head(), here.lm_head())


def test_a_tensor_that_needs_the_base_model_says_so_where_there_is_none() -> None:
    with pytest.raises(InvalidAdapter, match=r"x\.bias can only be read beside the base model's weights"):
        needed(None, "x.bias")
