"""A batch as plain values: what a step reads does not change while it runs."""

from __future__ import annotations

from lorafleet_runtime.core.batch import Batch, Row
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import UNKNOWN, Sequence
from lorafleet_runtime.engine.step_plan import BASE, PlannedRow, flat_tokens, planned_rows, sampling_rows, segments
from lorafleet_runtime.protocol import Sampling

GREEDY = Sampling(max_tokens=9, temperature=0)


def sequence(name: str, tokens: list[int], handle: int = BASE, sampling: Sampling = GREEDY) -> Sequence:
    adapter = None if handle == BASE else Adapter(handle, name, "r1", 8, 1, 1, ())
    return Sequence(name, tokens, 3, sampling, adapter, pages=[4, 5, 6])


def test_rows_of_one_adapter_make_one_segment() -> None:
    rows = [PlannedRow(0, [1] * count, True, adapter, []) for count, adapter in ((1, BASE), (1, BASE), (1, 2), (5, 2))]
    assert [(s.begin, s.end, s.adapter) for s in segments(rows)] == [(0, 2, BASE), (2, 8, 2)]


def test_a_row_has_the_pages_up_to_its_last_token_and_keeps_them() -> None:
    one = sequence("one", list(range(20)), 7)
    (row,) = planned_rows(Batch((Row(one, 15, 1, samples=False),)), None)
    one.pages.clear()
    one.tokens[15] = 99
    assert row == PlannedRow(15, [15], False, 7, [4])


def test_a_token_that_is_not_known_comes_from_the_row_that_samples_it() -> None:
    one, two = sequence("one", [1, 2, 3, UNKNOWN]), sequence("two", [4, 5, 6, UNKNOWN])
    prompt = sequence("prompt", [7] * 30)
    before = Batch((Row(one, 2, 1, samples=True), Row(prompt, 0, 16, samples=False), Row(two, 0, 3, samples=True)))
    rows = planned_rows(Batch((Row(two, 3, 1, samples=True), Row(one, 3, 1, samples=True))), before)

    assert [row.source for row in rows] == [1, 0]
    assert flat_tokens(rows, [50, 60]) == [60, 50]
    assert flat_tokens(rows, [50, -1]) == [0, 50], "what could not be sampled must still be a token"


def test_a_sampled_token_has_its_position_and_reads_what_was_said_only_if_it_must() -> None:
    penalised = Sampling(max_tokens=9, presence_penalty=1.0)
    plain = sequence("plain", [1, 2, 3, 4, UNKNOWN])
    reads = sequence("reads", [1, 2, 3, 4, UNKNOWN], sampling=penalised)
    rows = sampling_rows(Batch((Row(plain, 3, 1, samples=True), Row(reads, 3, 1, samples=True))))

    assert [(row.request_id, row.position) for row in rows] == [("plain", 1), ("reads", 1)]
    assert [list(row.output_token_ids) for row in rows] == [[], [4]]
    assert [list(row.prompt_token_ids) for row in rows] == [[], [1, 2, 3]]
