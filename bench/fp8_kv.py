"""What keys and values of 8 bits cost in accuracy: SmolLM2-135M reading this repository's own prose, in plain torch.

`python -m bench.fp8_kv [--quick]`: for ways to store them, how far attention's outputs are from float64 over the same
queries, keys and values (root mean squares over all layers, and in the worst of them), and what a model that reads them
back says: loss of the text, and how far its distributions are from those of the model in float32. `--quick` reads a
fifth of the text and writes nothing.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.in_process import model_path
from bench.record import Result, write
from lorafleet_kernels import reference as ops
from lorafleet_kernels.batch import HeadSizes
from lorafleet_kernels.reference_fp8 import FP8, LARGEST, quantise
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.load import load_rank
from lorafleet_runtime.frontend.tokenizer import load_tokenizer
from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.parallel import Shard

TOKENS = 1500
Way = Callable[[Tensor], Tensor]
"""`[T, kv_heads, D]` as it is read back."""


def as_stored(x: Tensor) -> Tensor:
    elements, scales = quantise(x)
    pairs = elements.float().view(*x.shape[:-1], -1, 2) * scales.float()[..., None, None]
    return torch.cat((pairs[..., 0], pairs[..., 1]), -1)


def without_scale(x: Tensor) -> Tensor:
    return x.clamp(-LARGEST, LARGEST).to(FP8).float()


def one_scale(x: Tensor) -> Tensor:
    """For the tensor, from its own largest element, which a server cannot know beforehand."""
    scale = x.abs().max() / LARGEST
    return (x / scale).to(FP8).float() * scale


def fraction_scale(x: Tensor) -> Tensor:
    """For each token and head, in float32, as vLLM's fp8_per_token_head."""
    scale = x.abs().amax(-1, keepdim=True) / LARGEST
    return (x / scale).to(FP8).float() * scale


def of_integers(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale


WAYS: dict[str, Way] = {
    "bfloat16": lambda x: x.bfloat16().float(),
    "fp8, the best of four scales a token and head (ours)": as_stored,
    "fp8, a scale a token and head": fraction_scale,
    "fp8, scale 1.0": without_scale,
    "fp8, one scale a tensor, from itself": one_scale,
    "int8, a scale a token and head": of_integers,
}


class Reading:
    """Callable as `operations.Attention`, of one prompt; keeps how far each way's outputs are from float64's."""

    def __init__(self, sizes: HeadSizes, tables: tuple[Tensor, Tensor], tokens: int, way: Way | None) -> None:
        """`way`: what the model reads, everything in full where there is none."""
        self._sizes = sizes
        self._tables = (tables[0][:tokens], tables[1][:tokens])
        self._way = way
        self.errors: dict[str, list[float]] = {name: [] for name in WAYS}

    def __call__(self, layer: int, qkv: Tensor, q_norm: Tensor | None, k_norm: Tensor | None) -> Tensor:
        q, k, v = ops.rotated_heads(qkv, self._sizes, *self._tables, q_norm, k_norm)
        if self._way is not None:
            return _attend(q, self._way(k), self._way(v)).flatten(1)
        exact = _attend(q.double(), k.double(), v.double())
        for name, way in WAYS.items():
            out = _attend(q.double(), way(k).double(), way(v).double())
            self.errors[name].append(float((out - exact).norm() / exact.norm()))
        return exact.float().flatten(1)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`[T, heads, D]`, causal."""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).squeeze(0).transpose(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fifth of the text, nothing written")
    quick = parser.parse_args().quick
    os.environ["LORAFLEET_KERNELS"] = "reference"
    torch.set_grad_enabled(False)
    folder = Path(__file__).parents[1]
    text = "\n".join((folder / name).read_text() for name in ("README.md", "docs/engine.md", "docs/fairness.md"))
    whole = load_tokenizer(str(model_path())).encode(text, add_special_tokens=False)
    tokens = torch.tensor(whole[: TOKENS // 5 if quick else TOKENS])
    config = EngineConfig(str(model_path()), "smollm2", dtype="float32", device="cpu", max_model_len=TOKENS)
    model = load_rank(config, read_config(Path(config.model)), Shard(0, 1), lambda fraction: None)
    full = Reading(model.heads, model.rope, len(tokens), None)
    expected = _says(model, tokens, full)
    results = []
    for name, way in WAYS.items():
        said = _says(model, tokens, Reading(model.heads, model.rope, len(tokens), way))
        apart = F.kl_div(said, expected, log_target=True, reduction="none").sum(-1).mean()
        same = (said.argmax(-1) == expected.argmax(-1)).float().mean()
        errors = torch.tensor(full.errors[name])
        case = f"SmolLM2-135M, {len(tokens)} tokens: {name}"
        results += [
            Result("fp8_kv", case, "attention's error, all layers", float(errors.pow(2).mean().sqrt()), ""),
            Result("fp8_kv", case, "attention's error, worst layer", float(errors.max()), ""),
            Result("fp8_kv", case, "loss more than in float32", _loss(said, tokens) - _loss(expected, tokens), "nats"),
            Result("fp8_kv", case, "divergence from float32", float(apart), "nats"),
            Result("fp8_kv", case, "best tokens that are float32's", float(same), ""),
        ]
    write(results, quick=quick)


def _says(model: Decoder, tokens: Tensor, reading: Reading) -> Tensor:
    """Logarithms of probabilities `[T, V]`."""
    return F.log_softmax(model.logits(model.forward(tokens, reading, None)), -1)


def _loss(said: Tensor, tokens: Tensor) -> float:
    return float(F.nll_loss(said[:-1], tokens[1:]))


if __name__ == "__main__":
    main()
