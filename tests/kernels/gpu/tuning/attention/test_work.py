"""What is timed of attention is what its kernels compute, in every form that is tried: in Triton's interpreter."""

from __future__ import annotations

import math

import pytest
import torch

from lorafleet_kernels.gpu.attention.step import TritonAttention
from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.tuning.attention.lookup import Heads, Phase, Sequences
from lorafleet_kernels.gpu.tuning.attention.work import AttentionWork
from lorafleet_kernels.gpu.tuning.clock import replayed
from lorafleet_kernels.gpu.tuning.search import agrees
from lorafleet_kernels.gpu.tuning.stand import Stand
from lorafleet_kernels.reference_fp8 import restore

pytestmark = pytest.mark.interpreted

DECODES, CHUNKS = Sequences(3, 1, 40), Sequences(2, 5, 20)
CASES = [(Phase.DECODE, DECODES), (Phase.PROMPTS, CHUNKS), (Phase.PROMPTS, Sequences(1, 3, 0))]


def heads(kv: str = "float32") -> Heads:
    return Heads(4, 2, 64, "float32", kv)


def work(of: Heads, phase: Phase, sequences: Sequences, device: torch.device) -> AttentionWork:
    return AttentionWork(of, phase, sequences, Stand(device, Card.of(device), 1, replayed))


def expected(made: AttentionWork, of: Heads) -> torch.Tensor:
    """`[T, heads · D]` of the first copy, in float64, one token and head at a time."""
    pool = made._pool[:1].double() if made._scales is None else restore(made._pool[0], made._scales[0], torch.float64)
    pool = pool[0] if made._scales is None else pool
    q = made._q[0].double().view(-1, of.heads, of.size)
    out, row = torch.empty_like(q), 0
    for count, pages in zip(made._batch.counts, made._batch.pages, strict=True):
        keys, values = (pool[pages][:, half].flatten(0, 1) for half in (0, 1))
        for _ in range(count):
            seen = made._batch.positions[row] + 1
            for head in range(of.heads):
                mine = head // of.group
                scores = keys[:seen, mine] @ q[row, head] / math.sqrt(of.size)
                out[row, head] = scores.softmax(0) @ values[:seen, mine]
            row += 1
    return out.flatten(1)


@pytest.mark.parametrize("kv", ["float32", "fp8"])
@pytest.mark.parametrize(("phase", "sequences"), CASES)
def test_every_candidate_is_right(phase: Phase, sequences: Sequences, kv: str, device: torch.device) -> None:
    of = heads(kv)
    made = work(of, phase, sequences, device)
    right = expected(made, of).float()

    for form in of.candidates(phase, Card.of(device).capability):
        assert agrees(made.result(form), right, made.noise), form
    assert made.copies == 2


def test_contexts_differ_around_their_mean(device: torch.device) -> None:
    made = work(heads(), Phase.DECODE, DECODES, device)

    assert [position + 1 for position in made._batch.positions] == [21, 41, 61]


@pytest.mark.parametrize(("phase", "sequences"), CASES[:2])
def test_a_page_that_is_passed_over_shows(
    phase: Phase, sequences: Sequences, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = work(heads(), phase, sequences, device)
    form = heads().defaults(Card.of(device).capability)[0 if phase is Phase.DECODE else 1]
    right = made.result(form)
    init = TritonAttention.__init__

    def elsewhere(self: TritonAttention, *arguments: object, **named: object) -> None:
        init(self, *arguments, **named)  # type: ignore[arg-type]
        self._plan.pages[1] = self._plan.pages[0]

    monkeypatch.setattr(TritonAttention, "__init__", elsewhere)

    assert not agrees(made.result(form), right, made.noise)


def test_a_row_that_nobody_wrote_shows(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    made = work(heads(), Phase.DECODE, DECODES, device)
    form, _ = heads().defaults(Card.of(device).capability)
    right = made.result(form)
    monkeypatch.setattr(TritonAttention, "decode", lambda self, layer, q, out: None)

    assert not agrees(made.result(form), right, made.noise)
