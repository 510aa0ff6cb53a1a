"""A base model in one GGUF file, dequantised while it is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from lorafleet_runtime.model.config import DecoderConfig, RopeScaling
from lorafleet_runtime.model.errors import InvalidCheckpoint, UnsupportedModel
from lorafleet_runtime.model.gguf_file import GgufFile, open_gguf
from lorafleet_runtime.model.hf_config import check_shape, unsupported_architecture
from lorafleet_runtime.model.rope import inverse_frequencies
from lorafleet_runtime.model.weights import Keep, Wanted, all_names, check_complete, keep_all

# llama.cpp writes Mistral models as `llama`; the decoder runs both alike.
_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TENSOR = re.compile(r"(?:blk\.(?P<layer>\d+)\.)?(?P<stem>\w+)\.(?P<kind>weight|bias)")
_ROPE_FREQS = "rope_freqs.weight"
# Where a chat template ends turns with one of these, it ends an answer, even if eos is another token.
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")


def read_config(path: Path) -> DecoderConfig:
    """The file's config. Raises UnsupportedModel or InvalidCheckpoint naming the metadata key."""
    return _config(open_gguf(path))


def load_weights(
    path: Path, config: DecoderConfig, dtype: torch.dtype, progress: Callable[[float], None], keep: Keep = keep_all,
    wanted: Wanted = all_names,
) -> dict[str, Tensor]:  # fmt: skip
    """See `checkpoint.load_weights`."""
    file = open_gguf(path)
    stored = {_hf_name(name): tensor for name, tensor in file.tensors.items() if _is_needed(name)}
    check_complete(((name, tensor.name, tensor.shape) for name, tensor in stored.items()), config)
    permuted = {"self_attn.q_proj": config.num_heads, "self_attn.k_proj": config.num_kv_heads}
    if config.architecture not in ("llama", "mistral"):
        permuted = {}
    total = sum(tensor.size for tensor in stored.values())
    done = 0
    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if not wanted(name):
            continue
        values = file.read(tensor, dtype)
        module = name.split(".", 2)[-1].rpartition(".")[0]
        if module in permuted:
            values = _rotate_half_order(values, permuted[module])
        part = keep(name, values)
        weights[name] = part if part is values else part.clone()
        done += tensor.size
        progress(done / total)
    return weights


def _rotate_half_order(values: Tensor, heads: int) -> Tensor:
    """llama.cpp interleaves each head's rotary pairs (0, d/2, 1, d/2+1, ...); the decoder has them apart."""
    pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _is_needed(name: str) -> bool:
    return name != _ROPE_FREQS and not name.endswith((".attn_rot_embd.weight", ".rope_freqs.weight"))


def _hf_name(name: str) -> str:
    """`blk.3.attn_q.weight` → `layers.3.self_attn.q_proj.weight`; unknown names stay, to be refused later."""
    match = _TENSOR.fullmatch(name)
    if match is None or match["stem"] not in _NAMES:
        return name
    prefix = f"layers.{match['layer']}." if match["layer"] else ""
    return f"{prefix}{_NAMES[match['stem']]}.{match['kind']}"


