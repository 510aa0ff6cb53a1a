"""Hugging Face folders: tensors as transformers reads them, and a refusal by name of what cannot be run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorafleet_runtime.model.checkpoint import load_weights, read_config
from lorafleet_runtime.model.config import DecoderConfig, RopeScaling
from lorafleet_runtime.model.errors import CheckpointError, InvalidCheckpoint, UnsupportedModel
from lorafleet_runtime.model.rope import inverse_frequencies
from lorafleet_runtime.model.tiny import LLAMA3_SCALING, random_weights, save_tiny_model, tiny_config
from lorafleet_runtime.model.weights import expected_shapes

FAMILIES = {
    "llama": tiny_config(),
    "llama tied, Llama 3 rope": tiny_config(rope_scaling=LLAMA3_SCALING, tie_word_embeddings=True),
    "llama linear rope": tiny_config(rope_scaling=RopeScaling("linear", 2.0)),
    "llama biased": tiny_config(attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "mistral": tiny_config("mistral"),
    "qwen2": tiny_config("qwen2"),
    "qwen3": tiny_config("qwen3"),
}


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(got) == sorted(wanted)
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


def edit_json(path: Path, **changes: Any) -> None:
    raw = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in raw.items() if v is not ...}))


@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_folder_is_read_as_transformers_reads_it(config: DecoderConfig, tmp_path: Path) -> None:
    import transformers

    save_tiny_model(tmp_path, config, seed=3)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    theirs = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    if config.tie_word_embeddings:
        assert torch.equal(theirs.pop("lm_head.weight"), theirs["embed_tokens.weight"])
    read = read_config(tmp_path)

    assert read == config
    assert_same(load_weights(tmp_path, read, torch.float32), theirs)
    assert torch.allclose(inverse_frequencies(read), model.model.rotary_emb.inv_freq, rtol=1e-6)


@pytest.mark.parametrize("name", ["llama tied, Llama 3 rope", "qwen2", "qwen3"])
def test_what_transformers_writes_is_read_back(name: str, tmp_path: Path) -> None:
    """Shards with an index, a config with every default that transformers knows."""
    import transformers

    config = FAMILIES[name]
    save_tiny_model(tmp_path / "ours", config, seed=4)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32)
    model.save_pretrained(tmp_path / "theirs", max_shard_size="100KB")
    read = read_config(tmp_path / "theirs")

    assert (tmp_path / "theirs" / "model.safetensors.index.json").exists()
    assert read == config
    assert_same(load_weights(tmp_path / "theirs", read, torch.float32), random_weights(config, 4))


def test_older_configs_are_read(tmp_path: Path) -> None:
    """rope_theta and rope_scaling beside each other, no head_dim, no tying: what transformers 4 wrote."""
    save_tiny_model(tmp_path, tiny_config())
    (tmp_path / "generation_config.json").unlink()
    edit_json(
        tmp_path / "config.json",
        rope_parameters=...,
        rope_theta=500000.0,
        rope_scaling={"type": "linear", "factor": 4.0},
        head_dim=None,
        tie_word_embeddings=...,
        eos_token_id=2,
    )

    assert read_config(tmp_path) == dataclasses.replace(
        tiny_config(), rope_theta=500000.0, rope_scaling=RopeScaling("linear", 4.0), eos_token_ids=(2,)
    )


def test_end_tokens_of_both_configs_count(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, tiny_config())
    edit_json(tmp_path / "config.json", eos_token_id=2)
    edit_json(tmp_path / "generation_config.json", eos_token_id=[258, 259])

    assert read_config(tmp_path).eos_token_ids == (258, 259, 2)


def test_weights_have_the_dtype_asked_for_and_outlive_their_file(tmp_path: Path) -> None:
    config = tiny_config()
    save_tiny_model(tmp_path, config, seed=1)
    fractions: list[float] = []
    got = load_weights(tmp_path, config, torch.bfloat16, fractions.append)
    same = load_weights(tmp_path, config, torch.float32)
    size = (tmp_path / "model.safetensors").stat().st_size
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.write(bytes(size))  # in place: whatever is still mapped changes with it

    assert_same(same, random_weights(config, 1))
    assert_same(got, {name: tensor.bfloat16() for name, tensor in random_weights(config, 1).items()})
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_a_tied_head_that_is_stored_all_the_same_is_left_out(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    save_tiny_model(tmp_path, config)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, tmp_path / "model.safetensors")

    assert sorted(load_weights(tmp_path, config, torch.float32)) == sorted(expected_shapes(config))


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"model_type": "gemma2"}, UnsupportedModel, "architecture 'gemma2' .* llama, mistral, qwen2, qwen3"),
        ({"model_type": "qwen3_moe"}, UnsupportedModel, "'qwen3_moe' .* mixture-of-experts"),
        ({"num_local_experts": 8}, UnsupportedModel, r"mixture of experts \(num_local_experts=8\)"),
        ({"model_type": "mistral", "sliding_window": 128}, UnsupportedModel, "sliding_window=128.* to 128"),
        ({"use_sliding_window": True, "sliding_window": 128}, UnsupportedModel, "sliding-window attention"),
        ({"layer_types": ["sliding_attention"]}, UnsupportedModel, "sliding-window attention"),
        ({"layer_types": ["linear_attention"]}, UnsupportedModel, "linear_attention"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, UnsupportedModel, "rope_type 'yarn'"),
        ({"rope_parameters": {"rope_type": "linear"}}, InvalidCheckpoint, "factor must be a number"),
        ({"rope_parameters": {"full_attention": {}}}, UnsupportedModel, "one rope for all layers"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, UnsupportedModel, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "awq"}}, UnsupportedModel, "quant_method 'awq'.*GGUF"),
        ({"hidden_size": ...}, InvalidCheckpoint, "hidden_size must be a whole number above 0, got None"),
        ({"num_hidden_layers": True}, InvalidCheckpoint, "num_hidden_layers .* got True"),
        ({"num_key_value_heads": 3}, InvalidCheckpoint, "4 attention heads cannot share 3"),
    ],
    ids=str,
)
def test_configs_that_would_be_run_wrongly_are_refused_by_name(
    changes: dict[str, Any], kind: type[CheckpointError], says: str, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path, tiny_config())
    edit_json(tmp_path / "config.json", **changes)

    with pytest.raises(kind, match=says):
        read_config(tmp_path)


def test_a_window_that_no_sequence_outgrows_is_full_attention(tmp_path: Path) -> None:
    config = tiny_config("mistral")
    save_tiny_model(tmp_path, config)
    edit_json(tmp_path / "config.json", sliding_window=512)

    assert read_config(tmp_path) == config


def _rewrite(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _index(weight_map: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(_touched(folder / "model.safetensors.index.json"), weight_map=weight_map)


def _touched(path: Path) -> Path:
    path.write_text("{}")
    return path


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_rewrite(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")), r"layers\.1\.mlp\.up_proj\.weight is missing"),
        (_rewrite(lambda t: t.update({"model.vision.weight": torch.ones(3)})), r"model\.vision\.weight is not part"),
        (_rewrite(lambda t: t.update({"norm.weight": torch.ones(64)})), r"norm\.weight occurs twice"),
        (
            _rewrite(lambda t: t.update({"model.norm.weight": torch.ones(65)})),
            r"model\.norm\.weight has shape \[65\].*asks for \[64\]",
        ),
        (
            _rewrite(lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)})),
            r"model\.norm\.weight has dtype torch\.int32",
        ),
        (_pickle, r"pytorch_model\.bin is a pickle"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds no \*\.safetensors"),
        (_index({"a": "model-00001.safetensors"}), r"model-00001\.safetensors is missing"),
        (_index({"a": "../model.safetensors"}), "weight_map must map"),
        (_index(None), "weight_map must map"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(damage: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    config = tiny_config()
    save_tiny_model(tmp_path, config)
    damage(tmp_path)

    with pytest.raises(InvalidCheckpoint, match=says):
        load_weights(tmp_path, config, torch.float32)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_cut_safetensors_are_refused(keep: int, tmp_path: Path) -> None:
    config = tiny_config()
    save_tiny_model(tmp_path, config)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(InvalidCheckpoint, match=r"model\.safetensors is damaged or cut short"):
        load_weights(tmp_path, config, torch.float32)


def test_paths_that_are_no_checkpoint_are_refused_with_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()

    for path, says in (
        (tmp_path, "must hold a JSON object"),
        (tmp_path / "config.json", "neither a folder nor a .gguf file"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "adapter", "holds an adapter"),
        (tmp_path / "empty", "config.json is missing"),
    ):
        with pytest.raises(InvalidCheckpoint, match=says):
            read_config(path)
