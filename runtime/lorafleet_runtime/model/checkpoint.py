"""Base models from disk: a Hugging Face folder with safetensors, or one GGUF file.

Knows no devices and no requests.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lorafleet_runtime.model import gguf_checkpoint, safetensors_checkpoint
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.errors import InvalidCheckpoint
from lorafleet_runtime.model.weights import Keep, Wanted, all_names, keep_all

Progress = Callable[[float], None]


def read_config(path: str | Path) -> DecoderConfig:
    """What the checkpoint at `path` describes, read from headers only.

    Raises UnsupportedModel for a model that the decoder cannot run, InvalidCheckpoint for damaged files.
    """
    path = Path(path)
    return gguf_checkpoint.read_config(path) if _is_gguf(path) else safetensors_checkpoint.read_config(path)


def load_weights(
    path: str | Path, config: DecoderConfig, dtype: torch.dtype, progress: Progress | None = None,
    keep: Keep = keep_all, wanted: Wanted = all_names,
) -> dict[str, Tensor]:  # fmt: skip
    """All `wanted` tensors of `weights.expected_shapes(config)` in `dtype`, in host memory, apart from the files.

    Peak memory is the result and one tensor; `keep(name, tensor)` may take a part of it. `progress` is called with the
    fraction read, rising to 1.0.
    Raises InvalidCheckpoint or UnsupportedModel; before anything is read, if names or shapes do not fit.
    """
    path = Path(path)
    load = gguf_checkpoint.load_weights if _is_gguf(path) else safetensors_checkpoint.load_weights
    return load(path, config, dtype, progress or (lambda _: None), keep, wanted)


def _is_gguf(path: Path) -> bool:
    if path.is_dir():
        return False
    if not path.exists():
        raise InvalidCheckpoint(
            f"{path} does not exist; give a .gguf file, or a folder with config.json and safetensors"
        )
    if path.suffix != ".gguf":
        raise InvalidCheckpoint(
            f"{path} is neither a folder nor a .gguf file; give the folder that config.json lies in"
        )
    return True
