"""Before the first request: every kernel that steps may start is compiled and loaded, and the largest step has run
once beside the pool, so that none stops for a compiler, or ends for want of memory, when somebody waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch

from lorafleet_kernels.batch import AttentionBatch
from lorafleet_kernels.gpu.forms.lora import LoraConfig, StepShape
from lorafleet_kernels.gpu.forms.step import ChooseForms
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.pages import PAGE_TOKENS, pages_for_tokens
from lorafleet_runtime.engine.constrained.masks import Masks
from lorafleet_runtime.engine.gpu.runner import GpuRunner
from lorafleet_runtime.engine.sampling.sampler import Row
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.protocol import Sampling

ROWS = tuple(1 << i for i in range(14))
SEGMENTS = tuple(1 << i for i in range(9))
RANKS = sorted({most // slices + more for most in (16, 32, 64) for slices in (1, 2, 3) for more in (0, 1)})
"""On both sides of where all ranks of a group fill another tile."""


@torch.inference_mode()
def warm_up(runner: GpuRunner, limits: Limits, max_rank: int) -> int:
    """Steps that nobody asked for; returns how many. Raises ConfigError where the largest does not fit on the card."""
    steps = 0
    try:
        for rows in sorted({1, min(PAGE_TOKENS, limits.max_batched_tokens), limits.max_batched_tokens}, reverse=True):
            _forward(runner, rows, limits, None)
            steps += 1
        for shape in shapes_of_all_forms(runner.forms, limits.max_batched_tokens, max_rank):
            _forward(runner, shape.rows, limits, shape)
            steps += 1
        _draw(runner, limits.max_num_seqs)
        if runner.device.type == "cuda":
            torch.cuda.synchronize()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"a step of --max-batched-tokens {limits.max_batched_tokens} does not fit on the card beside the pool: "
            f"lower it, or give the pool less with --memory: {error}"
        ) from error
    return steps


def shapes_of_all_forms(forms: ChooseForms, max_rows: int, max_rank: int) -> Iterator[StepShape]:
    """Steps that start every kernel with adapters in it that any step does, the largest first; none without a rank."""
    if not max_rank:
        return
    rows = sorted({min(r, max_rows) for r in (*ROWS, max_rows)}, reverse=True)
    ranks = sorted({min(rank, max_rank) for rank in (1, *RANKS, max_rank)}, reverse=True)
    seen: set[object] = set()
    for count, segments, rank in product(rows, SEGMENTS, ranks):
        if segments > count:
            continue
        shape = StepShape(count, segments, rank)
        found = {compiled for group, config in forms(shape).configs.items() for compiled in compiled_for(group, config)}
        if not found <= seen:
            seen |= found
            yield shape


def compiled_for(group: str, config: LoraConfig) -> tuple[object, object]:
    """What of a form kernels are compiled for, but for how often they are started."""
    return (group, "shrink", config.variant, config.shrink), (group, "expand", config.variant, config.expand)


def _forward(runner: GpuRunner, rows: int, limits: Limits, shape: StepShape | None) -> None:
    """Prompts of so many tokens in all, in pages that nobody uses yet."""
    longest = min(limits.max_model_len, runner.pool.shape[1] * PAGE_TOKENS)
    counts = [longest] * (rows // longest) + ([rows % longest] if rows % longest else [])
    batch = AttentionBatch(
        [position for count in counts for position in range(count)],
        counts,
        [list(range(pages_for_tokens(count))) for count in counts],
        0,
    )
    lora = None if shape is None else runner.lora_of(shape, [], [])
    runner.alone(batch, lora, min(rows, limits.max_num_seqs))


def _draw(runner: GpuRunner, rows: int) -> None:
    """All kinds of rows at once, and greedy ones alone."""
    logits = torch.zeros(rows, runner.model.config.vocab_size, dtype=runner.model.dtype, device=runner.device)
    kinds = (
        Sampling(max_tokens=1, temperature=0.0),
        Sampling(max_tokens=1, temperature=1.0, top_k=5, top_p=0.5, min_p=0.1, logprobs=1, presence_penalty=0.1),
    )
    for kind in kinds:
        runner.sampled(logits, [Row(kind, 0, [0], [0])] * rows, Masks())
