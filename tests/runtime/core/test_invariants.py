"""The auditor: silent about a sound engine, and not silent about any one thing that is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lorafleet_runtime.core.invariants import leaks, violations
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.protocol import Sampling


class Busy:
    """Two sequences run on one adapter and share a prefix, one of the base model runs, one waits; one adapter is idle,
    and so are prefixes."""

    def __init__(self) -> None:
        self.room = Room(64, 256)
        self.scheduler = Scheduler(self.room, Limits(256, 3, 256))
        residency = self.room.residency
        self.used, _ = residency.register("used", "r1", 8, 4, 100, (), False)
        self.idle, _ = residency.register("idle", "r1", 8, 3, 100, (), False)
        for adapter in (self.idle, self.used):
            self.ask(f"warm {adapter.id}", adapter.id)
            while self.scheduler.has_work:
                self.step()
        self.first, self.second = self.ask("first", "used"), self.ask("second", "used")
        self.base, self.waits = self.ask("base", ""), self.ask("waits", "used")
        self.step()

    def ask(self, name: str, adapter: str) -> Sequence:
        sampling = Sampling(max_tokens=40 if name in ("first", "second", "base") else 4)
        held = self.room.residency.get(adapter)
        sequence = Sequence(name, list(range(50)), 50, sampling, held, tenant="acme")
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        batch = self.scheduler.schedule()
        assert batch is not None
        self.scheduler.commit(batch, [7] * sum(row.samples for row in batch.rows))


def test_a_sound_engine_has_no_violations_at_any_step() -> None:
    busy = Busy()
    assert busy.first.prefixes
    assert busy.first.prefixes == busy.second.prefixes
    assert violations(busy.room, busy.scheduler) == []
    while busy.scheduler.has_work:
        busy.step()
        assert violations(busy.room, busy.scheduler) == []
    assert leaks(busy.room, busy.scheduler) == []


def page_leaked(busy: Busy) -> None:
    busy.room.pool.allocate(1)


def page_freed_under_its_owner(busy: Busy) -> None:
    busy.room.pool.release(busy.base.pages[-1:])


def reference_too_many(busy: Busy) -> None:
    busy.room.pool.retain(busy.first.pages[:1])


def page_of_two_sequences(busy: Busy) -> None:
    busy.base.pages.append(busy.first.pages[-1])


def free_page_lost_from_the_stack(busy: Busy) -> None:
    busy.room.pool._stacked[busy.room.pool._stack.pop()] = 0


def adapter_user_forgotten(busy: Busy) -> None:
    busy.used.users -= 1


def adapter_waiting_forgotten(busy: Busy) -> None:
    busy.used.waiting -= 1


def adapter_evicted_in_use(busy: Busy) -> None:
    busy.room.pool.release(busy.used.pages)
    busy.used.pages = []


def sequence_that_waits_with_pages(busy: Busy) -> None:
    busy.waits.pages = busy.room.pool.allocate(1)


def sequence_nowhere(busy: Busy) -> None:
    busy.scheduler._running.remove(busy.base)


def prefix_user_forgotten(busy: Busy) -> None:
    busy.first.prefixes[-1].users -= 1


def prefix_cut_off(busy: Busy) -> None:
    prefix = busy.first.prefixes[0]
    assert prefix.parent is not None
    del prefix.parent.children[prefix.tokens]


def evictable_pages_miscounted(busy: Busy) -> None:
    busy.room.order.pages += 1


def adapter_not_in_the_order(busy: Busy) -> None:
    busy.room.prefixes.forget(busy.idle)
    busy.room.order.take(busy.idle)


def tally_wrong(busy: Busy) -> None:
    busy.scheduler.queue.tallies["acme"].running += 1


@pytest.mark.parametrize(("spoil", "says"), [
    (page_leaked, "has 1 references and 0 owners"),
    (page_freed_under_its_owner, "has 0 references and 1 owners"),
    (reference_too_many, "references and 3 owners"),
    (page_of_two_sequences, "references and 2 owners"),
    (free_page_lost_from_the_stack, "is free and will never be found"),
    (adapter_user_forgotten, "counts 1 users, there are 2"),
    (adapter_waiting_forgotten, "counts 0 waiting, there are 1"),
    (adapter_evicted_in_use, "has 2 users and no pages"),
    (sequence_that_waits_with_pages, "request waits waits and holds 1 pages"),
    (sequence_nowhere, "requests ['base'] are known and nowhere"),
    (prefix_user_forgotten, "counts 1 users, there are 2"),
    (prefix_cut_off, "prefixes are held and not in the cache"),
    (evictable_pages_miscounted, "pages count as evictable"),
    (adapter_not_in_the_order, "adapter idle is not in the order of eviction, wrongly"),
    (tally_wrong, "in its tally"),
])  # fmt: skip
def test_whatever_is_wrong_is_said(spoil: Callable[[Busy], None], says: str) -> None:
    busy = Busy()
    spoil(busy)

    assert any(says in sentence for sentence in violations(busy.room, busy.scheduler)), violations(
        busy.room, busy.scheduler
    )


def test_what_still_runs_is_a_leak_only_when_nobody_asks_for_anything() -> None:
    busy = Busy()

    assert violations(busy.room, busy.scheduler) == []
    assert "3 sequences run and 1 wait" in leaks(busy.room, busy.scheduler)


def test_a_random_life_keeps_every_invariant() -> None:
    rng, busy = random.Random(5), Busy()
    for count in range(300):
        if rng.random() < 0.4:
            busy.ask(f"r{count}", rng.choice(["", "used", "idle"]))
        if rng.random() < 0.1:
            busy.scheduler.abort(rng.choice(list(busy.scheduler._by_id) or ["nobody"]))
        if busy.scheduler.has_work:
            busy.step()
        assert violations(busy.room, busy.scheduler) == []
