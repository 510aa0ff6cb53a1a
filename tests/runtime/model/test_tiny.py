"""The tiny models, adapters and tokenizer that other tests stand on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_runtime.model.adapter import read_adapter
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.tiny import random_adapter, random_weights, save_adapter, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import SPECIAL_TOKENS, save_tiny_tokenizer, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@given(st.text())
def test_ids_are_the_bytes_of_the_text(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids

    if not any(token in text for token in SPECIAL_TOKENS):
        assert bytes(ids) == text.encode()
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


def test_the_saved_tokenizer_is_one_for_transformers(tmp_path: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(save_tiny_tokenizer(tmp_path))
    messages = [{"role": "user", "content": "hé"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    config = tiny_config()

    assert len(tokenizer) == config.vocab_size
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(256, 264))
    assert (tokenizer.bos_token_id, (tokenizer.eos_token_id,)) == (config.bos_token_id, config.eos_token_ids)
    assert tokenizer.decode(ids) == "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"


def test_a_saved_adapter_reads_back_as_the_updates_it_was_made_of(tmp_path: Path) -> None:
    config = tiny_config("qwen3")
    adapter = random_adapter(
        config, 5, LORA_TARGETS, seed=2, alpha=3.0, rslora=True, layers=[1],
        rank_pattern={"q_proj": 2}, alpha_pattern={"mlp.up_proj": 7.0},
    )  # fmt: skip
    got = read_adapter(save_adapter(tmp_path, adapter), config, 5)

    assert {place: pair.a.shape[0] for place, pair in got.modules.items()} == {
        (1, target): 2 if target == "q_proj" else 5 for target in LORA_TARGETS
    }
    for (layer, target), pair in got.modules.items():
        torch.testing.assert_close(pair.b @ pair.a, adapter.delta(layer, target))


def test_an_update_of_strength_1_is_about_as_large_as_the_weights_that_it_changes() -> None:
    config = dataclasses.replace(tiny_config(), num_layers=1)
    weight = random_weights(config, 1)["layers.0.self_attn.q_proj.weight"]
    delta = random_adapter(config, 16, ("q_proj",), seed=1, alpha=16.0).delta(0, "q_proj")

    assert 0.3 < float(delta.norm() / weight.norm()) < 1.5
