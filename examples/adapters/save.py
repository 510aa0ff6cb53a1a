"""Writes an adapter as PEFT does, with what varies from run to run and from machine to machine left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from base_model import BASE_NAME
from peft import get_peft_model_state_dict
from safetensors.torch import save_file


def save_adapter(model: Any, folder: Path) -> None:
    """Two files: the weights in bfloat16, and the config without paths, with its sets sorted.

    `save_pretrained` would add a model card, keep float32 and name the folder the base model was read from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    path = folder / "adapter_model.safetensors"
    save_file(
        {key: weights[key].to(torch.bfloat16).contiguous() for key in sorted(weights)},
        path,
        metadata={"format": "pt"},
    )
    path.chmod(0o644)  # safetensors writes 0600; a server that runs as another user must read it
    config = model.peft_config["default"].to_dict() | {
        "base_model_name_or_path": BASE_NAME,
        "inference_mode": True,
    }
    text = json.dumps(config, indent=2, sort_keys=True, default=_sorted_set)
    (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")


def _sorted_set(value: Any) -> Any:
    if isinstance(value, set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} in a LoRA config")
