"""The admission queue as the scheduler sees it: an order, and the rules of what is charged when [VTC 4.1; vtc 14].

* A prompt is charged whole at its admission, inside the fill loop, also when it is computed in chunks.
* A token is charged when it has been made: an accepted one, if several are guessed. Each of n choices is a sequence.
* What is computed again (after a preemption, or after another replica was lost) is not charged again.
* Who leaves pays for what was executed: a prompt's chunks that were not run, and tokens that were expected and did not
  come, are given back; nothing that was computed is.

Whom early abort gives up (`expired`) leaves like one who cancels; adapter clustering chooses within a share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lorafleet_runtime.core.early_abort import EarlyAbort
from lorafleet_runtime.core.fairness.baselines import RequestsPerMinute
from lorafleet_runtime.core.fairness.clustering import Clustering
from lorafleet_runtime.core.fairness.cost import MICRO, Cost, Linear
from lorafleet_runtime.core.fairness.order import Order, Rank
from lorafleet_runtime.core.fairness.prediction import Predictor
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_runtime.core.sequence import Sequence


@dataclass(slots=True)
class Tally:
    """What one tenant has had of this replica. `service` in micro-units, not divided by the weight."""

    weight: float = 1.0
    service: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    running: int = 0
    waiting: int = 0
    aborted: int = 0  # early: their first token would have come too late
    in_flight: int = 0  # the most that its admitted requests can cost in all, over the weight


class FairQueue:
    """Waiting sequences in a policy's order, and everybody's account."""

    def __init__(
        self,
        order: Order | None = None,
        cost: Cost | None = None,
        predictor: Predictor | None = None,
        limit: RequestsPerMinute | None = None,
        early: EarlyAbort | None = None,
        clustering: Clustering | None = None,
    ) -> None:
        self.order: Order = Vtc() if order is None else order
        self.tallies: dict[str, Tally] = {}
        self.changed: set[str] = set()  # tenants whose tally has changed since the owner last emptied it
        self.refunds = 0
        self.aborted = 0  # early
        self._aside: set[int] = set()  # arrivals of those that wait elsewhere
        self._crowds = 0  # tenants of whom several sequences run
        self.worst_in_flight = 0
        self._cost = cost or Linear()
        self._predictor = predictor
        self._limit = limit
        self._early = early
        self._clustering = clustering

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.order)

    @property
    def lifts(self) -> int:
        return self.order.lifted if isinstance(self.order, Vtc) else 0

    @property
    def bound(self) -> int:
        """2U: how far the service of two tenants that both wait can drift apart on this replica, in micro-units over
        the weight. U is the greatest cost, in all, that one tenant's admitted requests have ever had at once."""
        return 2 * self.worst_in_flight

    def refuses(self, tenant: str, now: float) -> int | None:
        """Seconds to wait when policy RPM turns a request away; None when it may come."""
        return None if self._limit is None else self._limit.refuses(tenant, now)

    def add(self, sequence: Sequence) -> None:
        """An arrival. What came with it was generated, and charged, elsewhere."""
        if sequence.output_len:
            sequence.given = sequence.charged = self._cost.of(sequence.prompt_len, sequence.output_len)
        self._tally(sequence).waiting += 1
        self.order.add(sequence)
        if self._early:
            self._early.add(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """A preempted sequence waits again, in front of its tenant's others."""
        tally = self._tally(sequence)
        tally.waiting += 1
        self._release(sequence, tally)
        self.order.put_back(sequence)

    def head(self) -> Sequence | None:
        """Who goes next."""
        head = self.order.head()
        if head is None or self._clustering is None:
            return head
        return self._clustering.choose(head, self.order.share(head))

    def expired(self, now: float) -> list[Sequence]:
        """The waiting sequences that early abort gives up: the caller aborts each, now. To be asked before each step,
        with the clock of `Sequence.arrived`."""
        if self._early is None:
            return []
        verdict = self._early.look(now)
        for sequences in verdict.arranged:
            self.order.arrange([s for s in sequences if s.arrival not in self._aside])
        for sequence in verdict.lost:
            self._tally(sequence).aborted += 1
            self.aborted += 1
        return verdict.lost

    def retry_after(self) -> int:
        """Whole seconds after which it makes sense to send again what early abort gave up."""
        return self._early.retry_after() if self._early else 1

    def admit(self, sequence: Sequence) -> None:
        """The head has been given room: take it out and charge its prompt."""
        if self._clustering:
            self._clustering.admitted(sequence, self.order.head())
        self.order.take(sequence)
        if self._early:
            self._early.admit(sequence)
        tally = self._tally(sequence)
        tally.waiting -= 1
        tally.running += 1
        self._crowds += tally.running == 2
        if not sequence.admissions:
            tally.cached_tokens += sequence.cached
        sequence.admissions += 1
        most = self._cost.of(sequence.prompt_len, sequence.sampling.max_tokens, sequence.cached)
        sequence.in_flight = most * MICRO // round(sequence.weight * MICRO)
        tally.in_flight += sequence.in_flight
        self.worst_in_flight = max(self.worst_in_flight, tally.in_flight)
        expected = self._predictor.expected(sequence) if self._predictor else 0
        self._charge_up_to(sequence, max(expected, sequence.output_len), tally)

    def ran(self, sequence: Sequence, start: int, count: int, made: int) -> None:
        """A step computed `count` tokens of a running sequence from `start`, and `made` new ones were accepted."""
        tally = self._tally(sequence)
        if self._early:
            self._early.ran(count if start < sequence.prompt_len else count - 1)
        if sequence.prefilled < sequence.prompt_len:
            until = min(start + count, sequence.prompt_len)
            if until > sequence.prefilled:
                tally.prompt_tokens += until - sequence.prefilled
                sequence.prefilled = until
        if made:
            tally.output_tokens += made
            self._charge_up_to(sequence, sequence.output_len, tally)

    def set_aside(self, sequence: Sequence) -> None:
        """The head cannot run yet: it waits elsewhere, until it is restored or cancelled."""
        self.order.take(sequence)
        self._aside.add(sequence.arrival)

    def restore(self, sequence: Sequence) -> None:
        """A sequence that was set aside waits here again, in front of its tenant's others."""
        self._aside.remove(sequence.arrival)
        self.order.put_back(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """A waiting sequence leaves: what it was not given costs nothing."""
        if sequence.arrival in self._aside:
            self._aside.remove(sequence.arrival)
        else:
            self.order.take(sequence)
        for watcher in (self._early, self._clustering):
            if watcher:
                watcher.gone(sequence)
        tally = self._tally(sequence)
        tally.waiting -= 1
        self._settle(sequence, tally)

    def leave(self, sequence: Sequence) -> None:
        """A running sequence has ended, by itself or not."""
        tally = self._tally(sequence)
        self._release(sequence, tally)
        if self._predictor and sequence.finish_reason != "abort":
            self._predictor.learn(sequence)
        self._settle(sequence, tally)

    def is_newcomer(self, sequence: Sequence) -> bool:
        """Whether nothing runs of a waiting sequence's tenant, where that gets it a place."""
        return self.order.evens_out and not self.tallies[sequence.tenant].running

    def who_makes_way(self, newcomer: Sequence, running: Iterable[Sequence]) -> Iterator[Sequence]:
        """The running sequences that give their place to a newcomer, the most served tenant's newest first. Only
        tenants that have been served more do, and each keeps one: so nobody is driven out, and a crowd of newcomers
        that all have one place does not push each other about."""
        if not self._crowds:
            return
        placed = sorted(running, key=self.order.rank, reverse=True)
        kept = Counter(sequence.tenant for sequence in placed)
        for sequence in placed:
            if kept[sequence.tenant] > 1 and self.order.outranks(newcomer, sequence):
                kept[sequence.tenant] -= 1
                yield sequence

    def rank(self, sequence: Sequence) -> Rank:
        """Of running sequences the greatest is preempted first."""
        return self.order.rank(sequence)

    def _charge_up_to(self, sequence: Sequence, output: int, tally: Tally) -> None:
        cost = self._cost.of(sequence.prompt_len, output, sequence.cached)
        if cost > sequence.charged:
            self._charge(sequence, cost - sequence.charged, tally)

    def _settle(self, sequence: Sequence, tally: Tally) -> None:
        executed = 0
        if sequence.prefilled or sequence.output_len:
            executed = self._cost.of(sequence.prefilled, sequence.output_len, min(sequence.cached, sequence.prefilled))
        over = sequence.charged - max(executed, sequence.given)
        if over > 0:
            self.refunds += 1
            self._charge(sequence, -over, tally)

    def _charge(self, sequence: Sequence, amount: int, tally: Tally) -> None:
        sequence.charged += amount
        tally.service += amount
        self.order.charge(sequence, amount)

    def _release(self, sequence: Sequence, tally: Tally) -> None:
        for watcher in (self._early, self._clustering):
            if watcher:
                watcher.left(sequence)
        tally.running -= 1
        self._crowds -= tally.running == 1
        tally.in_flight -= sequence.in_flight
        sequence.in_flight = 0

    def _tally(self, sequence: Sequence) -> Tally:
        tally = self.tallies.get(sequence.tenant)
        if tally is None:
            tally = self.tallies[sequence.tenant] = Tally()
        tally.weight = sequence.weight
        self.changed.add(sequence.tenant)
        return tally
