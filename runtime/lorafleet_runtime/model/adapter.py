"""LoRA adapters as PEFT writes them: a folder of `adapter_config.json` and `adapter_model.safetensors`.

Knows nothing of pages or devices: what is returned lies in host memory, in float32, ready to be packed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_runtime.model.adapter_config import AdapterConfig, read_adapter_config
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidAdapter, RankTooHigh

WEIGHTS_FILE = "adapter_model.safetensors"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")

# PEFT drops the adapter's name on saving; dictionaries saved by hand keep it (`lora_A.default.weight`).
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])(?:\.(?P<adapter>[^.]+))?\.weight")
# What wrappers put before the layers: PEFT itself, a causal-LM head, a multimodal model, torch.compile, DDP.
_MODULE = re.compile(
    r"(?:(?:base_model|model|language_model|module|_orig_mod)\.)*layers\.(?P<layer>\d+)\."
    r"(?P<target>self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)"
)


@dataclass(frozen=True, slots=True)
class LoraPair:
    """One projection's update, ΔW = b @ a: `a [r, in]`, `b [out, r]` float32; b already carries the scale."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class AdapterWeights:
    """An adapter of one base model.

    `rank` is the largest of its modules' ranks; `modules` maps (layer, target) to its pair, and a projection
    that is missing there has no update; `targets` are those that occur, in the order of `LORA_TARGETS`.
    """

    rank: int
    modules: Mapping[tuple[int, str], LoraPair]
    targets: tuple[str, ...]
    warnings: tuple[str, ...] = ()


@dataclass(slots=True)
class _Module:
    """Where one projection's tensors are in the file."""

    path: str
    layer: int
    target: str
    keys: dict[str, str] = field(default_factory=dict)


def read_adapter(folder: str | Path, config: DecoderConfig, max_rank: int) -> AdapterWeights:
    """Read, check and scale an adapter for the base model that `config` describes.

    Raises InvalidAdapter or RankTooHigh; their `reason` and message are what the adapter's owner is shown.
    Nothing is read into memory before names, shapes and ranks have been found to fit.
    """
    folder = Path(folder)
    settings = read_adapter_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        _refuse_missing(folder)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            modules = _modules(list(file.keys()), config)
            _check_shapes(modules, file, config, settings, max_rank)
            pairs = {(m.layer, m.target): _pair(m, file, settings) for m in modules}
    except (SafetensorError, OSError) as error:
        raise InvalidAdapter(f"{WEIGHTS_FILE} is damaged or cut short, copy it again: {error}") from error
    present = {target for _, target in pairs}
    return AdapterWeights(
        rank=max(pair.a.shape[0] for pair in pairs.values()),
        modules=pairs,
        targets=tuple(target for target in LORA_TARGETS if target in present),
        warnings=settings.warnings,
    )


def _refuse_missing(folder: Path) -> None:
    for name in _PICKLES:
        if (folder / name).exists():
            raise InvalidAdapter(
                f"{name} is a pickle, which can run code when it is read, and is never loaded; "
                f"save the adapter as {WEIGHTS_FILE} (PEFT: save_pretrained with safe_serialization=True)"
            )
    raise InvalidAdapter(f"{WEIGHTS_FILE} is missing; an adapter is a folder that PEFT's save_pretrained wrote")


def _modules(keys: list[str], config: DecoderConfig) -> list[_Module]:
    """Group the file's tensors by projection, in layer order; every tensor must belong to one."""
    found: dict[tuple[int, str], _Module] = {}
    names: set[str] = set()
    for key in sorted(keys):
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidAdapter(_explain_foreign(key))
        path = match["module"].removeprefix("base_model.model.")
        place = _MODULE.fullmatch(path)
        if place is None:
            raise InvalidAdapter(_explain_foreign(key))
        layer, target = int(place["layer"]), place["target"].rpartition(".")[2]
        if layer >= config.num_layers:
            raise InvalidAdapter(
                f"{key} is for layer {layer}, and the base model has {config.num_layers} layers "
                f"(0 to {config.num_layers - 1}); the adapter was trained for another model"
            )
        names.add(match["adapter"] or "")
        module = found.setdefault((layer, target), _Module(path, layer, target))
        if module.path != path or match["half"] in module.keys:
            raise InvalidAdapter(
                f"{key} and {next(iter(module.keys.values()))} are for the same projection; keep one of them"
            )
        module.keys[match["half"]] = key
    if not found:
        raise InvalidAdapter(f"{WEIGHTS_FILE} holds no LoRA tensor; was the adapter saved before it was trained?")
    if len(names) > 1:
        raise InvalidAdapter(f"{WEIGHTS_FILE} holds several adapters ({', '.join(sorted(names))}); save one a folder")
    return [found[place] for place in sorted(found, key=lambda at: (at[0], LORA_TARGETS.index(at[1])))]


