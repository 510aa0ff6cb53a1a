"""Continuous batching, chunked prefill, preemption and admission, without a tensor in sight."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_runtime.core.batch import Batch
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.order import Fifo
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling


class Bench:
    """A scheduler on its own pool, with a device that always samples token 7."""

    def __init__(
        self, pages: int = 64, *, max_model_len: int = 256, seqs: int = 8, budget: int = 64,
        queue: FairQueue | None = None, prefix_caching: bool = False,
    ) -> None:  # fmt: skip
        self.room = Room(pages, max_model_len, prefix_caching=prefix_caching)
        self.pool, self.residency = self.room.pool, self.room.residency
        self.scheduler = Scheduler(self.room, Limits(max_model_len, seqs, budget), queue)
        self.finished: dict[str, Sequence] = {}

    def adapter(self, name: str, pages: int = 2) -> Adapter:
        return self.residency.register(name, "r1", 8, pages, 100, (), False)[0]

    def add(
        self,
        name: str,
        prompt: int,
        max_tokens: int = 4,
        adapter: Adapter | None = None,
        stop: tuple[int, ...] = (),
        min_tokens: int = 0,
        tenant: str = "",
        weight: float = 1.0,
    ) -> Sequence:
        sampling = Sampling(max_tokens=max_tokens, stop_token_ids=stop, min_tokens=min_tokens)
        sequence = Sequence(name, list(range(prompt)), prompt, sampling, adapter, tenant, weight)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> Batch | None:
        batch = self.scheduler.schedule()
        if batch is not None:
            tokens = [7] * sum(row.samples for row in batch.rows)
            for sequence, _ in self.scheduler.commit(batch, tokens):
                if sequence.finish_reason:
                    self.finished[sequence.request_id] = sequence
        return batch

    def run(self, steps: int = 500) -> int:
        for count in range(steps):
            if not self.scheduler.has_work:
                return count
            self.step()
        raise AssertionError(f"still busy after {steps} steps")


def counts(batch: Batch | None) -> dict[str, int]:
    return {row.sequence.request_id: row.count for row in batch.rows} if batch else {}


def test_decode_goes_first_and_prompts_share_what_is_left_of_the_budget() -> None:
    bench = Bench(budget=20)
    bench.add("a", prompt=10)
    bench.step()
    bench.add("b", prompt=30)

    assert counts(bench.step()) == {"a": 1, "b": 19}
    assert counts(bench.step()) == {"a": 1, "b": 11}
    assert counts(bench.step()) == {"a": 1, "b": 1}


def test_a_sequence_joins_in_the_step_after_it_arrives() -> None:
    bench = Bench()
    bench.add("a", prompt=3, max_tokens=50)
    for _ in range(5):
        bench.step()
    bench.add("b", prompt=3)

    assert set(counts(bench.step())) == {"a", "b"}


def test_output_ends_at_max_tokens_at_a_stop_id_and_at_the_end_of_the_context() -> None:
    bench = Bench(max_model_len=12)
    bench.add("length", prompt=3, max_tokens=2)
    bench.add("stop", prompt=3, max_tokens=9, stop=(7,))
    bench.add("later", prompt=3, max_tokens=9, stop=(7,), min_tokens=3)
    bench.add("context", prompt=8, max_tokens=99)

    bench.run()

    reasons = {name: (s.finish_reason, s.output_len) for name, s in bench.finished.items()}
    assert reasons == {"length": ("length", 2), "stop": ("stop", 1), "later": ("stop", 4), "context": ("length", 4)}


def test_the_newest_sequence_is_preempted_and_computed_again() -> None:
    bench = Bench(pages=4, max_model_len=64)
    old = bench.add("old", prompt=31, max_tokens=20)
    new = bench.add("new", prompt=30, max_tokens=20)
    bench.step()
    while not bench.scheduler.preemptions:
        bench.step()

    assert (new.computed, new.pages) == (0, [])
    assert old.pages
    tokens = list(new.tokens)
    bench.run()
    assert new.tokens[: len(tokens)] == tokens, "what was generated before the preemption is kept"
    assert bench.pool.free == 4


def test_the_most_served_tenants_newest_sequence_is_preempted_wherever_it_stands_in_the_batch() -> None:
    bench = Bench(pages=8, max_model_len=128)
    served = bench.add("served", prompt=60, max_tokens=60, tenant="served")
    bench.step()
    spared = bench.add("spared", prompt=30, max_tokens=60, tenant="spared", weight=10)
    while not bench.scheduler.preemptions:
        batch = bench.step()

    assert batch is not None
    assert batch.preempted == (served,)
    assert spared in {row.sequence for row in batch.rows}
    bench.run()
    assert bench.finished.keys() == {"served", "spared"}
    assert served.output_len == 60


def test_a_tenant_of_whom_nothing_runs_gets_a_seat_from_who_has_several_at_once() -> None:
    bench = Bench(seqs=4)
    for index in range(6):
        bench.add(f"flood{index}", prompt=8, max_tokens=100, tenant="flood")
    bench.step()
    light = bench.add("light", prompt=8, max_tokens=2, tenant="light")
    batch = bench.step()

    assert batch is not None
    assert light in {row.sequence for row in batch.rows}
    assert [sequence.request_id for sequence in batch.preempted] == ["flood3"]
    assert bench.scheduler.running == 4


def test_first_come_first_served_gives_no_seat_and_no_budget_to_a_newcomer() -> None:
    bench = Bench(pages=200, max_model_len=512, seqs=2, queue=FairQueue(Fifo()))
    bench.add("long", prompt=200, max_tokens=4, tenant="flood")
    bench.step()
    bench.add("light", prompt=30, max_tokens=4, tenant="light")

    assert counts(bench.step()) == {"long": 64}
    assert bench.scheduler.preemptions == 0


def test_a_tenants_last_seat_is_its_own_however_many_newcomers_there_are() -> None:
    bench = Bench(seqs=4)
    for index in range(12):
        bench.add(f"r{index}", prompt=8, max_tokens=20, tenant=f"t{index}")
    bench.run()

    assert bench.scheduler.preemptions == 0


def test_a_newcomer_gets_pages_as_well_and_nobody_is_preempted_in_vain() -> None:
    bench = Bench(pages=16, max_model_len=128, budget=128)
    bench.add("old", prompt=60, max_tokens=60, tenant="flood")
    bench.add("new", prompt=60, max_tokens=60, tenant="flood")
    for _ in range(30):
        bench.step()
    large = bench.adapter("large", pages=15)
    bench.add("cannot", prompt=20, tenant="light", adapter=large)
    bench.step()
    assert bench.scheduler.preemptions == 0
    bench.scheduler.abort("cannot")

    bench.add("can", prompt=100, tenant="light")
    batch = bench.step()

    assert batch is not None
    assert [sequence.request_id for sequence in batch.preempted] == ["new"]


def test_a_flood_of_long_prompts_does_not_take_the_whole_budget_from_a_newcomer() -> None:
    bench = Bench(pages=200, max_model_len=512, seqs=8, budget=64)
    for index in range(4):
        bench.add(f"long{index}", prompt=400, max_tokens=4, tenant="flood")
    bench.step()
    bench.add("light", prompt=30, max_tokens=4, tenant="light")

    assert counts(bench.step()) == {"long0": 34, "light": 30}


def test_adapters_of_the_next_in_line_are_fetched_while_pages_are_free() -> None:
    bench = Bench(seqs=1)
    adapters = [bench.adapter(f"a{index}", pages=20) for index in range(3)]
    for index, adapter in enumerate(adapters):
        bench.add(f"r{index}", prompt=4, adapter=adapter, tenant=f"t{index}")

    batch = bench.step()

    assert batch is not None
    assert batch.uploads == (adapters[0], adapters[1], adapters[2])
    assert all(adapter.resident for adapter in adapters)


def test_no_adapter_is_evicted_and_no_running_sequence_loses_its_next_page_for_a_guess() -> None:
    bench = Bench(pages=40, seqs=1, max_model_len=128)
    idle, running, guessed = (bench.adapter(name, pages=12) for name in ("idle", "running", "guessed"))
    bench.add("first", prompt=4, adapter=idle)
    bench.run()
    bench.add("runs", prompt=4, adapter=running, tenant="a")
    bench.add("waits", prompt=4, adapter=guessed, tenant="b")
    bench.step()

    assert idle.resident
    assert guessed.resident

    small = Bench(pages=20, seqs=1, max_model_len=128)
    running, guessed = small.adapter("running", pages=4), small.adapter("guessed", pages=15)
    small.add("runs", prompt=4, adapter=running, tenant="a")
    small.add("waits", prompt=4, adapter=guessed, tenant="b")
    small.step()

    assert not guessed.resident


def test_idle_adapters_leave_before_anything_is_preempted() -> None:
    bench = Bench(pages=4, max_model_len=64)
    bench.add("warm", prompt=3, max_tokens=1, adapter=bench.adapter("x", pages=2))
    bench.run()
    assert bench.room.order.pages == 2

    bench.add("long", prompt=40, max_tokens=20)
    bench.run()

    assert bench.residency.evicted.total() == 1
    assert bench.scheduler.preemptions == 0


def test_an_idle_adapter_is_not_evicted_for_its_own_request() -> None:
    bench = Bench(pages=4, max_model_len=32)
    adapter = bench.adapter("x", pages=2)
    bench.add("a", prompt=3, max_tokens=1, adapter=adapter)
    bench.run()

    bench.add("b", prompt=30, max_tokens=1, adapter=adapter)
    bench.run()

    assert (bench.residency.loads, bench.residency.evicted.total()) == (1, 0)


def test_a_request_without_room_waits_and_keeps_no_adapter() -> None:
    bench = Bench(pages=6, max_model_len=64)
    bench.add("a", prompt=48, max_tokens=10)
    bench.step()
    adapter = bench.adapter("x", pages=2)
    bench.add("b", prompt=33, max_tokens=2, adapter=adapter)

    bench.step()

    assert bench.scheduler.waiting == 1
    assert (adapter.users, adapter.waiting, adapter.resident) == (0, 1, False)
    bench.run()
    assert set(bench.finished) == {"a", "b"}


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_abort_frees_everything_wherever_the_request_is(after: int) -> None:
    bench = Bench(pages=16)
    adapter = bench.adapter("x")
    bench.add("a", prompt=20, max_tokens=50, adapter=adapter)
    for _ in range(after):
        bench.step()

    aborted = bench.scheduler.abort("a")

    assert aborted is not None
    assert aborted.finish_reason == "abort"
    assert bench.scheduler.abort("a") is None
    assert not bench.scheduler.has_work
    assert (adapter.users, adapter.waiting) == (0, 0)
    assert bench.pool.free + bench.room.order.pages == 16


def test_what_can_never_fit_is_named() -> None:
    bench = Bench(pages=16, max_model_len=128)

    assert bench.scheduler.reason_it_never_fits(127, None) is None
    assert "128 tokens" in (bench.scheduler.reason_it_never_fits(128, None) or "")
    assert "the pool has 16" in (bench.scheduler.reason_it_never_fits(5, bench.adapter("big", pages=9)) or "")


def test_rows_of_one_adapter_are_adjacent_and_decodes_come_first() -> None:
    bench = Bench(budget=100)
    x, y = bench.adapter("x"), bench.adapter("y")
    for name, adapter in (("1", y), ("2", None), ("3", x), ("4", y), ("5", None)):
        bench.add(name, prompt=2, max_tokens=9, adapter=adapter)
    bench.step()
    bench.add("6", prompt=5, adapter=x)

    batch = bench.step()

    assert batch is not None
    assert [row.sequence.request_id for row in batch.rows] == ["2", "5", "3", "1", "4", "6"]


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(20, 40), st.integers(8, 40))
def test_every_request_ends_and_every_page_comes_back(seed: int, pages: int, budget: int) -> None:
    rng = random.Random(seed)
    bench = Bench(pages, max_model_len=128, seqs=6, budget=budget)
    adapters = [None, *(bench.adapter(f"a{i}", pages=rng.randint(1, 6)) for i in range(4))]
    wanted: set[str] = set()
    for index in range(25):
        name = f"r{index}"
        bench.add(name, rng.randint(1, 90), rng.randint(1, 40), rng.choice(adapters))
        wanted.add(name)
        for _ in range(rng.randint(0, 6)):
            batch = bench.step()
            if batch is not None:
                assert batch.tokens <= budget
                assert bench.scheduler.running <= 6
        if rng.random() < 0.15:
            victim = rng.choice(sorted(wanted - set(bench.finished)) or [""])
            if bench.scheduler.abort(victim):
                wanted.discard(victim)

    bench.run(5000)

    assert set(bench.finished) == wanted
    assert all(s.output_len == min(s.sampling.max_tokens, 128 - s.prompt_len) for s in bench.finished.values())
    assert bench.pool.free + bench.room.order.pages == pages


def test_an_adapter_whose_pages_were_given_up_within_the_step_is_not_uploaded() -> None:
    """A newcomer comes with its adapter, is preempted for a prompt under way, and its adapter is evicted for that."""
    bench = Bench(14, budget=96)
    bench.add("long", prompt=160, tenant="a")
    bench.step()
    bench.add("new", prompt=16, adapter=bench.adapter("late", pages=5), tenant="b")
    batch = bench.step()

    assert batch is not None
    assert [sequence.request_id for sequence in batch.preempted] == ["new"]
    assert batch.uploads == ()


def test_a_step_that_others_decode_in_copies_few_adapters() -> None:
    bench = Bench(pages=64)
    bench.room.costs.step, bench.room.costs.page = 0.1, 0.01
    adapters = [bench.adapter(f"a{i}", pages=2) for i in range(3)]
    for index, adapter in enumerate(adapters):
        bench.add(str(index), prompt=4, max_tokens=4, adapter=adapter)

    copied = [[a.id for a in batch.uploads] for batch in (bench.step(), bench.step(), bench.step()) if batch]

    assert copied == [["a0"], ["a1"], ["a2"]]
