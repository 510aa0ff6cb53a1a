"""What this machine does fastest, measured at start and never assumed: dtype, threads, weight layout.

bfloat16 is several times faster than float32 on processors with bfloat16 products and slower on others; a second thread
helps on a quiet machine and, beside a busy process, makes every product wait for a worker that lost its core.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.linear import packing_pays

PROBE_SHAPE = (16, 1024, 1024)
"""Rows, K and N of the probe: a decode step of a small model."""


def best_dtype() -> torch.dtype:
    """bfloat16 where its products are at least a fifth faster than float32's, else float32. Never float16 on a CPU."""
    single, half = (_probe_seconds(dtype) for dtype in (torch.float32, torch.bfloat16))
    return torch.bfloat16 if half < 0.8 * single else torch.float32


def best_threads() -> int:
    """The thread count with the fastest slow products: the 90th percentile decides, since one stalled worker stalls a
    step. Fewer threads win within a tenth."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    before = torch.get_num_threads()
    best, best_seconds = 1, float("inf")
    for threads in sorted({1, *(2**i for i in range(1, 8) if 2**i < cores), cores}):
        torch.set_num_threads(threads)
        seconds = _probe_seconds(torch.float32, repeats=120, quantile=0.9)
        if seconds < 0.9 * best_seconds:
            best, best_seconds = threads, seconds
    torch.set_num_threads(before)
    return best


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


def _probe_seconds(dtype: torch.dtype, *, repeats: int = 20, quantile: float = 0.5) -> float:
    rows, k, n = PROBE_SHAPE
    x, weight = torch.ones(rows, k, dtype=dtype), torch.ones(n, k, dtype=dtype)
    return _quantile_seconds(lambda: F.linear(x, weight), repeats, quantile)


def _quantile_seconds(call: Callable[[], object], repeats: int, quantile: float) -> float:
    call()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return sorted(times)[int(quantile * (repeats - 1))]
