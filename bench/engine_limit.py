"""What this machine cannot beat: the time of the base model's bare matrix products for the same work.

bfloat16, weights in oneDNN's blocked layout or plain, whichever is faster at that many rows; fused as the engine fuses
them; a product's weights come from memory, since all layers' are read in turn. No attention, norms, adapters, sampling.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.linear import Form, multiply, prepack

REPEATS = 7


@dataclass(frozen=True, slots=True)
class Work:
    """Requests that are alike, all known at the start, `concurrency` of them in a batch."""

    requests: int
    concurrency: int
    prompt: int
    output: int
    chunk: int  # prompt tokens that the engine takes in one step


class BareProducts:
    """Random weights of the model's shapes: (out, in) of each product of a layer, and the output matrix's."""

    def __init__(self, config: DecoderConfig) -> None:
        width, qkv = config.hidden_size, config.q_dim + 2 * config.kv_dim
        inner = config.intermediate_size
        shapes = [(qkv, width), (width, config.q_dim), (2 * inner, width), (width, inner)] * config.num_layers
        self._layers = [_weights(*shape) for shape in shapes]
        self._head = [_weights(config.vocab_size, width)]

    @torch.inference_mode()
    def seconds(self, work: Work, threads: int) -> float:
        """All prompts in chunks, then every step of all outputs: the first token comes from the prompt's last chunk."""
        torch.set_num_threads(threads)
        rows = min(work.concurrency, work.requests)
        chunk = min(work.chunk, work.prompt * rows)
        steps = work.requests * work.output / rows
        prefill = work.requests * work.prompt / chunk * _fastest(self._layers, chunk)
        layers = (steps - work.requests / rows) * _fastest(self._layers, rows)
        total = prefill + layers + steps * _fastest(self._head, rows)
        torch.set_num_threads(1)
        return total


def _weights(out: int, width: int) -> dict[Form, Tensor]:
    plain = torch.randn(out, width, dtype=torch.bfloat16)
    return {Form.PLAIN: plain, Form.PACKED: prepack(plain, 32)}


def _fastest(products: list[dict[Form, Tensor]], rows: int) -> float:
    """Median seconds to multiply `rows` rows by each of `products` once, in the better form."""
    inputs = {w[Form.PLAIN].shape[1]: torch.randn(rows, w[Form.PLAIN].shape[1], dtype=torch.bfloat16) for w in products}
    times: dict[Form, list[float]] = {Form.PLAIN: [], Form.PACKED: []}
    for _ in range(REPEATS if rows <= 64 else 3):
        for form, taken in times.items():
            begun = time.perf_counter()
            for weights in products:
                multiply(form, inputs[weights[Form.PLAIN].shape[1]], weights[form], None)
            taken.append(time.perf_counter() - begun)
    return min(statistics.median(taken) for taken in times.values())
