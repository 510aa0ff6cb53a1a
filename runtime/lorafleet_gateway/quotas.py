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
    """One admitted request: `reserve` once its body is known, `close` at its end.

    `reached` says that a replica has, or has had, the request, and has not refused it. `used` are tokens of the prompt
    and of the answer, None where no replica told."""

    def __init__(self, quotas: Quotas, tenant: str, account: Account) -> None:
        self.reached = False
        self.used: tuple[int | None, int | None] = (None, None)
        self._quotas = quotas
        self._tenant = tenant
        self._account = account
        self._estimate: Estimate | None = None
        self._reserved: Reservation | None = None
        self._open = True

    def reserve(self, fields: Mapping[str, Raw]) -> None:
        """Take what the body asks for. Raises ApiError 429."""
        if self._account.counts_tokens:
            self._estimate = estimate(fields, self._account.average_output)
        tokens = self._estimate.total if self._estimate else 0
        self._reserved = self._quotas.check(self._tenant, self._account.reserve(tokens, self._quotas.clock()))

    def close(self) -> None:
        """The request is over, and counts as what it used; only the first call counts.

        One that no replica had used nothing. Where a replica did not tell the prompt, it is as estimated; where it
        never told the answer (a whole one, for which nobody waited), all stays as it was reserved."""
        if not self._open:
            return
        self._open = False
        self._account.leave()
        self._quotas.own.touch(self._tenant)
        if self._reserved is None:
            return
        prompt, output = self.used
        if not self.reached:
            self._account.give_back(self._reserved, self._quotas.clock())
        elif output is not None:
            if prompt is None:
                prompt = self._estimate.prompt if self._estimate else 0
            self._account.settle(self._reserved, prompt + output, self._quotas.clock())
            if self._estimate is not None:
                self._account.learn(output / self._estimate.choices)
