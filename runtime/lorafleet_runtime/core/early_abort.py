"""Early abort: who can still get a first token in time, in which order they go, and who is told at once.

The objective is the number of requests with a first token within `ttft` seconds of their arrival [S-LoRA 4.3, 6.3].
Of one share of the queue (a tenant's, a user's, or all of it) the plan is Moore and Hodgson's for the fewest late jobs:

    in order of arrival:  S ← S + r;  if S cannot be done by r's target:  S ← S - its costliest request
    S goes first, in order of arrival; then the rest, cheapest first

While all can make it nothing changes: first come, first served. The target is the deadline. Where more than a
tenth is lost it comes nearer, down to half of `ttft`: in lasting overload a queue as long as the deadline loses hardly
fewer, and makes everybody wait. Nothing is held back: who steps back still goes when there is room.

A request is lost when not even going next would save it, and hopeless when it steps back, and S alone would take up its
time if the replica gave all it has to this share, three times as fast as lately. Both are answered at once.

Never judged: what has been admitted before (preempted), or came with tokens that its client already has (resumed).
Speeds are learned from what happened between two looks. Pure: `now` is the caller's clock, in seconds."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lorafleet_runtime.core.fairness.cost import Cost
from lorafleet_runtime.core.fairness.prediction import MovingAverage, Predictor
from lorafleet_runtime.core.pace import Pace, Rate
from lorafleet_runtime.core.sequence import Sequence

MANY = 0.1
"""The share of arrivals that is lost before the target comes nearer."""
NEARER = 3.0
"""How much nearer, in `ttft`, for the share that is lost beyond it."""
NEAREST = 0.5
"""The nearest target, in `ttft`."""
HOPE = 3.0
"""How many times faster than lately things may become, for what is called hopeless."""
MEMORY = 2.0
"""In `ttft`: how long what was admitted is remembered, and a quarter of it is needed before a rate is believed."""
LOOKS = 100
"""At most so many plans in `ttft` seconds while nothing arrives."""
MOST_RETRY_SECONDS = 60

Share = Callable[[Sequence], tuple[str, str]]  # tenant, and whose share of the tenant's


@dataclass(frozen=True, slots=True)
class Verdict:
    """`lost`: give these up now. `arranged`: for each share that needs it, the order in which the others go."""

    lost: list[Sequence] = field(default_factory=list)
    arranged: list[list[Sequence]] = field(default_factory=list)


class EarlyAbort:
    """The judge of what waits. Told of everything that happens to a sequence; `look` before each step."""

    def __init__(self, ttft: float, cost: Cost, share: Share, predictor: Predictor | None = None) -> None:
        """`ttft` in seconds; `share`: within which the order is this plan's. A request's cost is that of its prompt and
        of as many tokens as its tenant's requests get on average, but no more than it may get."""
        self.ttft = ttft
        self.pace = Pace()
        self.rate = Rate(MEMORY * ttft)
        self._cost = cost
        self._share = share
        self._predictor = predictor or MovingAverage()
        self._waiting: dict[int, Sequence] = {}  # by arrival, which is in order of time
        self._costs: dict[int, int] = {}
        self._longest = 0  # prompt that ever waited
        self._postponed: set[tuple[str, str]] = set()  # shares that are not in order of arrival
        self._running = 0
        self._looked = -math.inf
        self._planned = -math.inf
        self._came = self._gave_up = 0.0  # arrivals, and those of them that were lost, fading
        self._news = False
        self._prompt_tokens = 0
        self._rows = 0
        self._admitted = 0.0

    def add(self, sequence: Sequence) -> None:
        """An arrival, `sequence.arrived` seconds on the caller's clock."""
        if not sequence.output_len:
            self._waiting[sequence.arrival] = sequence
            self._longest = max(self._longest, sequence.prompt_len)
            self._news = True
            self._came += 1

    def admit(self, sequence: Sequence) -> None:
        self._running += 1
        if sequence.arrival in self._waiting:
            self._admitted += self._cost_of(sequence)
            self.gone(sequence)

    def ran(self, prompt_tokens: int) -> None:
        """One row of a step that ran."""
        self._rows += 1
        self._prompt_tokens += prompt_tokens

    def left(self, sequence: Sequence) -> None:
        """A running sequence has ended, or waits again; then it is not judged any more."""
        self._running -= 1
        if sequence.finish_reason not in (None, "abort"):
            self._predictor.learn(sequence)

    def gone(self, sequence: Sequence) -> None:
        """It does not wait any more."""
        self._waiting.pop(sequence.arrival, None)
        self._costs.pop(sequence.arrival, None)

    def look(self, now: float) -> Verdict:
        """What has become of those that wait."""
        self._learn(now)
        lost = self._lost(now)
        self._gave_up += len(lost)
        due = self._news or now - self._planned >= self.ttft / LOOKS
        rate = self.rate.per_second
        if not due or rate is None or len(self._waiting) - len(lost) < 2:
            return Verdict(lost)
        self._planned, self._news = now, False
        verdict = Verdict(lost)
        for key, members, part in self._shares(lost):
            kept, rest = self._chosen(members, now, part * rate)
            for sequence in self._hopeless(members, now, HOPE * rate):
                if sequence in rest:
                    rest.remove(sequence)
                    lost.append(sequence)
                    self._gave_up += 1
            if rest or key in self._postponed:
                verdict.arranged.append([*kept, *rest])
            (self._postponed.add if rest else self._postponed.discard)(key)
        return verdict

    def retry_after(self) -> int:
        """Whole seconds after which what waits now has had its turn, from 1 to a minute."""
        rate = self.rate.per_second
        if rate is None:
            return 1
        seconds = math.ceil(sum(map(self._cost_of, self._waiting.values())) / rate)
        return min(max(1, seconds), MOST_RETRY_SECONDS)

    def _learn(self, now: float) -> None:
        """From the time since the last look, unless the engine may have been idle in it."""
        seconds, waited = now - self._looked, self._waited()
        if math.isfinite(seconds) and seconds > 0 and self._rows and (self._running or waited):
            self.pace.learn(seconds, self._prompt_tokens)
        if math.isfinite(seconds) and waited:
            self.rate.add(self._admitted, max(0.0, seconds))
        if math.isfinite(seconds):
            kept = math.exp(-max(0.0, seconds) / self.rate.memory)
            self._came, self._gave_up = self._came * kept, self._gave_up * kept
        self._looked = now
        self._rows = self._prompt_tokens = 0
        self._admitted = 0.0

    def _waited(self) -> bool:
        """Whether somebody waits who did so at the last look."""
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and oldest.arrived <= self._looked

    def _lost(self, now: float) -> list[Sequence]:
        most = self.pace.base + self.pace.per_token * self._longest
        found = []
        for sequence in self._waiting.values():
            left = sequence.arrived + self.ttft - now
            if left > most:
                break  # who came later has more time, and no prompt is longer
            if left <= self.pace.first_token(sequence):
                found.append(sequence)
        return found

    def _shares(self, lost: Iterable[Sequence]) -> list[tuple[tuple[str, str], list[Sequence], float]]:
        """Those that wait by share, and what part of the replica each gets: tenants by weight, then evenly."""
        gone = {sequence.arrival for sequence in lost}
        members: dict[tuple[str, str], list[Sequence]] = {}
        for sequence in self._waiting.values():
            if sequence.arrival not in gone:
                members.setdefault(self._share(sequence), []).append(sequence)
        weights = {key[0]: group[-1].weight for key, group in members.items()}
        parts: dict[str, int] = {}
        for tenant, _ in members:
            parts[tenant] = parts.get(tenant, 0) + 1
        total = sum(weights.values())
        return [(key, group, weights[key[0]] / total / parts[key[0]]) for key, group in members.items()]

    def _chosen(self, members: list[Sequence], now: float, rate: float) -> tuple[list[Sequence], list[Sequence]]:
        """Moore and Hodgson's set at this rate, in order of arrival; and the rest, cheapest first."""
        finished = 0.0
        lost = self._gave_up / self._came if self._came > 0 else 0.0
        target = self.ttft * max(NEAREST, 1 - NEARER * max(0.0, lost - MANY))
        costliest: list[tuple[float, int]] = []
        out: set[int] = set()
        for sequence in members:
            seconds = self._cost_of(sequence) / rate
            finished += seconds
            heapq.heappush(costliest, (-seconds, sequence.arrival))
            latest = sequence.arrived + target - self.pace.first_token(sequence)
            while costliest and now + finished > latest:
                seconds, arrival = heapq.heappop(costliest)
                finished += seconds
                out.add(arrival)
        rest = [sequence for sequence in members if sequence.arrival in out]
        rest.sort(key=self._cost_of)
        return [sequence for sequence in members if sequence.arrival not in out], rest

    def _hopeless(self, members: list[Sequence], now: float, rate: float) -> list[Sequence]:
        """Who would not be chosen, and not come in time after those that would, even at this rate."""
        kept, rest = self._chosen(members, now, rate)
        finished = now + sum(map(self._cost_of, kept)) / rate
        return [s for s in rest if finished + self.pace.first_token(s) >= s.arrived + self.ttft]

    def _cost_of(self, sequence: Sequence) -> int:
        cost = self._costs.get(sequence.arrival)
        if cost is None:
            expected = self._predictor.expected(sequence)
            cost = self._cost.of(sequence.prompt_len, expected, sequence.cached)
            self._costs[sequence.arrival] = cost
        return cost
