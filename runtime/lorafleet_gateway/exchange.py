"""`POST /fairness` with every ready replica, again and again: counters, quota use and load travel by it.

Replicas of one base model never talk to each other: each gateway carries what one says to all others. A replica that
does not answer, or knows no exchange, counts as having no more than our own requests, and serves as before."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import structlog

from lorafleet_gateway.core.counters import MOST_CELLS, Counters
from lorafleet_gateway.core.fairness_messages import Answer, Fairness, decode_answer, encode_request
from lorafleet_gateway.core.fleet_model import READY, BaseKey, Replica, ReplicaKey
from lorafleet_gateway.errors import CountersError, Lost
from lorafleet_gateway.relay import Services

_MICRO = 1e6  # of a unit of service
_REFUSED = {400: "refused", 404: "unsupported", 413: "refused"}


@dataclass(slots=True)
class _Peer:
    """What a replica and this gateway have told each other; all of it is void when the replica is another process."""

    heard: float  # of its last answer; before there is one, when it was first seen
    incarnation: str = ""
    since: int = 0
    sent: int = 0  # version of the table that it has
    sent_use: int = 0  # sequence of our use that it has
    fairness: Fairness = field(default_factory=Fairness)
    complaints: set[str] = field(default_factory=set)
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Base:
    counters: Counters = field(default_factory=Counters)
    peers: dict[ReplicaKey, _Peer] = field(default_factory=dict)


class Exchange:
    """One table per base model, merged from all its replicas, and the conversations with them."""

    def __init__(self, services: Services) -> None:
        self._fleet = services.fleet
        self._upstream = services.upstream
        self._loads = services.loads
        self._quotas = services.quotas
        self._metrics = services.metrics.fairness
        self._limits = services.limits
        self._log = structlog.get_logger("lorafleet_gateway.exchange")
        self._bases: dict[BaseKey, _Base] = {}

    async def run(self) -> None:
        """Exchange every `load_seconds` until cancelled, with many replicas less often. One slow replica delays no
        other: it is asked again when it has answered."""
        try:
            while True:
                self._round(time.monotonic())
                peers = sum(len(base.peers) for base in self._bases.values())
                await asyncio.sleep(max(self._limits.load_seconds, peers / self._limits.exchanges_per_second))
        finally:
            tasks = [peer.task for base in self._bases.values() for peer in base.peers.values() if peer.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _round(self, now: float) -> None:
        self._quotas.own.sequence += 1
        self._quotas.forget()
        fleet = self._fleet.fleet
        for name in self._bases.keys() - {part.base.key for part in fleet.bases}:
            for peer in self._bases.pop(name).peers.values():
                _cancel(peer)
            self._metrics.forget_base("/".join(name))
        for part in fleet.bases:
            base = self._bases.setdefault(part.base.key, _Base())
            ready = {replica.key: replica for replica in part.document.replicas if replica.state == READY}
            for gone in base.peers.keys() - ready.keys():
                _cancel(base.peers.pop(gone))
            for key, replica in ready.items():
                peer = base.peers.setdefault(key, _Peer(now))
                if peer.task is None or peer.task.done():
                    peer.task = asyncio.create_task(self._exchange(part.base.key, base, replica, peer))
            living = {replica.incarnation for replica in part.document.replicas}
            living.update(peer.incarnation for peer in base.peers.values())
            living.update(column for column in base.counters.columns if column.split(".")[0] in living)  # a long life's
            for column in base.counters.retire_quiet(living, now, self._limits.retire_seconds):
                self._log.info("the counters of a replica that is gone are folded", incarnation=column)
            self._show("/".join(part.base.key), base, now)

    async def _exchange(self, key: BaseKey, base: _Base, replica: Replica, peer: _Peer) -> None:
        use, own = self._quotas.own.sequence, peer.incarnation or replica.incarnation
        table, version = base.counters.part(peer.sent, MOST_CELLS, without=own)
        body = encode_request(
            peer.since, peer.incarnation, table, self._quotas.gateway, use, self._quotas.told(peer.sent_use)
        )
        result = "failed"
        try:
            status, data = await self._upstream.exchange(replica, body)
            if status == 200:
                self._take(base, peer, decode_answer(data), version, use, key, replica)
                result = "ok"
            else:
                result = _REFUSED.get(status, result)
                if result != "unsupported":
                    self._complain(replica, peer, f"HTTP {status}", data[:200].decode(errors="replace"))
        except Lost as failure:
            self._complain(replica, peer, "failed", str(failure))
        except CountersError as error:
            result = "invalid"
            self._metrics.rejected_tables.labels("/".join(key)).inc()
            self._complain(replica, peer, error.kind, str(error))
        if result != "ok":
            self._loads.report(key, replica.key, 0)
        self._metrics.exchanges.labels("/".join(key), result).inc()

    def _take(
        self, base: _Base, peer: _Peer, answer: Answer, version: int, use: int, key: BaseKey, replica: Replica
    ) -> None:
        """Believe an answer to what was sent at this `version` and sequence of `use`."""
        refusal = base.counters.room_for(answer.table)
        if refusal:
            raise CountersError("too many", refusal)
        restarted = bool(peer.incarnation) and answer.incarnation != peer.incarnation
        whole = peer.since == 0 or restarted
        base.counters.take(answer.table)
        for gateway, told in answer.usage.items():
            self._quotas.hear(gateway, told.sequence, told.tenants, whole=whole)
        self._loads.report(key, replica.key, answer.load.running + answer.load.waiting)
        peer.heard, peer.fairness = time.monotonic(), answer.fairness
        peer.incarnation, peer.since = answer.incarnation, answer.at
        # Another process than the one that had been told the rest has only what was sent now.
        peer.sent, peer.sent_use = (0, 0) if restarted else (version, use)

    def _show(self, label: str, base: _Base, now: float) -> None:
        told = [peer.fairness for peer in base.peers.values()]
        age = max((now - peer.heard for peer in base.peers.values()), default=0.0)
        bound = sum(one.bound for one in told) + 2 * sum(one.rate for one in told) * age
        self._metrics.fleet_bound.labels(label).set(bound / _MICRO)
        self._metrics.fleet_spread.labels(label).set(max((one.spread for one in told), default=0) / _MICRO)
        self._metrics.exchange_age.labels(label).set(age)

    def _complain(self, replica: Replica, peer: _Peer, kind: str, why: str) -> None:
        """One line per replica and kind: it is asked five times a second."""
        if kind not in peer.complaints:
            peer.complaints.add(kind)
            self._log.warning("no exchange of counters", replica=replica.name, kind=kind, why=why)


def _cancel(peer: _Peer) -> None:
    if peer.task is not None:
        peer.task.cancel()
