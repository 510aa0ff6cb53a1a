"""Over which sequences attention's forms are measured: a few that stand for what an engine of such bounds runs."""

from __future__ import annotations

from lorafleet_kernels.gpu.tuning.attention.lookup import Phase, Sequences

SHORT, LONG = 512, 4096
"""Tokens of a context, a few turns of a chat and a document."""
FEW_ROWS = 8
CHUNKS = 4


def sequences_to_measure(phase: Phase, max_num_seqs: int, max_batched_tokens: int, max_len: int) -> list[Sequences]:
    """Decodes: one long context, a few long and a few short ones, and as many short ones as there may be. Prompts: a
    step's whole chunk, the same behind a long context, and several chunks in one step. None is longer than `max_len`
    tokens."""
    short, long = min(SHORT, max_len), min(LONG, max_len)
    if phase is Phase.DECODE:
        few = min(FEW_ROWS, max_num_seqs)
        rows = [(1, long), (few, long), (few, short), (max_num_seqs, short)]
        shapes = [Sequences(count, 1, context - 1) for count, context in rows]
    else:
        chunk = min(max_batched_tokens, long)
        parts = min(CHUNKS, max_batched_tokens)
        shapes = [
            Sequences(1, chunk, 0),
            Sequences(1, chunk, long - chunk),
            Sequences(parts, min(max_batched_tokens // parts, long), 0),
        ]
    return list(dict.fromkeys(shapes))
