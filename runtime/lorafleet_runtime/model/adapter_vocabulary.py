"""What an adapter makes of the embedding and of lm_head, which some base models tie into one matrix.

PEFT's rules, from `utils/save_and_load.py`, `utils/other.py` and `tuners/lora/model.py`: LoRA and modules_to_save
change only the module they name, unless ensure_weight_tying is set; trained tokens are replaced in both of two tied
matrices, unless lm_head has tokens of its own; a copy of the base matrix, saved beside LoRA, overwrites the base's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorafleet_runtime.model.adapter_config import CONFIG_FILE, WEIGHTS_FILE
from lorafleet_runtime.model.adapter_names import EMBEDDING, LM_HEAD, NO_LAYER, Module, Part
from lorafleet_runtime.model.adapter_tensors import AdapterTensors
from lorafleet_runtime.model.adapter_weights import LoraPair, VocabularyUpdate
from lorafleet_runtime.model.base_weights import BaseWeights, needed
from lorafleet_runtime.model.dora import column_factor, row_factor
from lorafleet_runtime.model.errors import InvalidAdapter

_KINDS = {Part.A: "LoRA", Part.WEIGHT: "modules_to_save", Part.TOKENS: "trainable_token_indices"}


def read_vocabulary(
    found: Mapping[tuple[int, str], Module], tensors: AdapterTensors, base: BaseWeights | None
) -> tuple[VocabularyUpdate | None, VocabularyUpdate | None, tuple[str, ...]]:
    """(embedding, lm_head, warnings). Raises InvalidAdapter where two kinds change one matrix."""
    embedding = found.get((NO_LAYER, EMBEDDING)) or Module("model.embed_tokens", NO_LAYER, EMBEDDING)
    lm_head = found.get((NO_LAYER, LM_HEAD)) or Module("lm_head", NO_LAYER, LM_HEAD)
    kind, head_kind = _kind(embedding, tensors), _kind(lm_head, tensors)
    tokens, head_tokens = tensors.tokens(EMBEDDING), tensors.tokens(LM_HEAD)
    copies, warnings = _copies((embedding, lm_head), tensors, base)
    if tensors.config.tie_word_embeddings and (kind is Part.TOKENS or (kind is not None and tensors.settings.tied)):
        if head_kind is None and head_tokens in ((), tokens):
            # What the file does not say of lm_head, it says of the embedding.
            shared = {part: embedding.keys[part] for part in (Part.A, Part.B, *_KINDS) if part in embedding.keys}
            lm_head, head_tokens = Module(lm_head.path, NO_LAYER, LM_HEAD, {**lm_head.keys, **shared}), tokens
            head_kind = kind
            if Part.MAGNITUDE in embedding.keys:
                raise InvalidAdapter(
                    f"{embedding.keys[Part.MAGNITUDE]} has none of lm_head beside it, and ensure_weight_tying is set; "
                    "copy the adapter again"
                )
        elif head_kind is not None and head_kind is not kind:
            raise InvalidAdapter(
                f"{lm_head.keys[head_kind]} and {embedding.keys[kind]} change a matrix that embed_tokens and lm_head "
                f"share, one by {_KINDS[head_kind]}, one by {_KINDS[kind]}; PEFT defines no result of both"
            )
    _check_tokens(EMBEDDING, kind, tokens, tensors)
    _check_tokens(LM_HEAD, head_kind, head_tokens, tensors)
    return (
        _update(embedding, kind, tokens, copies.get(EMBEDDING), tensors, base),
        _update(lm_head, head_kind, head_tokens, copies.get(LM_HEAD), tensors, base),
        warnings,
    )


def _saved(module: Module, tensors: AdapterTensors) -> bool:
    """Whether the module's `weight` replaces it for this adapter: it is in modules_to_save, by PEFT's rule."""
    return Part.WEIGHT in module.keys and module.path.endswith(tensors.settings.saved)


def _kind(module: Module, tensors: AdapterTensors) -> Part | None:
    """How the adapter changes the module."""
    kinds = [k for k in _KINDS if k in module.keys and (k is not Part.WEIGHT or _saved(module, tensors))]
    if len(kinds) > 1:
        raise InvalidAdapter(
            f"{module.keys[kinds[0]]} and {module.keys[kinds[1]]} change one module by {_KINDS[kinds[0]]} and by "
            f"{_KINDS[kinds[1]]}; PEFT defines no result of both"
        )
    return kinds[0] if kinds else None


def _check_tokens(name: str, kind: Part | None, ids: tuple[int, ...], tensors: AdapterTensors) -> None:
    """Ids and rows go together; `ids` come from the config, rows from the file."""
    size = tensors.config.vocab_size
    if (kind is Part.TOKENS) != bool(ids):
        lacking = f"{WEIGHTS_FILE} has no rows for them" if ids else f"{CONFIG_FILE} does not name them"
        raise InvalidAdapter(f"trainable_token_indices: tokens of {name} are trained, and {lacking}; copy it again")
    for token in ids:
        if not 0 <= token < size:
            raise InvalidAdapter(
                f"{CONFIG_FILE}: trainable_token_indices names token {token} of {name}, and the base model's "
                f"vocabulary has {size} entries; serve the model with the added tokens as a base model"
            )


def _copies(
    modules: tuple[Module, ...], tensors: AdapterTensors, base: BaseWeights | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Copies of the base matrices that PEFT saved beside LoRA, where they differ from the base model's, by module.

    PEFT loads them into the base model, so that one of tied matrices becomes the other.
    """
    found: dict[str, Tensor] = {}
    warnings: list[str] = []
    for module in modules:
        part = Part.BASE_WEIGHT
        if Part.WEIGHT in module.keys and not _saved(module, tensors):
            part = Part.WEIGHT
        if part not in module.keys:
            continue
        key = module.keys[part]
        weights = needed(base, key)
        own = weights.embedding() if module.name == EMBEDDING else weights.lm_head()
        copy = tensors.read(key)
        if torch.equal(copy.to(own.dtype), own):
            continue
        found[module.name] = copy
        warnings.append(
            f"{key} differs from the base model's and is used in its place: the adapter was trained on another version "
            "of the base model, or this one is quantised"
        )
    if tensors.config.tie_word_embeddings:
        for module in modules:
            if found and module.name not in found and not _saved(module, tensors):
                found[module.name] = next(iter(found.values()))
    return found, tuple(warnings)


