"""What this machine multiplies fastest, measured at start and never assumed: dtype and weight layout.

bfloat16 is several times faster than float32 on processors with bfloat16 products, and slower on others.
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.nn.functional as F

from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.linear import packing_pays

PROBE_SHAPE = (16, 1024, 1024)
"""Rows, K and N of the probe: a decode step of a small model."""
PROBES = 20


def best_dtype() -> torch.dtype:
    """bfloat16 where its products are at least a fifth faster than float32's, else float32. Never float16 on a CPU."""
    single, half = (_probe_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if half < 0.8 * single else torch.float32


def pack_where_it_pays(model: Decoder) -> None:
    """Prepack the weights of every shape for which that measured faster, one measurement per shape.

    The tied output matrix stays plain: packing it would keep the vocabulary in memory twice.
    """
    if model.embedding.device.type != "cpu":
        return
    verdicts: dict[tuple[int, ...], bool] = {}
    for linear in model.linears():
        if linear is model.lm_head and model.config.tie_word_embeddings:
            continue
        if linear.shape not in verdicts:
            verdicts[linear.shape] = packing_pays(linear.weight)
        if verdicts[linear.shape]:
            linear.pack()


def _probe_seconds(dtype: torch.dtype) -> float:
    rows, k, n = PROBE_SHAPE
    x, weight = torch.ones(rows, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
    F.linear(x, weight)
    times: list[float] = []
    for _ in range(PROBES):
        start = time.perf_counter()
        F.linear(x, weight)
        times.append(time.perf_counter() - start)
    return statistics.median(times)
