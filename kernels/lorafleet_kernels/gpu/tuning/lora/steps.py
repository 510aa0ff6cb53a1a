"""Which steps are measured: those that an engine of such bounds runs most, the most frequent first."""

from __future__ import annotations

from lorafleet_kernels.gpu.forms.lora import ROWS_OF_A_TILE, StepShape

PROMPT_SEGMENTS = (1, 4, 16)
LEAST_PROMPT_ROWS = 128
USUAL_RANK = 16


def steps_to_tune(max_num_seqs: int, max_batched_tokens: int, max_rank: int) -> list[StepShape]:
    """Each size within `REACH` of its neighbours.

    Decode steps as their graphs are made for: every row another adapter's, and `ROWS_OF_A_TILE` rows each, of the
    largest rank that may come. Then steps with prompts, which know their ranks. Nothing where adapters have no rank."""
    if max_rank < 1:
        return []
    steps: list[StepShape] = []
    for rows in _sizes(1, max_num_seqs):
        steps.append(StepShape(rows, rows, max_rank))
        if rows >= ROWS_OF_A_TILE:
            steps.append(StepShape(rows, rows // ROWS_OF_A_TILE, max_rank))
    for rank in sorted({min(USUAL_RANK, max_rank), max_rank}):
        for rows in _sizes(LEAST_PROMPT_ROWS, max_batched_tokens):
            steps += [StepShape(rows, segments, rank) for segments in PROMPT_SEGMENTS]
    return list(dict.fromkeys(steps))


def _sizes(least: int, most: int) -> list[int]:
    """From the most on, by halves."""
    sizes = [most]
    while sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    return sizes if most >= least else []
