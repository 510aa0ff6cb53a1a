"""What there is to tune for a model, one thing at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorafleet_kernels.gpu.forms.lora import GroupShape, StepShape
from lorafleet_kernels.gpu.tuning.attention.lookup import AttentionTuning, Heads, Phase, Sequences, known_form
from lorafleet_kernels.gpu.tuning.attention.search import tune_attention
from lorafleet_kernels.gpu.tuning.attention.shapes import sequences_to_measure
from lorafleet_kernels.gpu.tuning.attention.work import AttentionWork
from lorafleet_kernels.gpu.tuning.lora.lookup import LoraTuning, ModelShapes, nearest
from lorafleet_kernels.gpu.tuning.lora.search import tune_step
from lorafleet_kernels.gpu.tuning.lora.steps import steps_to_tune
from lorafleet_kernels.gpu.tuning.lora.work import GroupWork
from lorafleet_kernels.gpu.tuning.search import Budget, Say
from lorafleet_kernels.gpu.tuning.stand import Stand


@dataclass(frozen=True, slots=True)
class Engine:
    """What steps may be: sequences, tokens of a step, the largest rank, tokens of a sequence."""

    max_num_seqs: int
    max_batched_tokens: int
    max_lora_rank: int
    max_len: int


@dataclass(frozen=True, slots=True)
class LoraTask:
    """Adapters in one step. `page`: elements of a pool page, of the model's type."""

    shapes: ModelShapes
    step: StepShape
    page: int

    def __str__(self) -> str:
        return f"{self.step.rows} rows, {self.step.segments} segments, rank {self.step.max_rank}"

    def known(self, tunings: Iterable[object]) -> bool:
        """Whether one of them speaks for it."""
        return nearest(self.step, tunings, self.shapes) is not None

    def tuned(self, stand: Stand, budget: Budget, say: Say) -> LoraTuning:
        """Raises OutOfTime; ValueError where it cannot be tuned; OutOfMemoryError."""

        def work_of(group: GroupShape) -> GroupWork:
            return GroupWork(self.step, group, self.shapes, self.page, stand)

        return tune_step(self.step, self.shapes, stand.card.processors, work_of, stand.timer, budget, say)


@dataclass(frozen=True, slots=True)
class AttentionTask:
    """Attention in one phase, over each of `sequences`."""

    heads: Heads
    phase: Phase
    sequences: tuple[Sequences, ...]

    def __str__(self) -> str:
        return f"attention, {self.phase}"

    def known(self, tunings: Iterable[object]) -> bool:
        """As of `LoraTask`."""
        return known_form(self.heads, self.phase, tunings) is not None

    def tuned(self, stand: Stand, budget: Budget, say: Say) -> AttentionTuning:
        """As of `LoraTask`."""
        works = [AttentionWork(self.heads, self.phase, each, stand) for each in self.sequences]
        capability = stand.card.capability
        return tune_attention(self.heads, self.phase, self.sequences, works, capability, stand.timer, budget, say)


Task = LoraTask | AttentionTask


def tasks_for(engine: Engine, shapes: ModelShapes, page: int, heads: Heads) -> tuple[Task, ...]:
    """All that such an engine's steps consist of, in order of importance: attention is in every step."""
    attention = [
        AttentionTask(
            heads,
            phase,
            tuple(sequences_to_measure(phase, engine.max_num_seqs, engine.max_batched_tokens, engine.max_len)),
        )
        for phase in Phase
    ]
    steps = steps_to_tune(engine.max_num_seqs, engine.max_batched_tokens, engine.max_lora_rank)
    return (*attention, *(LoraTask(shapes, step, page) for step in steps))


def missing(tasks: Sequence[Task], known: Iterable[object]) -> tuple[Task, ...]:
    """Those that nothing is known of."""
    tunings = list(known)
    return tuple(task for task in tasks if not task.known(tunings))
