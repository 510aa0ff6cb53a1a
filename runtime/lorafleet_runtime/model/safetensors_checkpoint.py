"""A Hugging Face folder: `config.json`, and safetensors in one file or in shards with an index."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.errors import InvalidCheckpoint
from lorafleet_runtime.model.hf_config import check_shape, parse_config, read_json
from lorafleet_runtime.model.weights import Keep, Wanted, all_names, check_complete, keep_all

INDEX_FILE = "model.safetensors.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def read_config(folder: Path) -> DecoderConfig:
    """The folder's config. Raises UnsupportedModel or InvalidCheckpoint naming file and field."""
    if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
        raise InvalidCheckpoint(f"{folder} holds an adapter, not a base model; declare it as a LoRAAdapter")
    raw = read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    return check_shape(parse_config(raw, read_json(generation) if generation.exists() else {}))


def load_weights(
    folder: Path, config: DecoderConfig, dtype: torch.dtype, progress: Callable[[float], None], keep: Keep = keep_all,
    wanted: Wanted = all_names,
) -> dict[str, Tensor]:  # fmt: skip
    """See `checkpoint.load_weights`."""
    weights: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stored = {}
        for path in _files(folder):
            file = _open(path, stack)
            keys: list[str] = file.keys()
            stored.update({(path.name, key): file for key in keys if _is_needed(key, config)})
        check_complete(
            ((_name(key), key, tuple(file.get_slice(key).get_shape())) for (_, key), file in stored.items()),
            config,
        )
        for done, ((shard, key), file) in enumerate(stored.items(), start=1):
            if not wanted(_name(key)):
                continue
            try:
                tensor: Tensor = file.get_tensor(key)
            except SafetensorError as error:
                raise InvalidCheckpoint(f"{shard}: tensor {key} cannot be read: {error}") from error
            if not tensor.is_floating_point():
                raise InvalidCheckpoint(
                    f"{shard}: tensor {key} has dtype {tensor.dtype}; use the unquantised checkpoint"
                )
            # Always a copy: a view would keep the file mapped, and die with it if the file is replaced.
            weights[_name(key)] = keep(_name(key), tensor).to(dtype, copy=True)
            progress(done / len(stored))
    return weights


def _open(path: Path, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (SafetensorError, OSError) as error:
        raise InvalidCheckpoint(f"{path.name} is damaged or cut short, copy it again: {error}") from error


def _name(key: str) -> str:
    return key.removeprefix("model.")


def _is_needed(key: str, config: DecoderConfig) -> bool:
    """Leaves out what is stored twice: a tied lm_head, and rotary tables of old checkpoints."""
    tied = config.tie_word_embeddings and key == "lm_head.weight"
    return not tied and not key.endswith("rotary_emb.inv_freq")


def _files(folder: Path) -> list[Path]:
    """The shards that the index names, or else the folder's safetensors files."""
    if (folder / INDEX_FILE).exists():
        shards = read_json(folder / INDEX_FILE).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise InvalidCheckpoint(f"{INDEX_FILE}: weight_map must map tensor names to files in this folder")
        paths = [folder / name for name in sorted(set(shards.values()))]
        for path in paths:
            if not path.is_file():
                raise InvalidCheckpoint(f"{path.name} is missing, and {INDEX_FILE} names it; copy the checkpoint again")
        return paths
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if paths := sorted(p for p in folder.glob("*.safetensors") if p.name != "adapter_model.safetensors"):
        return paths
    for path in sorted(folder.iterdir()):
        if path.suffix in _PICKLES:
            raise InvalidCheckpoint(
                f"{path.name} is a pickle, which can run code when it is read, and is never loaded; "
                "use a checkpoint in safetensors or GGUF"
            )
        if path.suffix == ".gguf":
            raise InvalidCheckpoint(f"{folder} holds no safetensors; to load its GGUF file, give {path} itself")
    raise InvalidCheckpoint(f"{folder} holds no *.safetensors file; copy the checkpoint again")
