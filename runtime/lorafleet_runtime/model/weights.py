"""The decoder's tensors: their names and shapes, whatever file they come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidCheckpoint

Keep = Callable[[str, Tensor], Tensor]
"""What a reader keeps of a tensor, by name: all of it, or a view of a part."""


def keep_all(name: str, tensor: Tensor) -> Tensor:
    """The tensor as it is."""
    return tensor


Wanted = Callable[[str], bool]
"""Which tensors a reader reads at all, by name."""


def all_names(name: str) -> bool:
    """Every tensor."""
    return True


BLOCKS = {target: "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn" for target in LORA_TARGETS}


def has_bias(config: DecoderConfig, target: str) -> bool:
    """Whether one of `LORA_TARGETS` has a bias in this model."""
    if BLOCKS[target] == "mlp":
        return config.mlp_bias
    return config.attention_output_bias if target == "o_proj" else config.attention_bias


def expected_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that the decoder needs, by Hugging Face name without `model.`, with its shape."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_layers):
        prefix = f"layers.{layer}"
        shapes[f"{prefix}.input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        for target, block in BLOCKS.items():
            out, width = config.linear_shape(target)
            shapes[f"{prefix}.{block}.{target}.weight"] = (out, width)
            if has_bias(config, target):
                shapes[f"{prefix}.{block}.{target}.bias"] = (out,)
        if config.qk_norm:
            shapes[f"{prefix}.self_attn.q_norm.weight"] = (config.head_dim,)
            shapes[f"{prefix}.self_attn.k_norm.weight"] = (config.head_dim,)
    shapes["norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def check_complete(found: Iterable[tuple[str, str, tuple[int, ...]]], config: DecoderConfig) -> None:
    """Compare a checkpoint's tensors, as (name, name in the file, shape), with what the decoder needs.

    Raises InvalidCheckpoint naming the first that is missing, unknown, doubled or of another shape.
    """
    missing = expected_shapes(config)
    seen: set[str] = set()
    for name, stored_name, shape in found:
        if name in seen:
            raise InvalidCheckpoint(f"tensor {stored_name} occurs twice; the checkpoint's files do not belong together")
        if name not in missing:
            raise InvalidCheckpoint(
                f"tensor {stored_name} is not part of this {config.architecture} decoder; "
                "config and weights belong to different models"
            )
        wanted = missing.pop(name)
        if shape != wanted:
            raise InvalidCheckpoint(
                f"tensor {stored_name} has shape {list(shape)}, and the config asks for {list(wanted)}; "
                "config and weights belong to different models"
            )
        seen.add(name)
    if missing:
        raise InvalidCheckpoint(
            f"tensor {next(iter(missing))} is missing ({len(missing)} in all); copy the checkpoint again"
        )
