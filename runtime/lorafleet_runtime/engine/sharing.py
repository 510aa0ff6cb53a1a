"""What the engine tells of its tenants, and what it is told of others' service. Only what changed travels."""

from __future__ import annotations

import msgspec

from lorafleet_runtime.core.fairness.counters import CounterTable, Table
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.window import Window
from lorafleet_runtime.protocol import Sharing, TenantRow

SUMMARY_SECONDS = 1.0


class SharingReport:
    """Reads the queue's accounts for the front end. `now` is monotonic seconds."""

    def __init__(self, queue: FairQueue, table: CounterTable, policy: str) -> None:
        self._queue = queue
        self._table = table
        self._policy = policy
        self._window = Window()
        self._told = 0
        self._services: dict[str, int] = {}
        self._summary = Sharing(policy)
        self._summed_at = float("-inf")

    def merge(self, table: Table) -> None:
        """What other replicas have given, and how far tenants were lifted there."""
        self._queue.order.recount(self._table.merge(table))

    def news(self, now: float) -> Sharing | None:
        """What changed since the last call; None when nothing did."""
        changed, self._queue.changed = self._queue.changed, set()
        rows = [self._row(tenant, now) for tenant in sorted(changed)]
        summary, before = self._summarise(now), self._summary
        # The summary is news of its own: who waited and what was given fade after the last token.
        if not rows and summary == before and self._table.version == self._told:
            return None
        table, self._told, self._summary = self._table.since(self._told), self._table.version, summary
        return msgspec.structs.replace(
            summary,
            floor=self._queue.order.floor(),
            bound=self._queue.bound,
            lifts=self._queue.lifts,
            refunds=self._queue.refunds,
            table=table,
            tenants=rows,
        )

    def _row(self, tenant: str, now: float) -> TenantRow:
        tally = self._queue.tallies[tenant]
        more = tally.service - self._services.get(tenant, 0)
        self._services[tenant] = tally.service
        self._window.add(tenant, round(more / tally.weight), now)
        return TenantRow(
            name=tenant,
            weight=tally.weight,
            service=tally.service,
            prompt_tokens=tally.prompt_tokens,
            output_tokens=tally.output_tokens,
            cached_tokens=tally.cached_tokens,
            running=tally.running,
            waiting=tally.waiting,
            aborted=tally.aborted,
        )

    def _summarise(self, now: float) -> Sharing:
        """What takes a look at every waiting tenant, once a second."""
        if now - self._summed_at < SUMMARY_SECONDS:
            return self._summary
        self._summed_at = now
        waiting = [tenant for tenant, tally in self._queue.tallies.items() if tally.waiting]
        counters = [self._table.counter(tenant) for tenant in waiting]
        return Sharing(
            policy=self._policy,
            spread=max(counters) - min(counters) if counters else 0,
            rate=self._window.rate(now),
            jain=self._window.jain(waiting, now),
            backlogged=len(waiting),
        )