def _config(file: GgufFile) -> DecoderConfig:
    architecture = _text(file.metadata, "general.architecture")
    if architecture not in _ARCHITECTURES:
        raise unsupported_architecture(architecture)
    fields = _Fields(file.metadata, architecture, file.path.name)
    _refuse(fields, file)
    hidden, heads = fields.size("embedding_length"), fields.size("attention.head_count")
    head_dim = fields.size("attention.key_length", hidden // heads)
    if (rotated := fields.size("rope.dimension_count", head_dim)) != head_dim:
        raise UnsupportedModel(
            f"rotating {rotated} of {head_dim} dimensions of a head is not supported yet; all must be rotated"
        )
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise InvalidCheckpoint(f"{file.path.name}: token_embd.weight is missing; copy the file again")
    config = DecoderConfig(
        architecture=cast(Literal["llama", "mistral", "qwen2", "qwen3"], architecture),
        vocab_size=embedding.shape[0],
        hidden_size=hidden,
        intermediate_size=fields.size("feed_forward_length"),
        num_layers=fields.size("block_count"),
        num_heads=heads,
        num_kv_heads=fields.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        rms_norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        rope_theta=fields.number("rope.freq_base", 10000.0),
        max_position_embeddings=fields.size("context_length"),
        rope_scaling=_linear_scaling(fields),
        tie_word_embeddings="output.weight" not in file.tensors,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
        attention_output_bias="blk.0.attn_output.bias" in file.tensors,
        mlp_bias="blk.0.ffn_down.bias" in file.tensors,
        qk_norm="blk.0.attn_q_norm.weight" in file.tensors,
        eos_token_ids=_end_tokens(file.metadata),
        bos_token_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
    )
    if _ROPE_FREQS in file.tensors:
        config = _with_llama3_scaling(config, file, fields)
    return check_shape(config)


@dataclasses.dataclass(frozen=True, slots=True)
class _Fields:
    """Metadata under the architecture's prefix."""

    metadata: Mapping[str, Any]
    architecture: str
    file: str

    def number(self, key: str, default: float | None = None) -> float:
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            raise UnsupportedModel(
                f"{self.architecture}.{key} differs by layer, which is not supported yet; use a uniform model"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise InvalidCheckpoint(f"{self.file}: {self.architecture}.{key} must be a number above 0, got {value!r}")
        return float(value)

    def size(self, key: str, default: int | None = None) -> int:
        return int(self.number(key, default))

    def has(self, key: str) -> bool:
        return bool(self.metadata.get(f"{self.architecture}.{key}"))


def _refuse(fields: _Fields, file: GgufFile) -> None:
    if fields.has("expert_count"):
        raise UnsupportedModel(
            f"mixture of experts ({fields.architecture}.expert_count) is not supported yet; use a dense model"
        )
    if int(file.metadata.get("split.count", 1)) > 1:
        raise UnsupportedModel(
            f"{file.path.name} is one part of a split model; join the parts (llama-gguf-split --merge)"
        )
    if fields.has("attention.sliding_window") and fields.size("attention.sliding_window") < fields.size(
        "context_length"
    ):
        raise UnsupportedModel(
            f"sliding-window attention ({fields.architecture}.attention.sliding_window) is not supported "
            "yet; use a model with full attention"
        )


def _linear_scaling(fields: _Fields) -> RopeScaling | None:
    kind = _text(fields.metadata, f"{fields.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    if kind == "linear":
        return RopeScaling("linear", fields.number("rope.scaling.factor"))
    raise UnsupportedModel(f"rope scaling {kind!r} is not supported yet; supported are none, linear and Llama 3's")


def _with_llama3_scaling(config: DecoderConfig, file: GgufFile, fields: _Fields) -> DecoderConfig:
    """GGUF stores Llama 3's scaling as its outcome only, a divisor per frequency; find what gives it.

    All published Llama 3.1 to 3.3 models have low 1, high 4 and 8192 original positions; what these do not
    reproduce is refused, as a wrong rotation would answer fluently and wrongly.
    """
    divisors = file.read(file.tensors[_ROPE_FREQS], torch.float32)
    scaling = RopeScaling(
        "llama3",
        factor=float(divisors.max()),
        original_max_position_embeddings=fields.size("rope.scaling.original_context_length", 8192),
    )
    scaled = dataclasses.replace(config, rope_scaling=scaling)
    plain = dataclasses.replace(config, rope_scaling=None)
    if (
        divisors.shape != (config.head_dim // 2,)
        or config.rope_scaling is not None
        or not torch.allclose(inverse_frequencies(plain) / divisors, inverse_frequencies(scaled), rtol=1e-4, atol=0.0)
    ):
        raise UnsupportedModel(
            f"{_ROPE_FREQS} is not a Llama 3 rope scaling with low_freq_factor 1 and high_freq_factor 4, "
            "and others are not supported yet; use the safetensors checkpoint"
        )
    return scaled


def _end_tokens(metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """The file's eos and eot tokens, then the one that ends turns in its chat template."""
    ids = [metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
    template = _text(metadata, "tokenizer.chat_template", "")
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    for name in _TURN_ENDS:
        if name in template and name.encode() in tokens:
            ids.append(tokens.index(name.encode()))
    return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))


def _text(metadata: Mapping[str, Any], key: str, default: str = "") -> str:
    value = metadata.get(key)
    return value.decode(errors="replace") if isinstance(value, bytes) else default
