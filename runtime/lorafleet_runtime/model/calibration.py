"""What this machine multiplies fastest, measured at start and never assumed: dtype and form of each product.

bfloat16 is several times faster than float32 on processors with bfloat16 products, and slower on others.
"""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor

from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.linear import Form, fastest_form, forms
from lorafleet_runtime.model.on_demand import Block
from lorafleet_runtime.model.threads import set_threads, threads

PROBE_SHAPE = (16, 1024, 1024)
"""Rows, K and N of the probe: a decode step of a small model."""
PROBES = 20


def best_dtype() -> torch.dtype:
    """bfloat16 where its products are at least a fifth faster than float32's, else float32. Never float16 on a CPU.

    The quickest of several products each, in turn: whatever else the machine does only makes one slower."""
    rows, k, n = PROBE_SHAPE
    fastest: dict[torch.dtype, float] = {}
    for _ in range(PROBES):
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.ones(rows, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
            begun = time.perf_counter()
            F.linear(x, weight)
            fastest[dtype] = min(time.perf_counter() - begun, fastest.get(dtype, float("inf")))
    return torch.bfloat16 if fastest[torch.bfloat16] < 0.8 * fastest[torch.float32] else torch.float32


def choose_forms(model: Decoder) -> None:
    """Give every product the form that measured fastest for its shape, one measurement per shape.

    Measured on one thread: beside a busy core, two threads wait for each other longer than any form takes, and the
    choice would be chance. The tied output matrix stays as it lies: another layout would keep the vocabulary twice.
    """
    if model.embedding.device.type != "cpu":  # there is one form, the vendor's
        model.join_layers()
        return
    before = threads()
    set_threads(1)
    chosen: dict[tuple[tuple[int, ...], bool], Form] = {}
    step_bytes = sum(linear.weight.nbytes for linear in model.linears())
    for linear in model.linears():
        tied = linear is model.lm_head and model.config.tie_word_embeddings
        kind = linear.shape, tied  # another product of the same shape may be laid out anew
        if kind not in chosen:
            allowed = forms(linear.weight, model.ops, keeping=tied)
            chosen[kind] = fastest_form(linear.weight, allowed, model.ops, step_bytes=step_bytes)
        linear.use(chosen[kind], model.ops)
    set_threads(before)
    _gather(model)
    model.join_layers()


def _gather(model: Decoder) -> None:
    """Move the products' weights into one block of large pages; what a library has laid out for itself stays."""
    own = [linear for linear in model.linears() if not linear.weight.is_mkldnn]
    block = Block((linear.weight for linear in own), model.dtype)
    shared = any(_same(linear.weight, model.embedding) for linear in own)
    for linear in own:
        linear.weight = block.move(linear.weight)
    if shared:
        model.embedding = model.lm_head.weight


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two plain tensors are one; a rank's part of the output matrix may only begin where the embedding does."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape

