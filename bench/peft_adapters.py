"""Adapters of every kind, written by PEFT itself: random, and strong enough to be heard."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lorafleet_runtime.model.config import LORA_TARGETS

_ALL = list(LORA_TARGETS)
KINDS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    "dora": {"target_modules": _ALL, "use_dora": True},
    "dora-patterns": {
        "target_modules": ["q_proj", "k_proj", "up_proj", "down_proj"],
        "use_dora": True,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7},
        "alpha_pattern": {"k_proj": 3},
        "layers_to_transform": [1],
    },
    "velora": {"target_modules": ["o_proj"], "velora_config": {"num_groups": 4, "init_type": "random"}},
    "lora-bias": {"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"], "lora_bias": True},
    "lm-head": {"target_modules": ["lm_head", "q_proj"]},
    "lm-head-only-bias": {"target_modules": ["lm_head"], "lora_bias": True},
    "lm-head-dora": {"target_modules": ["lm_head", "v_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "gate_proj"]},
    "embedding-dora": {"target_modules": ["embed_tokens", "lm_head"], "use_dora": True},
    "regex": {"target_modules": r".*(lm_head|embed_tokens|layers\.0\..*down_proj)"},
    "saved-lm-head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved-embedding": {"target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
    "saved-norms": {"target_modules": ["up_proj"], "modules_to_save": ["norm"]},
    "saved-all": {"target_modules": _ALL, "modules_to_save": ["embed_tokens", "norm", "lm_head"], "use_dora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [97, 3, 258]},
    "tokens-of-each": {
        "target_modules": ["v_proj"],
        "trainable_token_indices": {"embed_tokens": [101, 32], "lm_head": [7, 5, 200]},
    },
    "tokens-of-lm-head": {"target_modules": ["v_proj"], "trainable_token_indices": {"lm_head": [8, 255]}},
    "tokens-dora": {"target_modules": _ALL, "trainable_token_indices": {"embed_tokens": [110]}, "use_dora": True},
    "lm-head-and-norm": {"target_modules": ["lm_head"], "modules_to_save": ["input_layernorm", "model.norm"]},
}  # fmt: skip
TIED_KINDS: Mapping[str, Mapping[str, Any]] = {
    "tied-embedding": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
    "tied-lm-head": {"target_modules": ["lm_head", "embed_tokens"], "ensure_weight_tying": True},
    "tied-saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "tied-tokens": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [98, 1], "lm_head": [98, 1]},
        "ensure_weight_tying": True,
    },
}
BIAS_KINDS: Mapping[str, Mapping[str, Any]] = {
    "bias-all": {"target_modules": ["q_proj"], "bias": "all", "lora_bias": True},
    "bias-lora-only": {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"},
    "bias-dora": {"target_modules": ["q_proj", "k_proj"], "bias": "all", "use_dora": True},
}
"""For base models whose projections have biases."""


def save_with_peft(model: Path, folder: Path, settings: Mapping[str, Any], seed: int, rank: int = 4) -> Path:
    """Write an adapter of the base model in `model`, all that PEFT would have trained shaken; returns `folder`."""
    import peft
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        torch.manual_seed(seed)
        if "velora_config" in settings:
            settings = {**settings, "velora_config": peft.tuners.lora.VeloraConfig(**settings["velora_config"])}
        config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, init_lora_weights=False, **settings)
        adapted = peft.get_peft_model(base, config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                shake(name, parameter.data)
        adapted.save_pretrained(folder)
    return folder


def shake(name: str, tensor: torch.Tensor) -> None:
    """Random values of a size that fits the tensor's role."""
    noise = torch.randn_like(tensor)
    if "lora_embedding_" in name:
        tensor.copy_(0.4 * noise)
    elif "lora_magnitude_vector" in name or "norm" in name:
        tensor.mul_(1 + 0.3 * noise.clamp(-2, 2))
    elif "lora_" in name and "bias" not in name:
        pass  # already random
    else:
        tensor.add_(0.2 * noise)