def _explain_foreign(key: str) -> str:
    """Why a tensor cannot be used, from the names that PEFT gives tensors."""
    if "lora_magnitude_vector" in key:
        return f"{key}: DoRA is not supported yet; train with use_dora=false"
    if "trainable_tokens" in key:
        return f"{key}: trained token embeddings are not supported yet; train without trainable_token_indices"
    if "lora_embedding_" in key or re.search(r"(lm_head|embed_tokens)\.lora_", key):
        return f"{key}: LoRA on embeddings or lm_head is not supported yet; target {', '.join(LORA_TARGETS)}"
    if re.search(r"\.lora_[AB](\..+)?\.bias$", key):
        return f"{key}: a bias in LoRA matrices is not supported yet; train with lora_bias=false"
    if _KEY.fullmatch(key):
        return (
            f"{key} is not a projection of the base model, which has layers.N.self_attn.{{q,k,v,o}}_proj and "
            "layers.N.mlp.{gate,up,down}_proj; the adapter was trained for another model"
        )
    return (
        f"{key}: tensors other than lora_A and lora_B (whole modules, biases) are not supported yet; "
        "train without modules_to_save and with bias='none'"
    )


def _check_shapes(
    modules: list[_Module], file: Any, config: DecoderConfig, settings: AdapterConfig, max_rank: int
) -> None:
    """A is [r, in] and B is [out, r] of one rank, which is not above `max_rank`."""
    made_for = f" (made for {settings.base_model})" if settings.base_model else ""
    for module in modules:
        for half, other in (("A", "B"), ("B", "A")):
            if half not in module.keys:
                raise InvalidAdapter(f"{module.keys[other]} has no lora_{half} beside it; the file is incomplete")
        out, width = config.linear_shape(module.target)
        a, b = (list(file.get_slice(module.keys[half]).get_shape()) for half in "AB")
        for half, shape, fits, wanted in (
            ("A", a, len(a) == 2 and a[1] == width, f"[r, {width}]"),
            ("B", b, len(b) == 2 and b[0] == out, f"[{out}, r]"),
        ):
            if not fits:
                raise InvalidAdapter(
                    f"{module.keys[half]} has shape {shape}, and the base model's {module.target} takes "
                    f"{wanted}; the adapter was trained for another model{made_for}"
                )
        if a[0] != b[1] or a[0] == 0:
            raise InvalidAdapter(
                f"{module.keys['A']} has shape {a} and {module.keys['B']} has {b}: "
                "their ranks must be equal and above 0"
            )
        if a[0] > max_rank:
            raise RankTooHigh(
                f"{module.keys['A']} has rank {a[0]}, above this base model's maximum of {max_rank}; "
                "raise spec.lora.maxRank of the base model (--max-lora-rank), or train with a lower rank"
            )


def _pair(module: _Module, file: Any, settings: AdapterConfig) -> LoraPair:
    halves: dict[str, Tensor] = {}
    for half, key in module.keys.items():
        tensor: Tensor = file.get_tensor(key)
        if not tensor.is_floating_point():
            raise InvalidAdapter(
                f"{key} has dtype {tensor.dtype}; quantised adapters are not supported yet, save it in float"
            )
        # A copy, never a view of the mapped file: the file may be replaced while the adapter is being served.
        halves[half] = tensor.to(torch.float32, copy=True)
        if not bool(torch.isfinite(halves[half]).all()):
            raise InvalidAdapter(f"{key} has NaN or infinite values; the training diverged or the file is damaged")
    rank = halves["A"].shape[0]
    return LoraPair(halves["A"], halves["B"].mul_(settings.scale(module.path, rank)))
