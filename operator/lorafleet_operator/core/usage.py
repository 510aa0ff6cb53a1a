"""What tenants have received, from what replicas tell of them (docs/contracts.md, GET /admin/tenants). Pure.

Replicas count service in micro-units; so does everything here but `TenantUsage`, which is for people.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lorafleet_operator.core.identity import Ref

MICRO = 1_000_000
MODELS = 16


@dataclass(frozen=True, slots=True)
class Share:
    """One tenant on one replica. `service` and tokens are what the replica itself gave since it started; `counter` is
    of the whole fleet of its base model; `rejected` is what it has heard that gateways refused."""

    service: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    counter: int = 0
    running: int = 0
    waiting: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class Report:
    """What one process tells. `floor` is the counter of the least served tenant that waits, as the process sees it."""

    incarnation: str
    floor: int = 0
    shares: Mapping[str, Share] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """The last report of a replica. Of one that does not serve now only totals count: nothing runs or waits there."""

    base: Ref
    report: Report
    serves: bool = True


@dataclass(frozen=True, slots=True)
class Given:
    """What a tenant got in all."""

    service: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0

    def plus(self, share: Share) -> Given:
        return Given(
            self.service + share.service,
            self.prompt_tokens + share.prompt_tokens,
            self.output_tokens + share.output_tokens,
        )


Past = Mapping[tuple[str, Ref], Given]
"""What processes gave that are no more, by tenant and base model."""


@dataclass(frozen=True, slots=True)
class ModelUsage:
    """One tenant on one base model, in whole units of service. Without a replica that serves nobody knows a counter.

    `lag` is the counter less the floor: how much more the tenant has had than the least served one that waits.
    """

    base: Ref
    service: int
    running: int = 0
    waiting: int = 0
    counter: int | None = None
    lag: int | None = None


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """One tenant on all replicas of all base models; `models` are those that gave it most, in that order."""

    prompt_tokens: int = 0
    output_tokens: int = 0
    service: int = 0
    rejected: int = 0
    running: int = 0
    waiting: int = 0
    models: tuple[ModelUsage, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What is known of all tenants. `as_of` is when replicas told it, RFC 3339; empty before any did."""

    as_of: str = ""
    tenants: Mapping[str, TenantUsage] = field(default_factory=dict)


def with_ended(past: Past, base: Ref, report: Report, tenants: Iterable[str]) -> dict[tuple[str, Ref], Given]:
    """`past` and what a process gave that has ended; only these tenants count."""
    wanted = set(tenants)
    found = {key: given for key, given in past.items() if key[0] in wanted}
    for tenant in report.shares.keys() & wanted:
        found[tenant, base] = found.get((tenant, base), Given()).plus(report.shares[tenant])
    return found


def fleet_floor(floors: Iterable[tuple[float, bool]]) -> float:
    """The floor of a base model from those of its replicas, each with whether anybody waits there.

    Who waits is known best where it waits; a replica without a queue has only its last floor to tell.
    """
    found = list(floors)
    waited = [floor for floor, waits in found if waits]
    return min(waited) if waited else max((floor for floor, _ in found), default=0)


def gathered(told: Iterable[Told], past: Past) -> dict[str, TenantUsage]:
    """Every tenant that any replica has told of."""
    by_base: dict[Ref, list[Told]] = defaultdict(list)
    for each in told:
        by_base[each.base].append(each)
    given: dict[str, dict[Ref, Given]] = defaultdict(dict)
    for (tenant, base), before in past.items():
        given[tenant][base] = before
    shares: dict[tuple[str, Ref], list[Share]] = defaultdict(list)
    floors: dict[Ref, int] = {}
    for base, reports in by_base.items():
        serving = [each.report for each in reports if each.serves]
        floors[base] = int(fleet_floor((r.floor, any(s.waiting for s in r.shares.values())) for r in serving))
        for each in reports:
            for tenant, share in each.report.shares.items():
                given[tenant][base] = given[tenant].get(base, Given()).plus(share)
                if each.serves:
                    shares[tenant, base].append(share)
    return {
        tenant: _tenant_usage(bases, {base: shares[tenant, base] for base in bases if (tenant, base) in shares}, floors)
        for tenant, bases in given.items()
    }


def _tenant_usage(
    given: Mapping[Ref, Given], shares: Mapping[Ref, list[Share]], floors: Mapping[Ref, int]
) -> TenantUsage:  # fmt: skip
    models = [_model_usage(base, had.service, shares.get(base, []), floors.get(base, 0)) for base, had in given.items()]
    models.sort(key=lambda model: (-model.service, model.base))
    return TenantUsage(
        prompt_tokens=sum(had.prompt_tokens for had in given.values()),
        output_tokens=sum(had.output_tokens for had in given.values()),
        service=_whole(sum(had.service for had in given.values())),
        # Every gateway tells every replica of all its refusals.
        rejected=max((share.rejected for here in shares.values() for share in here), default=0),
        running=sum(model.running for model in models),
        waiting=sum(model.waiting for model in models),
        models=tuple(models[:MODELS]),
    )


def _model_usage(base: Ref, service: int, shares: list[Share], floor: int) -> ModelUsage:
    running, waiting = sum(s.running for s in shares), sum(s.waiting for s in shares)
    if not shares:
        return ModelUsage(base, _whole(service))
    counter = max(share.counter for share in shares)  # it merges by maximum: the highest has heard the most
    return ModelUsage(base, _whole(service), running, waiting, _whole(counter), _whole(counter - floor))


def _whole(micro: int) -> int:
    return round(micro / MICRO)
