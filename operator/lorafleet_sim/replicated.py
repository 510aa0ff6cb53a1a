"""Several engines that share their tenants' counters: every replica exchanges with every other, now and then.

Time is counted in steps, which all engines take together. Requests are routed at random, so that nothing but the
counters makes the replicas agree on who has had how much."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import permutations

from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import Request

MakeTable = Callable[[str], CounterTable]


class Fleet:
    """`every`: steps between two exchanges; `table` makes a replica's counters from its column's name."""

    def __init__(
        self,
        replicas: int,
        pool: int,
        every: int,
        rng: random.Random,
        table: MakeTable = CounterTable,
        policy: str = "weighted",
    ) -> None:
        self.tables = [table(f"r{i}") for i in range(replicas)]
        self.engines = [Engine(queue_for(policy, own, pool=pool), pool, name=f"{own.own}-") for own in self.tables]
        self.now = 0
        self.most_per_step = 0
        self._every = every
        self._rng = rng
        self._told: dict[tuple[int, int], int] = {}  # (from, to) -> version of the last exchange

    @property
    def served(self) -> dict[str, int]:
        """Micro-units of service by client, of all engines."""
        total: dict[str, int] = {}
        for engine in self.engines:
            for client, amount in engine.served.items():
                total[client] = total.get(client, 0) + amount
        return total

    @property
    def backlogged_everywhere(self) -> set[str]:
        """Clients with something waiting at every engine."""
        return set.intersection(*(engine.backlogged for engine in self.engines))

    def run(self, requests: Iterable[Request], watch: Callable[[], None]) -> None:
        """To the last token; `watch` is called after every step."""
        coming = sorted(requests, key=lambda request: request.at, reverse=True)
        while coming or any(engine.busy for engine in self.engines):
            while coming and coming[-1].at <= self.now:
                self._rng.choice(self.engines).offer(coming.pop())
            before = sum(self.served.values())
            for engine in self.engines:
                if engine.busy:
                    engine.step()
                engine.now = float(self.now + 1)
            self.most_per_step = max(self.most_per_step, sum(self.served.values()) - before)
            self.now += 1
            if self.now % self._every == 0:
                self.exchange()
            watch()

    def exchange(self) -> None:
        """Everybody tells everybody else what has changed since they last met."""
        for giver, taker in permutations(range(len(self.tables)), 2):
            said = self.tables[giver].since(self._told.get((giver, taker), 0))
            self._told[giver, taker] = self.tables[giver].version
            self.engines[taker].queue.order.recount(self.tables[taker].merge(said))
