"""The decoder of the Llama and Qwen families over paged KV, with LoRA at every linear layer.

Written as a function of a flat batch: it knows tokens, positions and where KV goes; not requests, ranks or adapters'
names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_kernels import reference as ops
from lorafleet_runtime.model.collectives import Collectives
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.linear import Linear
from lorafleet_runtime.model.parallel import rank_config
from lorafleet_runtime.model.rope import tables


class Attention(Protocol):
    """Writes the step's K and V of one layer and attends over all that came before."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`q [T, heads, D]`, `k, v [T, kv_heads, D]` → `[T, heads, D]`."""
        ...


class Extras(Protocol):
    """What the step's adapters change beside the outputs of linear layers; everything in place, on their rows only."""

    def embed(self, tokens: Tensor, x: Tensor) -> None:
        """`tokens [T]`, their embeddings `x [T, H]`."""
        ...

    def norm(self, layer: int, name: str, x: Tensor, y: Tensor) -> None:
        """`y` is what the layer's norm `name` (input, post, q, k) made of `x`, both `[T, ...]`."""
        ...

    def final_norm(self, x: Tensor, y: Tensor) -> None:
        """`y` is what the last norm made of `x`, of the rows that sample."""
        ...

    def logits(self, h: Tensor, y: Tensor) -> None:
        """`y [n, vocabulary]` is what lm_head made of the normed rows `h [n, H]`."""
        ...


LoraHook = Callable[[int, str, Tensor, Tensor], None]
"""(layer, group, x [T, K], y [T, O]) adds the adapters' deltas to y in place."""


@dataclass(slots=True)
class Layer:
    input_norm: Tensor
    qkv: Linear
    q_norm: Tensor | None
    k_norm: Tensor | None
    o: Linear
    post_norm: Tensor
    gate_up: Linear
    down: Linear


class Decoder:
    """Weights in fused form. `weights` is emptied while it is read, so that no tensor is held twice.

    One of several `ranks` has its part of the weights of `whole` (`model.parallel`); `config` is then what it runs, and
    `collectives` reach the others, which must be set before the first step.
    """

    def __init__(self, whole: DecoderConfig, weights: dict[str, Tensor], max_model_len: int, ranks: int = 1) -> None:
        self.whole = whole
        self.config = config = rank_config(whole, ranks)
        self.collectives: Collectives | None = None
        self.embedding = weights.pop("embed_tokens.weight")
        self.dtype = self.embedding.dtype
        self.layers = [_layer(weights, i) for i in range(config.num_layers)]
        self.norm = weights.pop("norm.weight")
        self.lm_head = Linear(weights.pop("lm_head.weight", self.embedding))
        self._cos, self._sin = (t.to(self.dtype) for t in tables(config, max_model_len))

    def linears(self) -> Iterator[Linear]:
        for layer in self.layers:
            yield from (layer.qkv, layer.o, layer.gate_up, layer.down)
        yield self.lm_head

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attention, lora: LoraHook | None, extras: Extras | None = None
    ) -> Tensor:
        """`tokens, positions [T]` int64 → hidden states `[T, H]` before the final norm."""
        eps = self.config.rms_norm_eps
        x = F.embedding(tokens, self.embedding)
        if extras is not None:
            extras.embed(tokens, x)
        cos, sin = self._cos[positions], self._sin[positions]
        for index, layer in enumerate(self.layers):
            h = ops.rms_norm(x, layer.input_norm, eps)
            if extras is not None:
                extras.norm(index, "input", x, h)
            qkv = layer.qkv(h)
            if lora is not None:
                lora(index, "qkv", h, qkv)
            attended = attend(index, *self._heads(index, qkv, cos, sin, extras)).reshape(h.shape[0], -1)
            o = layer.o(attended)
            if lora is not None:
                lora(index, "o", attended, o)
            x = x + self._summed(o)
            h = ops.rms_norm(x, layer.post_norm, eps)
            if extras is not None:
                extras.norm(index, "post", x, h)
            gate_up = layer.gate_up(h)
            if lora is not None:
                lora(index, "gate_up", h, gate_up)
            h = ops.silu_and_mul(gate_up)
            down = layer.down(h)
            if lora is not None:
                lora(index, "down", h, down)
            x = x + self._summed(down)
        return x

    def logits(self, hidden: Tensor, extras: Extras | None = None) -> Tensor:
        """`hidden [n, H]` of the sampling rows → `[n, vocabulary]` float32; on the first rank only, if there are
        several."""
        h = ops.rms_norm(hidden, self.norm, self.config.rms_norm_eps)
        if extras is not None:
            extras.final_norm(hidden, h)
        logits = self.lm_head(h)
        if self.collectives is not None:
            logits = self.collectives.gather_columns(logits, self.config.vocab_size)
            if self.collectives.rank:
                return logits
        if extras is not None:
            extras.logits(h, logits)
        return logits.float()

    def _summed(self, part: Tensor) -> Tensor:
        """What all ranks' row layers give together; a rank has its part of the inputs."""
        return part if self.collectives is None else self.collectives.all_reduce(part)

    def _heads(
        self, index: int, qkv: Tensor, cos: Tensor, sin: Tensor, extras: Extras | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        config, layer = self.config, self.layers[index]
        heads = qkv.view(qkv.shape[0], -1, config.head_dim)
        rotated = heads[:, : config.num_heads + config.num_kv_heads]
        if layer.q_norm is not None and layer.k_norm is not None:
            raw_q, raw_k = rotated[:, : config.num_heads], rotated[:, config.num_heads :]
            q = ops.rms_norm(raw_q, layer.q_norm, config.rms_norm_eps)
            k = ops.rms_norm(raw_k, layer.k_norm, config.rms_norm_eps)
            if extras is not None:
                extras.norm(index, "q", raw_q, q)
                extras.norm(index, "k", raw_k, k)
            rotated = torch.cat((q, k), dim=1)
        rotated = ops.apply_rope(rotated, cos, sin)
        values = heads[:, config.num_heads + config.num_kv_heads :]
        return rotated[:, : config.num_heads], rotated[:, config.num_heads :], values


def _layer(weights: dict[str, Tensor], index: int) -> Layer:
    prefix = f"layers.{index}."

    def take(name: str) -> Tensor:
        return weights.pop(prefix + name)

    return Layer(
        input_norm=take("input_layernorm.weight"),
        qkv=_fuse(weights, prefix, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        q_norm=weights.pop(prefix + "self_attn.q_norm.weight", None),
        k_norm=weights.pop(prefix + "self_attn.k_norm.weight", None),
        o=_fuse(weights, prefix, ("self_attn.o_proj",)),
        post_norm=take("post_attention_layernorm.weight"),
        gate_up=_fuse(weights, prefix, ("mlp.gate_proj", "mlp.up_proj")),
        down=_fuse(weights, prefix, ("mlp.down_proj",)),
    )


def _fuse(weights: dict[str, Tensor], prefix: str, names: tuple[str, ...]) -> Linear:
    """One product where the projections share their input."""
    parts = [weights.pop(f"{prefix}{name}.weight") for name in names]
    biases = [weights.pop(f"{prefix}{name}.bias", None) for name in names]
    present = [b for b in biases if b is not None]
    bias = None
    if present:
        bias = torch.cat(
            [b if b is not None else torch.zeros(p.shape[0], dtype=p.dtype) for b, p in zip(biases, parts, strict=True)]
        )
    return Linear(torch.cat(parts) if len(parts) > 1 else parts[0], bias)
