"""How tenants share the replicas of each base model, from the replicas' metrics. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lorafleet_operator.cli.live_table import Exposition, Sample
from lorafleet_operator.core.usage import fleet_floor

PREFIX = "lorafleet_fairness_"
TOKENS = ("prompt", "output")


@dataclass(frozen=True, slots=True)
class Line:
    """One tenant on one base model. `tokens` by replica, for rates."""

    tenant: str
    weight: float = 1.0
    service: float = 0.0
    share: float = 0.0
    counter: float = 0.0
    lag: float = 0.0
    waiting: float = 0.0
    running: float = 0.0
    rejected: float = 0.0
    tokens: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Board:
    """One base model; `lines` with the most service first. `answered` of its `replicas` told their numbers."""

    namespace: str
    base: str
    replicas: int
    answered: int
    floor: float = 0.0
    spread: float = 0.0
    bound: float = 0.0
    jain: float = 1.0
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class _Told:
    """One replica's numbers: of the base model by name, and of each tenant by name."""

    replica: str
    whole: Mapping[str, float]
    tenants: Mapping[str, Mapping[str, float]]


def boards(found: Iterable[Exposition]) -> list[Board]:
    """Every base model, also one of which no replica answers."""
    by_base: dict[tuple[str, str], list[Exposition]] = defaultdict(list)
    for each in found:
        by_base[each.namespace, each.base].append(each)
    return [_board(namespace, base, by_base[namespace, base]) for namespace, base in sorted(by_base)]


def rate(line: Line, before: Line | None, known: Iterable[str], seconds: float) -> float:
    """Tokens a second since `before`. `known` are the replicas that were looked at then: a new one may be old, and what
    it gave before is no rate. One that started again counts from nothing."""
    earlier: Mapping[str, float] = before.tokens if before is not None else {}
    gained = 0.0
    for replica in line.tokens.keys() & set(known):
        now, then = line.tokens[replica], earlier.get(replica, 0.0)
        gained += now - then if now >= then else now
    return gained / seconds


def _board(namespace: str, base: str, found: list[Exposition]) -> Board:
    told = [_told(each.replica, samples) for each in found if (samples := each.samples())]
    floor = fleet_floor(
        (each.whole.get("floor", 0.0), any(t.get("waiting", 0.0) > 0 for t in each.tenants.values())) for each in told
    )
    names = {tenant for each in told for tenant in each.tenants}
    lines = [_line(tenant, told, floor) for tenant in names]
    total = sum(line.service for line in lines)
    shared = [_with_share(line, total) for line in lines]
    return Board(
        namespace, base, len(found), len(told), floor,
        spread=max((each.whole.get("spread", 0.0) for each in told), default=0.0),
        bound=max((each.whole.get("bound", 0.0) for each in told), default=0.0),
        jain=min((each.whole.get("jain", 1.0) for each in told), default=1.0),
        lines=tuple(sorted(shared, key=lambda line: (-line.service, line.tenant))),
    )  # fmt: skip


def _line(tenant: str, told: list[_Told], floor: float) -> Line:
    """Replicas add up, except in what each knows of the whole fleet: there the highest has heard the most."""
    mine = {each.replica: each.tenants[tenant] for each in told if tenant in each.tenants}

    def summed(name: str) -> float:
        return sum(values.get(name, 0.0) for values in mine.values())

    def highest(name: str, default: float = 0.0) -> float:
        return max(values.get(name, default) for values in mine.values())

    return Line(
        tenant, highest("weight", 1.0), summed("service_total"), 0.0, highest("counter"), highest("counter") - floor,
        summed("waiting"), summed("running"), highest("rejected_total"),
        {replica: sum(values.get(f"tokens_total.{kind}", 0.0) for kind in TOKENS) for replica, values in mine.items()},
    )  # fmt: skip


def _with_share(line: Line, total: float) -> Line:
    return replace(line, share=line.service / total if total else 0.0)


def _told(replica: str, samples: Iterable[Sample]) -> _Told:
    whole: dict[str, float] = {}
    tenants: dict[str, dict[str, float]] = defaultdict(dict)
    for sample, labels, value in samples:
        if not sample.startswith(PREFIX):
            continue
        name = sample.removeprefix(PREFIX) + (f".{labels['kind']}" if "kind" in labels else "")
        if "tenant" in labels:
            tenants[labels["tenant"]][name] = value
        else:
            whole[name] = value
    return _Told(replica, whole, tenants)
