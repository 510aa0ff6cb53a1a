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

from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.dispatch import operations
from lorafleet_kernels.native_forward import LayerWeights
from lorafleet_kernels.operations import WholeLayers
from lorafleet_runtime.model.collectives import Collectives
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.linear import Linear
from lorafleet_runtime.model.on_demand import zeros_on_demand
from lorafleet_runtime.model.parallel import rank_config
from lorafleet_runtime.model.rope import tables
from lorafleet_runtime.model.threads import threads


class Attention(Protocol):
    """Rotates the step's q and k of one layer, writes K and V, and attends over all that came before."""

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        """`qkv [T, (heads + 2 · kv_heads) · D]`, which may be overwritten → `[T, heads · D]`."""
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
        cos, sin = (t.to(self.embedding.device, self.dtype) for t in tables(config, max_model_len))
        self.rope = (cos, sin)
        self.heads = HeadSizes(config.num_heads, config.num_kv_heads, config.head_dim, config.rms_norm_eps)
        self.ops = operations(self.dtype, self.embedding.device, threads)
        self._whole_layers: WholeLayers | None = None

    def linears(self) -> Iterator[Linear]:
        for layer in self.layers:
            yield from (layer.qkv, layer.o, layer.gate_up, layer.down)
        yield self.lm_head

    def join_layers(self) -> None:
        """Run layers as one operation from now on, where that can be: once every product has its form for good."""
        turned = [_turned(layer) for layer in self.layers]
        layers = [layer for layer in turned if layer is not None]
        if len(layers) == len(self.layers):
            inner = self.config.intermediate_size
            self._whole_layers = self.ops.layers(layers, self.heads, inner, zeros_on_demand)
        else:
            self._whole_layers = self.ops.fused_layers(self.layers, self.config.rms_norm_eps)

    @property
    def joined(self) -> bool:
        """Whether layers run as one operation, where a step has nothing that comes between two of them."""
        return self._whole_layers is not None

    def forward(self, tokens: Tensor, attend: Attention, lora: LoraHook | None, extras: Extras | None = None) -> Tensor:
        """`tokens [T]` int64 → hidden states `[T, H]` before the final norm."""
        ops, eps = self.ops, self.config.rms_norm_eps
        x = F.embedding(tokens, self.embedding)
        if extras is not None:
            extras.embed(tokens, x)
        elif (
            self._whole_layers is not None
            and self.collectives is None  # set after the layers were joined: then sums come between operations
            and self._whole_layers.takes(attend, lora)
        ):
            return self._whole_layers(x, attend, lora)
        h = ops.rms_norm(x, self.layers[0].input_norm, eps)
        for index, layer in enumerate(self.layers):
            if extras is not None:
                extras.norm(index, "input", x, h)
            qkv = layer.qkv(h)
            if lora is not None:
                lora(index, "qkv", h, qkv)
            attended = attend(index, qkv, *self._head_norms(index, qkv, extras))
            o = layer.o(attended)
            if lora is not None:
                lora(index, "o", attended, o)
            h = ops.add_rms_norm(x, self._summed(o), layer.post_norm, eps)
            if extras is not None:
                extras.norm(index, "post", x, h)
            gate_up = layer.gate_up(h)
            if lora is not None:
                lora(index, "gate_up", h, gate_up)
            h = ops.silu_and_mul(gate_up)
            down = layer.down(h)
            if lora is not None:
                lora(index, "down", h, down)
            if index + 1 < len(self.layers):
                h = ops.add_rms_norm(x, self._summed(down), self.layers[index + 1].input_norm, eps)
            else:
                x += self._summed(down)
        return x

    def logits(self, hidden: Tensor, extras: Extras | None = None) -> Tensor:
        """`hidden [n, H]` of the sampling rows → `[n, vocabulary]`; on the first rank only, if there are several."""
        h = self.ops.rms_norm(hidden, self.norm, self.config.rms_norm_eps)
        if extras is not None:
            extras.final_norm(hidden, h)
        logits = self.lm_head(h)
        if self.collectives is not None:
            logits = self.collectives.gather_columns(logits, self.config.vocab_size)
            if self.collectives.rank:
                return logits
        if extras is not None:
            extras.logits(h, logits)
        return logits

    def _summed(self, part: Tensor) -> Tensor:
        """What all ranks' row layers give together; a rank has its part of the inputs."""
        return part if self.collectives is None else self.collectives.all_reduce(part)

    def _head_norms(self, index: int, qkv: Tensor, extras: Extras | None) -> tuple[Tensor | None, Tensor | None]:
        """The weights of the norms of q and k that are still to be applied. Adapters may have their own: then all rows
        are normalised here, in place."""
        q_norm, k_norm = self.layers[index].q_norm, self.layers[index].k_norm
        if extras is None or q_norm is None or k_norm is None:
            return q_norm, k_norm
        heads = qkv.view(qkv.shape[0], -1, self.heads.size)
        q, k = heads[:, : self.heads.heads], heads[:, self.heads.heads : self.heads.heads + self.heads.kv_heads]
        for name, part, weight in (("q", q, q_norm), ("k", k, k_norm)):
            raw = part.contiguous()
            normed = self.ops.rms_norm(raw, weight, self.heads.eps)
            extras.norm(index, name, raw, normed)
            part.copy_(normed)
        return None, None


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


def _turned(layer: Layer) -> LayerWeights | None:
    """None unless all its products are on matrix tiles."""
    qkv, o, gate_up, down = (linear.turned for linear in (layer.qkv, layer.o, layer.gate_up, layer.down))
    if qkv is None or o is None or gate_up is None or down is None:
        return None
    return LayerWeights(layer.input_norm, qkv, layer.q_norm, layer.k_norm, o, layer.post_norm, gate_up, down)


def _fuse(weights: dict[str, Tensor], prefix: str, names: tuple[str, ...]) -> Linear:
    """One product where the projections share their input."""
    parts = [weights.pop(f"{prefix}{name}.weight") for name in names]
    biases = [weights.pop(f"{prefix}{name}.bias", None) for name in names]
    present = [b for b in biases if b is not None]
    bias = None
    if present:
        bias = torch.cat(
            [b if b is not None else torch.zeros_like(p[:, 0]) for b, p in zip(biases, parts, strict=True)]
        )
    return Linear(torch.cat(parts) if len(parts) > 1 else parts[0], bias)
