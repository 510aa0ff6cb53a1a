"""`bench.structured`'s part that needs no model: the library's own times over the real vocabulary."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence

import torch

from bench.record import Result
from bench.structured_schemas import PERSON
from lorafleet_kernels.dispatch import operations
from lorafleet_runtime.constraints.constraint import Constraint, Vocabulary
from lorafleet_runtime.constraints.language import Language, advance, mask
from lorafleet_runtime.engine.constrained.masks import Masks
from lorafleet_runtime.engine.sampling.choosing import choose
from lorafleet_runtime.engine.sampling.sampler import Row
from lorafleet_runtime.protocol import Sampling


def mask_results(vocabulary: Vocabulary, tokens: Sequence[int], repeats: int) -> list[Result]:
    """Of one row: making the mask after each of `tokens`, which obey the schema; and obeying it when a token is chosen.
    In processor time."""
    language = Language(vocabulary)
    prototype = language.compile(Constraint("json", json.dumps(PERSON["schema"])))
    first: list[float] = []
    later: list[float] = []
    for round_ in range(repeats + 1):
        matcher = prototype.deep_copy()
        for token in tokens:
            begun = time.process_time()
            bits = mask(matcher)
            advance(matcher, [token])
            (later if round_ else first).append(time.process_time() - begun)
    logits = torch.randn(8, len(vocabulary.tokens)).bfloat16()
    rows = [Row(Sampling(max_tokens=1, temperature=0), 0, (), (), request_id=f"{row}") for row in range(8)]
    torch.set_num_threads(1)
    device = operations(logits.dtype, logits.device, _one_thread)
    applying = []
    for _ in range(10 * repeats):
        seconds = []
        for masks in (Masks(), Masks({(row.request_id, 0): bits for row in rows})):
            begun = time.process_time()
            choose(logits, rows, masks, device)
            seconds.append(time.process_time() - begun)
        applying.append((seconds[1] - seconds[0]) / 8)
    mean = 1e6 * statistics.mean(later)
    return [
        Result("structured", "a mask", "mean over an answer, a row", mean, "µs", goal="<= 100 µs", met=mean <= 100,
               repeats=repeats),
        Result("structured", "a mask", "longest of a first answer", 1e6 * max(first), "µs"),
        Result("structured", "a mask", "obeying it, a row", 1e6 * statistics.median(applying), "µs",
               repeats=10 * repeats),
    ]  # fmt: skip


def _one_thread() -> int:
    return 1
