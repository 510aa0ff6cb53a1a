"""A request's life inside the engine: waiting, running, finished; and why it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lorafleet_runtime.core.drafts import Drafter
    from lorafleet_runtime.core.prefix import Prefix
    from lorafleet_runtime.core.residency import Adapter
    from lorafleet_runtime.protocol import Sampling

FinishReason = Literal["stop", "length", "abort", "error"]

UNKNOWN = -1
"""In place of a token that a step is about to sample: where it stands is known before what it is."""


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt and output token ids, and how many of them have their KV in `pages`.

    `computed` < `len(tokens)` always: the last token's KV is written by the step that samples the next one. While a
    step that samples for it has not been committed, the last token is UNKNOWN.
    """

    request_id: str
    tokens: list[int]  # prompt, then output
    prompt_len: int
    sampling: Sampling
    adapter: Adapter | None
    tenant: str = ""
    weight: float = 1.0
    user: str = ""  # whom of its tenant it serves, where a tenant's users share fairly too
    arrival: int = 0  # order of admission to the queue; ties of policy are broken by it
    arrived: float = 0.0  # seconds on the engine's clock; early abort counts from here
    computed: int = 0
    prefilled: int = 0  # prompt tokens that have been computed at least once
    cached: int = 0  # prompt tokens that a prefix cache held at admission
    charged: int = 0  # micro-units of service that it has cost its tenant so far, before the weight
    given: int = 0  # of these, what was charged elsewhere, for tokens that it came with
    in_flight: int = 0  # the most that it can cost in all, over the weight, while it runs
    admissions: int = 0  # how often it has been admitted: more than once when it was preempted
    pages: list[int] = field(default_factory=list)
    prefixes: list[Prefix] = field(default_factory=list)  # of its pages the first ones, which the prefix cache knows
    finish_reason: FinishReason | None = None
    reads_output: bool = False  # what is sampled next depends on all tokens before: none may be UNKNOWN
    drafter: Drafter | None = None  # of a sequence that speculates
    drafted: int = 0  # guesses in its row that runs: UNKNOWN may become as many tokens more

    @property
    def output_tokens(self) -> list[int]:
        """Of the output, what is known."""
        return self.tokens[self.prompt_len : self.prompt_len + self.output_len]

    @property
    def output_len(self) -> int:
        """Tokens of output that are known."""
        return len(self.tokens) - self.prompt_len - (self.tokens[-1:] == [UNKNOWN])

    @property
    def pending(self) -> int:
        """Tokens whose KV is still to be computed; 1 while decoding."""
        return len(self.tokens) - self.computed


def finish_reason_after(sequence: Sequence, length: int, max_model_len: int) -> FinishReason | None:
    """Why a sequence ends with the last of its first `length` tokens, or None."""
    sampling = sequence.sampling
    if sequence.tokens[length - 1] in sampling.stop_token_ids and length - sequence.prompt_len > sampling.min_tokens:
        return "stop"
    return "length" if is_full(sequence, length, max_model_len) else None


def is_full(sequence: Sequence, length: int, max_model_len: int) -> bool:
    """Whether nothing follows the first `length` tokens, whatever they are."""
    return length - sequence.prompt_len >= sequence.sampling.max_tokens or length >= max_model_len
