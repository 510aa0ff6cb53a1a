"""How large a step and a sequence may become."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    max_model_len: int
    max_num_seqs: int
    max_batched_tokens: int
    max_drafts: int = 0  # guesses at further tokens that a sequence may have in a step
