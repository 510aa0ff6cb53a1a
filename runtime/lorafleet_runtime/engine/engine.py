"""The engine: messages in, deltas out, one step at a time.

In-process and synchronous; `engine_process` puts it behind ZeroMQ. Knows token ids and adapter ids; knows no text,
HTTP or API keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from lorafleet_runtime.constraints.constraint import Vocabulary
from lorafleet_runtime.core.fairness.counters import CounterTable
from lorafleet_runtime.core.fairness.policies import FairnessSpec, make_queue
from lorafleet_runtime.core.host_tier import HostTier
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.adapters.disk_tier import DiskTier
from lorafleet_runtime.engine.adapters.loader import AdapterLoader
from lorafleet_runtime.engine.adapters.registry import Adapters
from lorafleet_runtime.engine.flights import Flights, Landed
from lorafleet_runtime.engine.intake import refusal, taken
from lorafleet_runtime.engine.report import Totals, counters, deltas_of, model_info, pages_info
from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.sampling.sampler import Sampled
from lorafleet_runtime.engine.sharing import SharingReport
from lorafleet_runtime.engine.throughput import Throughput
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.linear import Linear
from lorafleet_runtime.protocol import (
    AbortRequest,
    AdapterNews,
    AddRequest,
    Delta,
    EngineState,
    HostInfo,
    LoadAdapter,
    LoadInfo,
    MergeCounters,
    Sharing,
    UnloadAdapter,
)


class Engine:
    """One base model, its adapters and its queue. Not thread-safe: one thread calls everything."""

    def __init__(
        self, runner: Runner, loader: AdapterLoader, limits: Limits, room: Room, host: HostTier, disk: DiskTier,
        max_rank: int, parameters: int, fairness: FairnessSpec, table: CounterTable, steps_at_once: int = 1,
    ) -> None:  # fmt: skip
        self._model = runner.model
        self._limits = limits
        self._max_rank = max_rank
        self._parameters = parameters
        self._room = room
        queue = make_queue(fairness, table, room.prefixes.match)
        self._scheduler = Scheduler(room, limits, queue)
        self._sharing = SharingReport(queue, table, fairness.policy)
        self._runner = runner
        self._adapters = Adapters(room.residency, loader, runner, host, disk, limits.max_model_len)
        self._flights = Flights(runner, steps_at_once)
        self._constraints = runner.constraints
        self._rejected: list[Delta] = []
        self._totals = Totals()
        self._throughput = Throughput()
        self._changed = True

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something without a new message."""
        waits = self._scheduler.has_work or self._constraints.opening
        return waits or bool(self._rejected) or len(self._flights) > 0

    @property
    def only_reads(self) -> bool:
        """Whether all work waits for a disk, so that `step` does nothing before something has been read."""
        return self._scheduler.only_reads and not self._rejected and not len(self._flights)

    @property
    def decoder_config(self) -> DecoderConfig:
        """Sizes of the base model."""
        return self._model.whole

    def linears(self) -> Iterator[Linear]:
        """The base model's products, for benches that time them alone."""
        return self._model.linears()

    @property
    def changed(self) -> bool:
        """Whether the state is news: an adapter's changed, or a request was aborted."""
        return self._changed or self._adapters.changed

    def told(self) -> None:
        """The owner has looked at `state`."""
        self._changed = self._adapters.changed = False

    def wake_on_loaded(self, wake: Callable[[], None]) -> None:
        """Have `wake` called, from another thread, when an adapter's file has been read or a constraint compiled."""
        self._adapters.wake_on_loaded(wake)
        self._constraints.heard = wake

    def close(self) -> None:
        self._adapters.close()
        self._flights.close()
        self._constraints.shut()
        self._runner.close()

    def handle(
        self, message: Vocabulary | AddRequest | AbortRequest | LoadAdapter | UnloadAdapter | MergeCounters
    ) -> None:
        """Take a message. Nothing here waits: loading goes to a thread, rejections come out of the next `step`."""
        match message:
            case Vocabulary():
                self._constraints.speak(message)
            case AddRequest() if message.sampling.constraint is not None:
                self._constraints.open(message)
            case AddRequest():
                self._add(message)
            case AbortRequest():
                self._constraints.close([message.request_id])
                self._scheduler.abort(message.request_id)
                self._adapters.collect()
                self._changed = True
            case LoadAdapter():
                self._adapters.load(message)
            case UnloadAdapter():
                self._adapters.unload(message.adapter)
            case MergeCounters():
                self._sharing.merge(message.table)

    def step(self) -> list[Delta]:
        """Adopt loaded adapters, launch one batch, and return what requests got from the oldest under way: this one,
        or the one before where two may be."""
        self._adopt()
        self._take_opened()
        self._give_up()
        deltas, self._rejected = self._rejected, []
        self._constraints.close(d.request_id for d in deltas)
        batch = self._scheduler.schedule(self._constraints.foreseen())
        self._adapters.fetch(self._scheduler.wanted())
        if batch is None:
            return deltas + self._land() if len(self._flights) else deltas
        plan = self._flights.plan(batch)
        if plan.constrained:  # its step waits for masks, which are asked for by one thread at a time
            while len(self._flights):
                deltas += self._land()
        self._flights.launch(batch, plan)
        if plan.constrained or self._flights.full:
            deltas += self._land()
        return deltas

    def _land(self) -> list[Delta]:
        """What each request got from the oldest step under way."""
        landed = self._flights.land()
        samples = landed.by_request()
        # Their next masks are made from now on: by the time that all cores compute again, many are there.
        self._constraints.prepare(landed.constrained(samples))
        results = self._scheduler.commit(landed.batch, [sample.token_id for sample in landed.samples])
        deltas: list[Delta] = []
        for sequence, made in results:
            deltas += self._deltas(sequence, samples[sequence.request_id][: len(made)])
        self._count(landed, sum(len(made) for _, made in results))
        if ended := [d.request_id for d in deltas if d.finish_reason]:
            self._adapters.collect()
            self._constraints.close(ended)
        return deltas

    def sharing(self) -> Sharing | None:
        """How tenants share, as far as it changed since the last call; None when it did not."""
        return self._sharing.news(time.monotonic())

    def adapter_news(self) -> AdapterNews | None:
        """What has changed among the adapters since the last call; None when nothing has."""
        return self._adapters.news()

    def state(self, *, adapters: bool = True) -> EngineState:
        """What the front end shows; cheap without the adapters."""
        scheduler, memory = self._scheduler, self._adapters.memory
        now = time.perf_counter()
        return EngineState(
            phase="Ready",
            progress=1.0,
            model=model_info(self._model, self._limits.max_model_len, self._max_rank, self._parameters),
            pages=pages_info(self._room, self._runner.page_bytes),
            host=HostInfo(memory.tier.budget, memory.tier.used),
            load=LoadInfo(
                running=scheduler.running,
                waiting=scheduler.waiting,
                waiting_tokens=scheduler.waiting_tokens,
                step_seconds=self._throughput.step_seconds,
                output_tokens_per_second=self._throughput.tokens_per_second(now),
            ),
            counters=counters(self._totals, self._room, scheduler, memory.reads, self._constraints),
            adapters=self._adapters.states() if adapters else [],
        )

    def _adopt(self) -> None:
        came, lost = self._adapters.adopt()
        for adapter in came:
            self._scheduler.came(adapter)
        for adapter, why in lost:
            for sequence in self._scheduler.never_comes(adapter):
                self._reject(sequence.request_id, f"adapter_lost: adapter {adapter.id} cannot be read again: {why}")
            self._adapters.collect()

    def _take_opened(self) -> None:
        ready, refused = self._constraints.opened()
        for request in ready:
            self._add(request)
        for request_id, error in refused:
            self._reject(request_id, error)

    def _add(self, message: AddRequest) -> None:
        match taken(message, self._room.residency, self._scheduler, time.monotonic()):
            case Sequence() as sequence:
                self._scheduler.add(sequence)
            case answer:
                self._rejected.append(answer)

    def _give_up(self) -> None:
        """Answer those whose first token would come too late."""
        queue = self._scheduler.queue
        for sequence in queue.expired(time.monotonic()):
            self._scheduler.abort(sequence.request_id)
            error = "slo_unattainable: the queue is too long for a first token within earlyAbort.ttftSeconds"
            seconds = queue.retry_after()
            self._rejected.append(refusal(sequence.request_id, error, retry_after=seconds))
            self._adapters.collect()

    def _reject(self, request_id: str, error: str) -> None:
        self._rejected.append(refusal(request_id, error))

    def _deltas(self, sequence: Sequence, samples: list[Sampled]) -> list[Delta]:
        if samples[-1].token_id < 0:
            self._scheduler.abort(sequence.request_id)
        return deltas_of(sequence, samples)

    def _count(self, landed: Landed, made: int) -> None:
        self._totals.steps += 1
        self._room.costs.saw_step(landed.seconds, landed.batch.tokens)
        self._totals.prompt_tokens += landed.prompt_tokens
        self._totals.generated += made
        self._throughput.add(time.perf_counter(), landed.seconds, made)
