"""Hugging Face's `config.json`, read as a DecoderConfig; what would be run wrongly is refused by name.

Knows no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from lorafleet_runtime.model.config import DecoderConfig, RopeScaling
from lorafleet_runtime.model.errors import InvalidCheckpoint, UnsupportedModel

SUPPORTED = ("llama", "mistral", "qwen2", "qwen3")


def unsupported_architecture(name: object) -> UnsupportedModel:
    """The refusal of a model family, with the families that are supported."""
    moe = "; mixture-of-experts models are not supported yet" if any(w in str(name) for w in ("moe", "mixtral")) else ""
    return UnsupportedModel(f"architecture {name!r} is not supported yet; supported are {', '.join(SUPPORTED)}{moe}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint's file. Raises InvalidCheckpoint naming the file."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidCheckpoint(f"{path.name} is missing in {path.parent}; give the folder that it lies in") from None
    except (OSError, ValueError) as error:
        raise InvalidCheckpoint(f"{path.name} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidCheckpoint(f"{path.name} must hold a JSON object, got {type(raw).__name__}")
    return raw


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> DecoderConfig:
    """`config.json` and `generation_config.json` (may be empty) → DecoderConfig.

    Raises UnsupportedModel or InvalidCheckpoint naming the field.
    """
    architecture = raw.get("model_type")
    if architecture not in SUPPORTED:
        raise unsupported_architecture(architecture)
    _refuse(raw)
    hidden, heads = _size(raw, "hidden_size"), _size(raw, "num_attention_heads")
    max_positions = _size(raw, "max_position_embeddings")
    _refuse_sliding_window(raw, max_positions)
    # Qwen2 has these biases always and has no field for them.
    bias = architecture == "qwen2" or bool(raw.get("attention_bias"))
    return DecoderConfig(
        architecture=cast(Literal["llama", "mistral", "qwen2", "qwen3"], architecture),
        vocab_size=_size(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_size(raw, "intermediate_size"),
        num_layers=_size(raw, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_size(raw, "num_key_value_heads", heads),
        head_dim=_size(raw, "head_dim", 128 if architecture == "qwen3" else hidden // heads),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=_number(_rope(raw), "rope_theta", _number(raw, "rope_theta", 10000.0)),
        max_position_embeddings=max_positions,
        rope_scaling=_rope_scaling(_rope(raw)),
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
        attention_bias=bias,
        attention_output_bias=bias and architecture != "qwen2",
        mlp_bias=bool(raw.get("mlp_bias")),
        qk_norm=architecture == "qwen3",
        eos_token_ids=_token_ids(generation, raw),
        bos_token_id=raw.get("bos_token_id"),
    )


def check_shape(config: DecoderConfig) -> DecoderConfig:
    """The same config, or InvalidCheckpoint where its sizes contradict each other."""
    if config.num_heads % config.num_kv_heads:
        raise InvalidCheckpoint(
            f"{config.num_heads} attention heads cannot share {config.num_kv_heads} key-value heads evenly; "
            "num_attention_heads must be a multiple of num_key_value_heads"
        )
    if config.head_dim % 2:
        raise InvalidCheckpoint(f"head_dim {config.head_dim} is odd, and rotary embeddings turn pairs")
    return config


def _refuse(raw: Mapping[str, Any]) -> None:
    if raw.get("hidden_act", "silu") != "silu":
        raise UnsupportedModel(f"hidden_act {raw['hidden_act']!r} is not supported yet; supported is silu")
    for field in ("num_local_experts", "num_experts"):
        if raw.get(field):
            raise UnsupportedModel(f"mixture of experts ({field}={raw[field]}) is not supported yet; use a dense model")
    if quantization := raw.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedModel(
            f"quantised safetensors (quant_method {method!r}) are not supported yet; "
            "use the unquantised checkpoint or a GGUF file of it"
        )


def _refuse_sliding_window(raw: Mapping[str, Any], max_positions: int) -> None:
    """A window that no sequence outgrows is full attention; a shorter one is refused."""
    kinds = set(raw.get("layer_types") or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise UnsupportedModel(
            f"layers of kind {sorted(unknown)[0]!r} are not supported yet; supported is full_attention"
        )
    window = raw.get("sliding_window")
    slides = bool(window) if raw["model_type"] == "mistral" else bool(raw.get("use_sliding_window"))
    if (slides or "sliding_attention" in kinds) and (window is None or window < max_positions):
        raise UnsupportedModel(
            f"sliding-window attention (sliding_window={window}) is not supported yet; "
            f"if {window} tokens of context are enough, set "
            f"max_position_embeddings to {window} in config.json"
        )


def _rope(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """transformers 5 writes `rope_parameters`, earlier versions `rope_scaling` beside `rope_theta`."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedModel(f"rope_parameters {rope!r} are not supported yet; one rope for all layers is")
    return rope


def _rope_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(
            "partial_rotary_factor other than 1 is not supported yet; the whole head must be rotated"
        )
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", _number(rope, "factor"))
    if kind == "llama3":
        return RopeScaling(
            "llama3",
            factor=_number(rope, "factor"),
            low_freq_factor=_number(rope, "low_freq_factor"),
            high_freq_factor=_number(rope, "high_freq_factor"),
            original_max_position_embeddings=_size(rope, "original_max_position_embeddings"),
        )
    raise UnsupportedModel(f"rope_type {kind!r} is not supported yet; supported are default, linear, llama3")


def _token_ids(*sources: Mapping[str, Any]) -> tuple[int, ...]:
    """End tokens of all sources, the first source's first."""
    ids: dict[int, None] = {}
    for source in sources:
        value = source.get("eos_token_id")
        for token in value if isinstance(value, list) else [value]:
            if isinstance(token, int):
                ids[token] = None
    return tuple(ids)


def _size(raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = raw.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidCheckpoint(f"config.json: {field} must be a whole number above 0, got {value!r}")
    return value


def _number(raw: Mapping[str, Any], field: str, default: float | None = None) -> float:
    value = raw.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise InvalidCheckpoint(f"config.json: {field} must be a number above 0, got {value!r}")
    return float(value)
