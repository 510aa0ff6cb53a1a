"""What PEFT's `adapter_config.json` says about an adapter: its scales, and whether it can be served at all.

Knows no tensors. Ranks are not read from here: tensor shapes say them, as configs edited by hand disagree.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import regex

from lorafleet_runtime.model.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"

# Fields that change what the weights mean, what the field stands for, and why it is not served or what to do instead.
_REFUSED: tuple[tuple[str, str, str], ...] = (
    ("target_parameters", "LoRA on bare parameters", "the supported models have none: use target_modules"),
    ("layer_replication", "layer replication", "it makes another base model: serve that one, merged, as a base model"),
    ("use_qalora", "QA-LoRA", "its A works on pooled inputs: train with use_qalora=false"),
    ("alora_invocation_tokens", "activated LoRA", "it changes weights in the middle of a request: train a plain LoRA"),
    ("use_bdlora", "block-diagonal LoRA", "its matrices are blocks of their own: train a plain LoRA"),
    ("arrow_config", "Arrow routing", "it mixes adapters token by token: serve the routed adapters one by one"),
    ("kasa_config", "KaSA", "it changes the base weights by an SVD: train a plain LoRA"),
    ("monteclora_config", "Monte Carlo LoRA", "it samples its weights: train a plain LoRA"),
)  # fmt: skip
_BIASES = ("none", "all", "lora_only")

# Initialisations that subtract their start from the base model's weights. PEFT writes `true` in their place
# once such an adapter has been converted into a plain one, so the name alone tells an unconverted one.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_MATCH_SECONDS = 1.0  # of wall time, without the interpreter's lock: a step never waits for a pattern


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """The part of the config that serving needs; `alpha_pattern` keeps its order, as the first match wins.

    `saved` are the endings of names of modules that the adapter replaces (modules_to_save); `tokens`, by the module's
    own name, the vocabulary rows that it replaces; `tied`: what it does to the embedding, it does to lm_head as well,
    if the base model's are one matrix (ensure_weight_tying).
    """

    alpha: float
    rslora: bool
    alpha_pattern: Mapping[str, float]
    base_model: str
    warnings: tuple[str, ...]
    dora: bool = False
    lora_bias: bool = False
    saved: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tied: bool = False

    def scale(self, module: str, rank: int) -> float:
        """PEFT's scale of one module (`model.layers.0.self_attn.q_proj`): α/r, or α/√r with rsLoRA."""
        alpha = self.alpha
        for pattern, value in self.alpha_pattern.items():
            if _matches(pattern, module):
                alpha = value
                break
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Parse and check `adapter_config.json`. Raises InvalidAdapter naming the field that cannot be served."""
    raw = _read_json(folder / CONFIG_FILE)
    if raw.get("peft_type") != "LORA":
        raise InvalidAdapter(
            f"{CONFIG_FILE}: peft_type {raw.get('peft_type')!r} is not supported; only LORA adapters are"
        )
    for name, what, advice in _REFUSED:
        if raw.get(name):
            raise InvalidAdapter(f"{CONFIG_FILE}: {what} ({name}) is not supported; {advice}")
    if raw.get("bias") not in (None, *_BIASES):
        raise InvalidAdapter(f"{CONFIG_FILE}: bias must be one of {', '.join(_BIASES)}, got {raw['bias']!r}")
    if raw.get("use_dora") and raw.get("lora_bias"):
        raise InvalidAdapter(
            f"{CONFIG_FILE}: use_dora and lora_bias are both set, and PEFT defines no result of both; train with one"
        )
    return AdapterConfig(
        alpha=_number(raw, "lora_alpha", 8.0),
        rslora=bool(raw.get("use_rslora")),
        alpha_pattern=_pattern(raw, "alpha_pattern"),
        base_model=str(raw.get("base_model_name_or_path") or ""),
        warnings=_warnings(raw),
        dora=bool(raw.get("use_dora")),
        lora_bias=bool(raw.get("lora_bias")),
        saved=_names(raw, "modules_to_save"),
        tokens=_tokens(raw.get("trainable_token_indices")),
        tied=bool(raw.get("ensure_weight_tying")),
    )


@functools.lru_cache(maxsize=4096)  # PEFT may write a pattern a module, and every module tries every pattern
def _compile(pattern: str) -> Any:
    return regex.compile(rf"(.*\.)?({pattern})$")


def _matches(pattern: str, module: str) -> bool:
    """PEFT's rule. Patterns come from tenants, and the standard library's `re` has no limit of time."""
    try:
        return _compile(pattern).match(module, timeout=_MATCH_SECONDS, concurrent=True) is not None
    except TimeoutError:
        raise InvalidAdapter(
            f"{CONFIG_FILE}: matching the pattern {pattern!r} takes too long; write it plainly"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidAdapter(
            f"{path.name} is missing; an adapter is a folder that PEFT's save_pretrained wrote"
        ) from None
    except (OSError, ValueError) as error:
        raise InvalidAdapter(f"{path.name} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise InvalidAdapter(f"{path.name} must hold a JSON object, got {type(raw).__name__}")
    return raw


def _number(raw: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = raw.get(name)
    if value is None and default is not None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidAdapter(f"{CONFIG_FILE}: {name} must be a finite number, got {value!r}")
    return float(value)


def _pattern(raw: Mapping[str, Any], name: str) -> dict[str, float]:
    patterns = raw.get(name) or {}
    if not isinstance(patterns, dict):
        raise InvalidAdapter(f"{CONFIG_FILE}: {name} must be an object of module pattern to number, got {patterns!r}")
    for pattern in patterns:
        try:
            _compile(pattern)
        except regex.error as error:
            raise InvalidAdapter(
                f"{CONFIG_FILE}: {name} key {pattern!r} is not a regular expression: {error}"
            ) from None
    return {pattern: _number(patterns, pattern) for pattern in patterns}


def _names(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    names = raw.get(name) or []
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise InvalidAdapter(f"{CONFIG_FILE}: {name} must be a list of module names, got {names!r}")
    return tuple(names)


def _tokens(value: Any) -> dict[str, tuple[int, ...]]:
    """Token ids by module: a list is the embedding's."""
    by_module = value if isinstance(value, dict) else {"embed_tokens": value} if value else {}
    found: dict[str, tuple[int, ...]] = {}
    for module, ids in by_module.items():
        name = str(module).rpartition(".")[2]
        if name not in ("embed_tokens", "lm_head"):
            raise InvalidAdapter(
                f"{CONFIG_FILE}: trainable_token_indices names tokens of {name}; only embed_tokens and lm_head have any"
            )
        if not isinstance(ids, list) or any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
            raise InvalidAdapter(f"{CONFIG_FILE}: trainable_token_indices must be token ids, got {ids!r} for {name}")
        if len(set(ids)) < len(ids) or name in found:
            raise InvalidAdapter(f"{CONFIG_FILE}: trainable_token_indices names a token of {name} twice; keep one")
        found[name] = tuple(ids)
    return found


def _warnings(raw: Mapping[str, Any]) -> tuple[str, ...]:
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        return (
            f"init_lora_weights is {init!r}: the adapter assumes a base model changed by its initialisation; "
            "on the plain base model it answers wrongly unless it was converted (PEFT: save_pretrained with "
            "path_initial_model_for_weight_conversion)",
        )
    return ()
