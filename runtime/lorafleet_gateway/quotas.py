"""Tenants' quotas where requests come in: a ticket for each request, and what is told to other gateways.

Knows no bytes. Everything runs on one event loop, so that a look at a limit and the taking from it are one step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from msgspec import Raw

from lorafleet_gateway.core.estimate import Estimate, estimate
from lorafleet_gateway.core.fleet_model import Quota, Tenant
from lorafleet_gateway.core.quota import Account, Refusal, Reservation, Use
from lorafleet_gateway.core.shared_use import OwnUse, SharedUse
from lorafleet_gateway.errors import ApiError
from lorafleet_gateway.metrics import Metrics

_T = TypeVar("_T")


class Quotas:
    """The accounts of all tenants. `clock` is monotonic seconds, `gateway` this process's incarnation."""

    def __init__(self, gateway: str, metrics: Metrics, clock: Callable[[], float]) -> None:
        self.gateway = gateway
        self.own = OwnUse()
        self._others = SharedUse(gateway)
        self._metrics = metrics
        self.clock = clock
        self._accounts: dict[str, Account] = {}

    def follow(self, tenants: Mapping[str, Tenant]) -> None:
        """These tenants and their limits from now on. What runs stays counted, also for a tenant that is gone; it has
        an account for as long as this process lives, because what is told of it must not shrink."""
        now = self.clock()
        for name in self._accounts.keys() | tenants.keys():
            quota = tenants[name].quota if name in tenants else Quota()
            if name in self._accounts:
                self._accounts[name].follow(quota, now)
            else:
                self._accounts[name] = Account(quota, now)

    def enter(self, tenant: str) -> Ticket:
        """A ticket for a request whose body has not been read, so that one more than may run costs its headers only.

        Raises ApiError 429 when too many run, or too many came within the last minute."""
        account = self._accounts[tenant]
        self.check(tenant, account.enter(self._others.running(tenant), self.clock()))
        return Ticket(self, tenant, account)

    def told(self, since: int) -> dict[str, Use]:
        """What somebody must be told who knows this gateway's use up to the sequence `since`."""
        return {name: self._accounts[name].told() for name in self.own.since(since)}

    def hear(self, gateway: str, sequence: int, uses: Mapping[str, Use], *, whole: bool) -> None:
        """What another gateway has admitted is taken from the buckets here; see `SharedUse.hear`."""
        now = self.clock()
        known = {tenant: use for tenant, use in uses.items() if tenant in self._accounts}
        for tenant, (requests, tokens) in self._others.hear(gateway, sequence, known, now, whole=whole).items():
            self._accounts[tenant].took_elsewhere(requests, tokens, now)

    def forget(self) -> None:
        """Drop gateways that have been silent for too long."""
        self._others.forget(self.clock())

    def check(self, tenant: str, outcome: Refusal | _T) -> _T:
        """What came of asking an account. Raises ApiError 429 for a refusal."""
        self.own.touch(tenant)
        if not isinstance(outcome, Refusal):
            return outcome
        self._metrics.quota_rejected.labels(tenant, outcome.limit).inc()
        message = (
            f"Tenant `{tenant}` is over its quota: `{outcome.limit}` is {outcome.value}, of which {outcome.used} are "
            f"used, and this request needs {outcome.asked}. Try again in {outcome.seconds} s."
        )
        raise ApiError(429, message, "quota_exceeded", outcome.limit, retry_after=outcome.seconds)


class Ticket:
    """One admitted request. `reserve` once its body is known; then the first of `settle` and `give_back` counts."""

    def __init__(self, quotas: Quotas, tenant: str, account: Account) -> None:
        self._quotas = quotas
        self._tenant = tenant
        self._account = account
        self._estimate: Estimate | None = None
        self._reserved: Reservation | None = None
        self._open = True

    def reserve(self, fields: Mapping[str, Raw]) -> None:
        """Take what the body asks for. Raises ApiError 429; then the caller gives the ticket back."""
        if self._account.counts_tokens:
            self._estimate = estimate(fields, self._account.average_output)
        tokens = self._estimate.total if self._estimate else 0
        self._reserved = self._quotas.check(self._tenant, self._account.reserve(tokens, self._quotas.clock()))

    def settle(self, prompt: int | None, output: int | None) -> None:
        """A replica has had the request. What it did not say is as estimated: of the `prompt` alone, or of all when it
        never told its `output` (a whole answer for which nobody waited)."""
        if not self._close():
            return
        assert self._reserved is not None, "reserve() first"
        if output is not None:
            if prompt is None:
                prompt = self._estimate.prompt if self._estimate else 0
            self._account.settle(self._reserved, prompt + output, self._quotas.clock())
            if self._estimate is not None:
                self._account.learn(output / self._estimate.choices)

    def give_back(self) -> None:
        """No replica has had the request, or it refused it as invalid: it takes nothing from the quota."""
        if self._close() and self._reserved is not None:
            self._account.give_back(self._reserved, self._quotas.clock())

    def _close(self) -> bool:
        was_open, self._open = self._open, False
        if was_open:
            self._account.leave()
            self._quotas.own.touch(self._tenant)
        return was_open