def _update(
    module: Module,
    kind: Part | None,
    ids: tuple[int, ...],
    copy: Tensor | None,
    tensors: AdapterTensors,
    base: BaseWeights | None,
) -> VocabularyUpdate | None:
    """The module's parts with DoRA's factor in all that the adapter brings; `scale` is left for the base matrix."""
    rows = tensors.optional(module, Part.TOKENS)
    full = tensors.optional(module, Part.WEIGHT) if kind is Part.WEIGHT else copy
    pair, scale, shift = tensors.pair(module), None, tensors.optional(module, Part.B_BIAS)
    if rows is None and full is None and pair is None:
        return None
    if pair is not None and shift is not None:
        shift = shift * tensors.settings.scale(module.path, pair.a.shape[0])
    if pair is not None and (magnitude := tensors.optional(module, Part.MAGNITUDE)) is not None:
        key = module.keys[Part.MAGNITUDE]
        if module.name == EMBEDDING:
            scale = column_factor(magnitude, full if full is not None else needed(base, key).embedding(), pair, key)
            pair = LoraPair(pair.a * scale, pair.b)
            full = full if full is None else full * scale
        else:
            scale = row_factor(magnitude, full if full is not None else needed(base, key).lm_head(), pair, key)
            pair = LoraPair(pair.a, pair.b * scale[:, None])
            full = full if full is None else full * scale[:, None]
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return VocabularyUpdate(
        full=full,
        scale=scale if full is None else None,
        pair=pair,
        tokens=tuple(ids[i] for i in order),
        rows=None if rows is None else rows[order],
        shift=shift,
    )
