"""Small random models and adapters, written as real files: what tests and benches run on.

Hugging Face's and PEFT's own libraries read these folders, so that they can serve as oracles.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorafleet_runtime.model.adapter import WEIGHTS_FILE
from lorafleet_runtime.model.adapter_config import CONFIG_FILE, AdapterConfig
from lorafleet_runtime.model.config import DecoderConfig, RopeScaling
from lorafleet_runtime.model.weights import BLOCKS, expected_shapes

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
LLAMA3_SCALING = RopeScaling("llama3", 8.0, 1.0, 4.0, original_max_position_embeddings=64)
"""Stretches a tiny model's low frequencies within its few hundred positions."""


def tiny_config(architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = "llama", **changes: Any) -> DecoderConfig:
    """A decoder of about 0.1 million weights with grouped heads; `changes` are fields of DecoderConfig.

    Its vocabulary is that of `tiny_tokenizer`: bytes, then the special tokens, of which 258 ends a turn.
    """
    config = DecoderConfig(
        architecture=architecture,
        vocab_size=264,
        hidden_size=64,
        intermediate_size=112,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32 if architecture == "qwen3" else 16,
        rms_norm_eps=1e-6,
        rope_theta=10000.0,
        max_position_embeddings=512,
        attention_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        eos_token_ids=(258,),
        bos_token_id=256,
    )
    return dataclasses.replace(config, **changes)


def random_weights(config: DecoderConfig, seed: int) -> dict[str, Tensor]:
    """Float32 tensors of `expected_shapes(config)`, scaled so that logits differ clearly between tokens."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("norm.weight"):
            weights[name] = 1.0 + 0.1 * noise
        elif name.endswith(".bias"):
            weights[name] = 0.1 * noise
        else:
            fan_in = 1 if name == "embed_tokens.weight" and not config.tie_word_embeddings else shape[-1]
            weights[name] = 1.5 * fan_in**-0.5 * noise
    return weights


def save_tiny_model(folder: str | Path, config: DecoderConfig, seed: int = 0) -> Path:
    """Write `config.json`, `generation_config.json` and `model.safetensors`; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", hf_config(config))
    _write_json(
        folder / "generation_config.json",
        {"bos_token_id": config.bos_token_id, "eos_token_id": list(config.eos_token_ids)},
    )
    weights = {
        name if name.startswith("lm_head") else f"model.{name}": tensor
        for name, tensor in random_weights(config, seed).items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def hf_config(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` that Hugging Face reads as this decoder."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_scaling is not None:
        rope |= {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
        if config.rope_scaling.kind == "llama3":
            rope |= {k: v for k, v in dataclasses.asdict(config.rope_scaling).items() if k != "kind"}
    raw = {
        "architectures": [_CLASSES[config.architecture]],
        "model_type": config.architecture,
        "dtype": "float32",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": rope,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids),
    }
    if config.architecture in ("llama", "qwen3"):
        raw["attention_bias"] = config.attention_bias
    if config.architecture == "llama":
        raw["mlp_bias"] = config.mlp_bias
    if config.architecture == "mistral":
        raw["sliding_window"] = None
    return raw


@dataclass(frozen=True, slots=True)
class TinyAdapter:
    """An adapter as PEFT keeps it: unscaled A and B by module path, and the config they are saved with."""

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any] = field(default_factory=dict)

    def delta(self, layer: int, target: str) -> Tensor:
        """ΔW `[out, in]` float32 of one projection, scale included."""
        module = f"model.layers.{layer}.{BLOCKS[target]}.{target}"
        a, b = (self.tensors[f"base_model.model.{module}.lora_{half}.weight"].float() for half in "AB")
        settings = AdapterConfig(
            self.config["lora_alpha"], self.config["use_rslora"], self.config["alpha_pattern"], "", ()
        )
        return settings.scale(module, a.shape[0]) * (b @ a)


def random_adapter(
    config: DecoderConfig,
    rank: int = 8,
    targets: Sequence[str] = ("q_proj", "v_proj"),
    seed: int = 0,
    *,
    alpha: float = 16.0,
    rslora: bool = False,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    layers: Sequence[int] | None = None,
    strength: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> TinyAdapter:
    """An adapter for `config` whose updates are as large as the weights at `strength` 1, so that it is heard.

    Patterns map a module's name or its ending (`layers.0.self_attn.q_proj`, `q_proj`) to its rank or alpha.
    """
    generator = torch.Generator().manual_seed(seed)
    ranks = AdapterConfig(float(rank), False, rank_pattern or {}, "", ())
    tensors: dict[str, Tensor] = {}
    for layer in range(config.num_layers) if layers is None else layers:
        for target in targets:
            module = f"model.layers.{layer}.{BLOCKS[target]}.{target}"
            out, width = config.linear_shape(target)
            r = int(ranks.scale(module, 1))
            a = torch.randn(r, width, generator=generator) * width**-0.5
            b = torch.randn(out, r, generator=generator) * strength * r**-0.5
            tensors[f"base_model.model.{module}.lora_A.weight"] = a.to(dtype)
            tensors[f"base_model.model.{module}.lora_B.weight"] = b.to(dtype)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "layers_to_transform": None if layers is None else list(layers),
        "bias": "none",
        "use_rslora": rslora,
        "rank_pattern": dict(rank_pattern or {}),
        "alpha_pattern": dict(alpha_pattern or {}),
        "base_model_name_or_path": f"tiny-{config.architecture}",
        "inference_mode": True,
    }
    return TinyAdapter(tensors, settings)


def save_adapter(folder: str | Path, adapter: TinyAdapter) -> Path:
    """Write the two files that PEFT's save_pretrained writes; returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / CONFIG_FILE, adapter.config)
    save_file(dict(adapter.tensors), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
