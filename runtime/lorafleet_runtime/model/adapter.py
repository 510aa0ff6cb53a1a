"""LoRA adapters as PEFT writes them: a folder of `adapter_config.json` and `adapter_model.safetensors`.

Knows nothing of pages or devices: what is returned lies in host memory, in float32, ready to be packed.
"""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lorafleet_runtime.model.adapter_config import WEIGHTS_FILE, read_adapter_config
from lorafleet_runtime.model.adapter_names import (
    EMBEDDING,
    FINAL_NORM,
    LM_HEAD,
    NO_LAYER,
    NORMS,
    Module,
    Part,
    modules,
)
from lorafleet_runtime.model.adapter_tensors import AdapterTensors
from lorafleet_runtime.model.adapter_vocabulary import read_vocabulary
from lorafleet_runtime.model.adapter_weights import AdapterWeights, LoraPair, VocabularyUpdate
from lorafleet_runtime.model.base_weights import BaseWeights, needed
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.dora import row_factor
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.weights import BLOCKS, has_bias

__all__ = ["WEIGHTS_FILE", "AdapterWeights", "LoraPair", "VocabularyUpdate", "read_adapter"]

_PICKLES = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")
_Found = dict[tuple[int, str], Module]


def read_adapter(
    folder: str | Path, config: DecoderConfig, max_rank: int, base: BaseWeights | None = None
) -> AdapterWeights:
    """Read, check and scale an adapter for the base model that `config` describes.

    `base` is asked for the matrices that DoRA, trained biases and copies of the embedding depend on; without it, as
    where a replica's ranks have them in parts, an adapter that needs them is refused. Raises InvalidAdapter or
    RankTooHigh; their `reason` and message are what the adapter's owner is shown. Nothing is read into memory before
    names, shapes and ranks have been found to fit.
    """
    folder = Path(folder)
    settings = read_adapter_config(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        _refuse_missing(folder)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            found = modules(file.keys(), config)
            tensors = AdapterTensors(file, settings, config, max_rank)
            _check(found, tensors)
            return _assemble(found, tensors, base)
    except (SafetensorError, OSError) as error:
        raise InvalidAdapter(f"{WEIGHTS_FILE} is damaged or cut short, copy it again: {error}") from error


def _refuse_missing(folder: Path) -> None:
    for name in _PICKLES:
        if (folder / name).exists():
            raise InvalidAdapter(
                f"{name} is a pickle, which can run code when it is read, and is never loaded; "
                f"save the adapter as {WEIGHTS_FILE} (PEFT: save_pretrained with safe_serialization=True)"
            )
    raise InvalidAdapter(f"{WEIGHTS_FILE} is missing; an adapter is a folder that PEFT's save_pretrained wrote")


def _check(found: _Found, tensors: AdapterTensors) -> None:
    if not found:
        raise InvalidAdapter(f"{WEIGHTS_FILE} holds no LoRA tensor; was the adapter saved before it was trained?")
    for module in found.values():
        if module.name in ("q_norm", "k_norm") and not tensors.config.qk_norm:
            raise InvalidAdapter(f"{module.keys[Part.WEIGHT]}: the base model has no {module.name}")
        if Part.BIAS in module.keys and not has_bias(tensors.config, module.name):
            raise InvalidAdapter(f"{module.keys[Part.BIAS]}: the base model's {module.name} has no bias")
        tensors.check(module)
    for path, place in _replaceable(tensors.config):
        if path.endswith(tensors.settings.saved) and (place not in found or Part.WEIGHT not in found[place].keys):
            raise InvalidAdapter(
                f"{WEIGHTS_FILE} has no weight for {path}, which modules_to_save names; "
                + ("replacing a projection is not supported" if place[1] in LORA_TARGETS else "copy the adapter again")
            )


def _replaceable(config: DecoderConfig) -> list[tuple[str, tuple[int, str]]]:
    """Every module that modules_to_save may mean, by its path in the model; PEFT compares endings."""
    names = [
        *(f"{BLOCKS[t]}.{t}" for t in LORA_TARGETS),
        "input_layernorm",
        "post_attention_layernorm",
        *(["self_attn.q_norm", "self_attn.k_norm"] if config.qk_norm else []),
    ]
    inner = [
        (f"model.layers.{layer}.{name}", (layer, name.rpartition(".")[2]))
        for layer in range(config.num_layers)
        for name in names
    ]
    outer = [("model.embed_tokens", EMBEDDING), ("model.norm", FINAL_NORM), ("lm_head", LM_HEAD)]
    return inner + [(path, (NO_LAYER, name)) for path, name in outer]


def _assemble(found: _Found, tensors: AdapterTensors, base: BaseWeights | None) -> AdapterWeights:
    pairs: dict[tuple[int, str], LoraPair] = {}
    scales: dict[tuple[int, str], Tensor] = {}
    shifts: dict[tuple[int, str], Tensor] = {}
    norms: dict[tuple[int, str], Tensor] = {}
    for (layer, name), module in found.items():
        if name in NORMS:
            norms[layer, NORMS[name]] = tensors.read(module.keys[Part.WEIGHT])
        elif name in LORA_TARGETS:
            pair, scale, shift = _projection(module, tensors, base)
            if pair is not None:
                pairs[layer, name] = pair
            if scale is not None:
                scales[layer, name] = scale
            if shift is not None:
                shifts[layer, name] = shift
    embedding, lm_head, warnings = read_vocabulary(found, tensors, base)
    final = found.get((NO_LAYER, FINAL_NORM))
    if not (pairs or shifts or norms or embedding or lm_head or final):
        raise InvalidAdapter(f"{WEIGHTS_FILE} changes nothing of the base model; save the adapter again")
    changed = {target for _, target in (*pairs, *scales, *shifts)}
    updates = ((EMBEDDING, embedding), (LM_HEAD, lm_head))
    ranks = [p.a.shape[0] for p in (*pairs.values(), *(u.pair for _, u in updates if u is not None)) if p is not None]
    return AdapterWeights(
        rank=max(ranks, default=0),
        modules=pairs,
        targets=(*(t for t in LORA_TARGETS if t in changed), *(name for name, u in updates if u is not None)),
        warnings=(*tensors.settings.warnings, *warnings),
        scales=scales,
        shifts=shifts,
        norms=norms,
        final_norm=tensors.read(final.keys[Part.WEIGHT]) if final is not None else None,
        embedding=embedding,
        lm_head=lm_head,
    )


def _projection(
    module: Module, tensors: AdapterTensors, base: BaseWeights | None
) -> tuple[LoraPair | None, Tensor | None, Tensor | None]:
    """(pair, scale, shift): y = Wx + b becomes `scale · y + shift + pair`, as `AdapterWeights` says."""
    pair, scale = tensors.pair(module), None
    old = new = None
    if Part.BIAS in module.keys or Part.MAGNITUDE in module.keys:
        base = needed(base, next(module.keys[p] for p in (Part.BIAS, Part.MAGNITUDE) if p in module.keys))
        old = base.bias(module.layer, module.name)
        old = new = None if old is None else old.float()
    if Part.BIAS in module.keys:
        new = tensors.read(module.keys[Part.BIAS])
    if base is not None and pair is not None and Part.MAGNITUDE in module.keys:
        key = module.keys[Part.MAGNITUDE]
        scale = row_factor(tensors.read(key), base.projection(module.layer, module.name), pair, key)
        pair = LoraPair(pair.a, pair.b * scale[:, None])
    # DoRA scales Wx and not the bias, and y has the bias in it.
    shift = None if old is None or new is None else new - (old if scale is None else scale * old)
    if pair is not None and (trained := tensors.optional(module, Part.B_BIAS)) is not None:
        trained = trained * tensors.settings.scale(module.path, pair.a.shape[0])
        shift = trained if shift is None else shift + trained
    return pair, scale, shift
