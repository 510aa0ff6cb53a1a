"""Prompts with the same beginning share its pages; pages leave only when nothing depends on them."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.policies import make_queue, read_spec
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.prefix import Prefix
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling


class Bench:
    """A scheduler on its own pool; the device samples whatever `sample` says."""

    def __init__(self, pages: int = 64, *, enabled: bool = True, seqs: int = 8, budget: int = 64) -> None:
        self.room = Room(pages, 256, prefix_caching=enabled)
        self.scheduler = Scheduler(self.room, Limits(256, seqs, budget))

    def adapter(self, name: str, pages: int = 2) -> Adapter:
        return self.room.residency.register(name, "r1", 8, pages, 100, (), False)[0]

    def add(
        self, name: str, tokens: list[int], max_tokens: int = 2, adapter: Adapter | None = None, tenant: str = ""
    ) -> Sequence:
        sequence = Sequence(name, list(tokens), len(tokens), Sampling(max_tokens=max_tokens), adapter, tenant)
        self.scheduler.add(sequence)
        return sequence

    def step(self, token: int = 7) -> None:
        batch = self.scheduler.schedule()
        if batch is not None:
            self.scheduler.commit(batch, [token] * sum(row.samples for row in batch.rows))

    def ask(
        self, name: str, tokens: list[int], max_tokens: int = 2, adapter: Adapter | None = None, tenant: str = ""
    ) -> Sequence:
        """A request from its arrival to its end."""
        sequence = self.add(name, tokens, max_tokens, adapter, tenant)
        while self.scheduler.has_work:
            self.step()
        return sequence

    @property
    def available(self) -> int:
        return self.room.pool.free + self.room.order.pages


PROMPT = list(range(100, 150))  # three full pages and two tokens


def test_a_second_request_computes_only_what_the_first_did_not() -> None:
    bench = Bench()
    first = bench.ask("first", PROMPT)
    second = bench.add("second", [*PROMPT[:40], 1, 2, 3])
    batch = bench.scheduler.schedule()

    assert first.cached == 0
    assert second.cached == 32
    assert batch is not None
    assert [(row.start, row.count) for row in batch.rows] == [(32, 11)]


def test_the_page_of_the_last_token_is_always_computed() -> None:
    bench = Bench()
    bench.ask("first", PROMPT[:32], max_tokens=20)

    assert bench.ask("again", PROMPT[:32]).cached == 16


def test_what_was_answered_is_found_when_the_conversation_goes_on() -> None:
    bench = Bench()
    first = bench.ask("turn 1", PROMPT, max_tokens=30)

    second = bench.ask("turn 2", [*first.tokens, 5, 6])

    assert len(first.tokens) == 80
    assert second.cached == 64, "the last token's KV is never written, so the fifth page was not full"


def test_running_sequences_share_pages_and_nobody_writes_into_them() -> None:
    bench = Bench()
    bench.ask("warm", PROMPT)
    one, two = bench.add("one", PROMPT, 20), bench.add("two", PROMPT, 20)
    bench.step()

    assert one.pages[:3] == two.pages[:3]
    assert not set(one.pages[3:]) & set(two.pages[3:])
    assert bench.room.sequence_pages == 5


def test_the_same_prompt_computed_twice_at_once_is_kept_once() -> None:
    bench = Bench(budget=200)
    one, two = bench.add("one", PROMPT, 20), bench.add("two", PROMPT, 20)
    bench.step()

    assert one.pages[:3] == two.pages[:3]
    assert bench.room.prefixes.pages == 3


def test_neither_adapters_nor_tenants_share_what_was_computed() -> None:
    bench = Bench()
    adapter = bench.adapter("a")
    bench.ask("base", PROMPT, tenant="x")

    assert bench.ask("other tenant", PROMPT, tenant="y").cached == 0
    assert bench.ask("adapted", PROMPT, adapter=adapter, tenant="x").cached == 0
    assert bench.ask("adapted again", PROMPT, adapter=adapter, tenant="x").cached == 48


def test_a_new_revision_finds_nothing_of_the_old_one_and_the_old_pages_are_free() -> None:
    bench = Bench()
    bench.ask("old", PROMPT, adapter=bench.adapter("a"))
    new = bench.adapter("a")

    assert bench.room.prefixes.pages == 0
    assert bench.ask("new", PROMPT, adapter=new).cached == 0


def test_a_revision_that_drains_still_shares_with_its_own_requests() -> None:
    bench = Bench(seqs=1)
    old = bench.adapter("a")
    bench.add("one", PROMPT, adapter=old)
    two = bench.add("two", PROMPT, adapter=old)
    bench.step()
    bench.adapter("a")
    while bench.scheduler.has_work:
        bench.step()

    assert two.cached == 48


def test_ends_of_chains_leave_before_beginnings_and_adapters_after_their_prefixes() -> None:
    bench = Bench(pages=8)
    adapter = bench.adapter("a", pages=2)
    bench.ask("first", PROMPT, adapter=adapter)
    bench.room.order.make_room(4, "prompt")
    assert adapter.resident
    assert bench.room.prefixes.find(bench.add("probe", PROMPT, adapter=adapter))[-1].tokens == tuple(PROMPT[16:32])

    bench.scheduler.abort("probe")
    bench.room.order.make_room(6, "prompt")
    assert (adapter.resident, bench.room.prefixes.pages) == (True, 0)

    bench.room.order.make_room(7, "decode")
    assert not adapter.resident
    assert adapter.evicted_for == "decode"


def test_a_preempted_sequence_finds_its_own_pages_again() -> None:
    bench = Bench(pages=7)
    old, new = bench.add("old", list(range(31)), 40), bench.add("new", list(range(50, 80)), 20)
    while not bench.scheduler.preemptions:
        bench.step()
    while bench.scheduler.has_work:
        bench.step()

    assert (old.output_len, new.output_len) == (40, 20)
    assert new.admissions == 2
    assert new.cached == 0, "what it is charged was settled at its first admission"


def test_switched_off_it_keeps_nothing() -> None:
    bench = Bench(enabled=False)
    bench.ask("first", PROMPT)

    assert bench.ask("second", PROMPT).cached == 0
    assert bench.room.pool.free == 64


def test_longest_prefix_match_takes_who_finds_most_first() -> None:
    room = Room(64, 256)
    queue = make_queue(read_spec('{"policy": "DLPM"}'), CounterTable("own"), room.prefixes.match)
    bench = Bench()
    bench.room, bench.scheduler = room, Scheduler(room, Limits(256, 1, 64), queue)
    bench.ask("warm", PROMPT)
    bench.add("far", [9, *PROMPT])
    near = bench.add("near", [*PROMPT[:32], 1, 2])
    bench.step()

    assert near.cached == 32
    assert near.admissions == 1


def owners(bench: Bench) -> list[int]:
    """How many hold each page, counted from the holders' side; checks what they say of each other on the way."""
    room = bench.room
    held = [0] * room.pool.total
    idle = 0
    running = bench.scheduler._running
    for sequence in running:
        for page in sequence.pages:
            held[page] += 1
    below: list[Prefix] = [root for tenants in room.prefixes._roots.values() for root in tenants.values()]
    while below:
        for prefix in below.pop().children.values():
            below.append(prefix)
            held[prefix.page] += 1
            idle += prefix.users == 0
            assert prefix.users == sum(prefix in sequence.prefixes for sequence in running)
            assert bool(prefix.ticket) == (prefix.users == 0 and not prefix.children)
    for adapter in room.residency.all():
        for page in adapter.pages:
            held[page] += 1
        if room.residency.is_idle(adapter):
            idle += len(adapter.pages)
            assert bool(adapter.ticket) == (adapter.prefixes == 0)
    assert idle == room.order.pages
    return held


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_every_page_has_as_many_references_as_holders_at_every_step(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(rng.choice((18, 30, 48)), seqs=rng.choice((3, 8)), budget=rng.choice((16, 64)))
    adapters = [bench.adapter(f"a{i}", rng.randint(1, 2)) for i in range(4)]
    common = [rng.randrange(3) for _ in range(100)]
    for step in range(150):
        if rng.random() < 0.4:
            cut = rng.randint(0, 100)
            tokens = common[:cut] + [rng.randrange(3) for _ in range(rng.randint(1, 30))]
            bench.add(str(step), tokens, rng.randint(1, 20), rng.choice([None, *adapters]), rng.choice("xy"))
        if rng.random() < 0.05:
            bench.scheduler.abort(str(rng.randint(0, step)))
        if rng.random() < 0.05:
            which = rng.randrange(4)
            adapters[which] = bench.adapter(f"a{which}", rng.randint(1, 2))
        bench.step(rng.randrange(3))
        bench.room.residency.collect()
        assert owners(bench) == bench.room.pool._refs
    while bench.scheduler.has_work:
        bench.step()
    bench.room.residency.collect()
    assert bench.available == bench.room.pool.total
