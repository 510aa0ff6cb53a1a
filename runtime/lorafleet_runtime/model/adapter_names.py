"""Names of tensors in adapter files: which module each belongs to, and which part of it.

PEFT drops the adapter's name on saving; dictionaries saved by hand keep it (`lora_A.default.weight`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from lorafleet_runtime.model.adapter_config import WEIGHTS_FILE
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidAdapter

EMBEDDING, LM_HEAD, FINAL_NORM = "embed_tokens", "lm_head", "norm"
NORMS = {
    "input_layernorm": "input",
    "post_attention_layernorm": "post",
    "q_norm": "q",
    "k_norm": "k",
}
"""A layer's norms, by their names in checkpoints."""
NO_LAYER = -1


class Part(Enum):
    """A tensor's part in its module; the value is how messages call it."""

    A = "lora_A"
    B = "lora_B"
    B_BIAS = "lora_B.bias"
    MAGNITUDE = "lora_magnitude_vector"
    TOKENS = "trainable_tokens_delta"
    WEIGHT = "weight"
    BASE_WEIGHT = "base_layer.weight"
    BIAS = "bias"


_NAME = r"(?:\.(?P<adapter>(?!weight$)[^.]+))?"
# The first that matches counts; an embedding's A is the transpose of a linear layer's B, and the other way round.
_PARTS: tuple[tuple[Part, re.Pattern[str]], ...] = tuple(
    (part, re.compile(rf"(?P<module>.+?)\.{tail}"))
    for part, tail in (
        (Part.A, rf"lora_A{_NAME}\.weight"),
        (Part.B, rf"lora_B{_NAME}\.weight"),
        (Part.B_BIAS, rf"lora_B{_NAME}\.bias"),
        (Part.B, rf"lora_embedding_A{_NAME}"),
        (Part.A, rf"lora_embedding_B{_NAME}"),
        (Part.MAGNITUDE, rf"lora_magnitude_vector{_NAME}(?:\.weight)?"),
        (Part.TOKENS, rf"token_adapter\.trainable_tokens_delta{_NAME}"),
        (Part.WEIGHT, rf"modules_to_save{_NAME}\.weight"),
        (Part.BASE_WEIGHT, r"(?:token_adapter\.)?base_layer\.weight"),
        (Part.BIAS, r"(?:base_layer\.)?bias"),
        (Part.WEIGHT, r"weight"),
    )
)
# Of use in training only: VeLoRA's projection for its compressed backward pass.
_TRAINING_ONLY = re.compile(r".+\.lora_velora_embed(?:\.[^.]+)?")
# What wrappers put before the layers: PEFT itself, a causal-LM head, a multimodal model, torch.compile, DDP.
_MODULE = re.compile(
    r"(?:(?:base_model|model|language_model|module|_orig_mod)\.)*"
    r"(?:layers\.(?P<layer>\d+)\.(?P<inner>self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj"
    r"|input_layernorm|post_attention_layernorm|self_attn\.[qk]_norm)|(?P<outer>embed_tokens|lm_head|norm))"
)
_LORA = {Part.A, Part.B, Part.MAGNITUDE}
_ALLOWED = {
    EMBEDDING: _LORA | {Part.TOKENS, Part.WEIGHT, Part.BASE_WEIGHT},
    LM_HEAD: _LORA | {Part.B_BIAS, Part.TOKENS, Part.WEIGHT, Part.BASE_WEIGHT},
    **{norm: {Part.WEIGHT} for norm in (FINAL_NORM, *NORMS)},
    **{target: _LORA | {Part.B_BIAS, Part.BIAS} for target in LORA_TARGETS},
}


@dataclass(slots=True)
class Module:
    """Where one module's tensors are in the file. `layer` is NO_LAYER for embed_tokens, lm_head and the last norm;
    `path` is the module's name in the model, as patterns of `adapter_config.json` mean it."""

    path: str
    layer: int
    name: str
    keys: dict[Part, str] = field(default_factory=dict)


def modules(keys: Iterable[str], config: DecoderConfig) -> dict[tuple[int, str], Module]:
    """A file's tensors by (layer, name) of their module, in layer order; every tensor must belong to one.

    Raises InvalidAdapter naming the first tensor that belongs nowhere, and why it cannot be used.
    """
    found: dict[tuple[int, str], Module] = {}
    adapters: set[str] = set()
    for key in sorted(keys):
        if _TRAINING_ONLY.fullmatch(key):
            continue
        part, path, adapter = _split(key)
        place = _MODULE.fullmatch(path)
        if place is None:
            raise InvalidAdapter(_explain_foreign(key, part))
        layer = int(place["layer"]) if place["layer"] else NO_LAYER
        name = (place["inner"] or place["outer"]).rpartition(".")[2]
        if layer >= config.num_layers:
            raise InvalidAdapter(
                f"{key} is for layer {layer}, and the base model has {config.num_layers} layers "
                f"(0 to {config.num_layers - 1}); the adapter was trained for another model"
            )
        if part not in _ALLOWED[name]:
            raise InvalidAdapter(_explain_unfit(key, part, name))
        if adapter:
            adapters.add(adapter)
        elif part not in (Part.WEIGHT, Part.BASE_WEIGHT, Part.BIAS):  # these never carry an adapter's name
            adapters.add("")
        module = found.setdefault((layer, name), Module(path, layer, name))
        if module.path != path or part in module.keys:
            raise InvalidAdapter(
                f"{key} and {next(iter(module.keys.values()))} are for the same {_kind(name)}; keep one of them"
            )
        module.keys[part] = key
    if len(adapters) > 1:
        raise InvalidAdapter(
            f"{WEIGHTS_FILE} holds several adapters ({', '.join(sorted(adapters))}); save one a folder"
        )
    order = [*LORA_TARGETS, *NORMS, EMBEDDING, LM_HEAD, FINAL_NORM]
    return {at: found[at] for at in sorted(found, key=lambda at: (at[0], order.index(at[1])))}


def _split(key: str) -> tuple[Part, str, str]:
    """(part, module path, the adapter's name if there is one)."""
    for part, pattern in _PARTS:
        match = pattern.fullmatch(key)
        if match is not None:
            return part, match["module"].removeprefix("base_model.model."), match.groupdict().get("adapter") or ""
    raise InvalidAdapter(f"{key} is no tensor that LoRA adapters have; save the adapter with PEFT's save_pretrained")


def _kind(name: str) -> str:
    return "projection" if name in LORA_TARGETS else "module"


def _explain_foreign(key: str, part: Part) -> str:
    if part is Part.WEIGHT or part is Part.BIAS:
        return (
            f"{key} is part of no module that can be replaced, which are norms, embed_tokens and lm_head; "
            "train without it in modules_to_save"
        )
    return (
        f"{key} is not a projection of the base model, which has layers.N.self_attn.{{q,k,v,o}}_proj and "
        "layers.N.mlp.{gate,up,down}_proj; the adapter was trained for another model"
    )


def _explain_unfit(key: str, part: Part, name: str) -> str:
    if part in (Part.WEIGHT, Part.BASE_WEIGHT) and name in LORA_TARGETS:
        return (
            f"{key}: replacing a whole projection is not supported, as it costs what a base model's costs in every "
            "layer; target it with LoRA, or merge it into a base model of its own"
        )
    return f"{key}: {part.value} is no part of {name} that PEFT trains; save the adapter with PEFT's save_pretrained"
