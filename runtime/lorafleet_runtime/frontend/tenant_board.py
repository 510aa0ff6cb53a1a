"""What this replica knows of its tenants: its own accounts, everybody's counters, and what gateways have admitted.

Fed by the engine; exchanged with gateways, which carry it from replica to replica. Knows no HTTP and no clock."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from lorafleet_runtime.core.fairness.counters import LARGEST, CounterTable, Table
from lorafleet_runtime.protocol import Sharing, TenantRow

MAX_TENANTS = 65_536
MAX_COLUMNS = 4_096
MOST_CELLS = 50_000  # of one message: some two megabytes
MAX_TENANT_NAME = 63
MAX_INCARNATION = 64
FORGET_SECONDS = 60.0


class Usage(msgspec.Struct, frozen=True):
    """What a gateway has done for a tenant since it started; every field only grows. `started` - `finished` run."""

    requests: int = 0
    tokens: int = 0
    started: int = 0
    finished: int = 0
    rejected: int = 0


class GatewayUsage(msgspec.Struct, frozen=True):
    """`sequence` grows while the gateway lives."""

    sequence: int = 0
    tenants: dict[str, Usage] = {}


class Exchange(msgspec.Struct, frozen=True):
    """What a gateway sends, of `docs/contracts.md`."""

    version: int
    since: int = 0
    incarnation: str = ""
    table: Table = msgspec.field(default_factory=Table)
    usage: dict[str, GatewayUsage] = {}


@dataclass(slots=True)
class _Gateway:
    sequence: int = -1
    heard: float = 0.0
    tenants: dict[str, tuple[Usage, int]] = field(default_factory=dict)  # usage, version of its last change


class Nonsense(ValueError):
    """A message that no honest gateway sends; the text says what is wrong with it."""


class TenantBoard:
    """`now` is monotonic seconds. `forward` hands what a gateway brought to the engine."""

    def __init__(self, incarnation: str = "", forward: Callable[[Table], None] = lambda table: None) -> None:
        self.incarnation = incarnation
        self.sharing = Sharing("")
        self.rows: dict[str, TenantRow] = {}
        self.forward = forward
        self._table = CounterTable()
        self._gateways: dict[str, _Gateway] = {}

    def begin(self, incarnation: str) -> Table:
        """Another engine takes the place of the one before, and writes a column of its own. What it has to be told:
        everybody's counters, the earlier engine's among them, so that nobody's service is forgiven."""
        self.incarnation = incarnation
        self.sharing = Sharing(self.sharing.policy)
        self.rows = {}
        return self._table.since(0)

    def took(self, sharing: Sharing) -> None:
        """The engine's news."""
        self.sharing = sharing
        self.rows.update({row.name: row for row in sharing.tenants})
        self._table.merge(sharing.table)

    def counter(self, tenant: str) -> int:
        """Micro-units over the weight, as far as this replica knows."""
        return self._table.counter(tenant)

    def rejected(self, tenant: str) -> int:
        """Requests that gateways have refused over quota."""
        gateways = self._gateways.values()
        return sum(gateway.tenants[tenant][0].rejected for gateway in gateways if tenant in gateway.tenants)

    def names(self) -> list[str]:
        """The tenants that this replica has served, or has heard of."""
        heard = {tenant for gateway in self._gateways.values() for tenant in gateway.tenants}
        return sorted(self.rows.keys() | heard | set(self._table.tenants()))

    def exchange(self, exchange: Exchange, now: float) -> dict[str, object]:
        """Take over what a gateway brings, and answer with what has changed since it last asked. Raises Nonsense; then
        nothing of the message counts."""
        self._check(exchange)
        self._gateways = {n: g for n, g in self._gateways.items() if now - g.heard <= FORGET_SECONDS}
        since = exchange.since if exchange.incarnation == self.incarnation else 0
        # Read before it is merged: a gateway need not hear what it has just said. But folding makes new offsets.
        before = self._table.version
        news, at = self._table.part(since, MOST_CELLS)
        usage = {name: self._usage_since(gateway, since) for name, gateway in self._gateways.items()}
        if self._table.merge(exchange.table) or exchange.table.retired:
            self.forward(exchange.table)
        if exchange.table.retired:
            before = self._table.version
            news, at = self._table.part(since, MOST_CELLS)
        for name, told in exchange.usage.items():
            self._hear(name, told, now)
        return {"at": self._table.version if at == before else at, "table": news, "usage": usage}

    def _check(self, exchange: Exchange) -> None:
        if exchange.version != 1:
            raise Nonsense(f"version is {exchange.version}, and this runtime speaks version 1")
        table = exchange.table
        columns = [*table.service.values(), *table.refunds.values(), table.offsets]
        tenants = set().union(*columns, *(usage.tenants for usage in exchange.usage.values()))
        names = table.service.keys() | table.refunds.keys() | set(table.retired)
        _bounded("tenants", tenants, self._table.tenants(), MAX_TENANTS)
        _bounded("columns", names, self._table.columns(), MAX_COLUMNS)
        _bounded("gateways", exchange.usage.keys(), self._gateways.keys(), MAX_COLUMNS)
        for name in tenants:  # "" is who asks a replica without a gateway
            if len(name) > MAX_TENANT_NAME:
                raise Nonsense(f"the tenant's name {name!r:.80} has more than {MAX_TENANT_NAME} characters")
        for name in (*names, *exchange.usage):
            if not 0 < len(name) <= MAX_INCARNATION:
                raise Nonsense(f"the incarnation {name!r:.80} must have 1 to {MAX_INCARNATION} characters")
        for column in columns:
            for tenant, value in column.items():
                _in_range(f"tenant {tenant!r}", value)
        for gateway in exchange.usage.values():
            for tenant, usage in gateway.tenants.items():
                for value in msgspec.structs.astuple(usage):
                    _in_range(f"usage of tenant {tenant!r}", value)
        for which, kind in enumerate((table.service, table.refunds)):
            for name in kind.keys() & self._table.columns():
                if name.split(".")[0] == self.incarnation:  # nobody knows more of them than this replica itself
                    self._check_own(name, kind[name], which)

    def _check_own(self, column: str, entries: dict[str, int], which: int) -> None:
        for tenant, value in entries.items():
            known = self._table.given(column, tenant)[which]
            if value > known:
                raise Nonsense(f"tenant {tenant!r}: this replica has given {known}, not {value}")

    def _hear(self, name: str, usage: GatewayUsage, now: float) -> None:
        gateway = self._gateways.setdefault(name, _Gateway(heard=now))
        if usage.sequence > gateway.sequence:
            gateway.sequence, gateway.heard = usage.sequence, now
        for tenant, heard in usage.tenants.items():
            known, _ = gateway.tenants.get(tenant, (Usage(), 0))
            merged = Usage(*map(max, msgspec.structs.astuple(known), msgspec.structs.astuple(heard)))
            if merged != known or tenant not in gateway.tenants:
                gateway.tenants[tenant] = (merged, self._table.tick())

    def _usage_since(self, gateway: _Gateway, since: int) -> GatewayUsage:
        changed = {tenant: usage for tenant, (usage, version) in gateway.tenants.items() if version > since}
        return GatewayUsage(gateway.sequence, changed)


def shown(board: TenantBoard) -> Iterator[dict[str, object]]:
    """The tenants as `GET /admin/tenants` has them."""
    for name in board.names():
        row = board.rows.get(name, TenantRow(name, 1.0))
        yield {
            "name": name,
            "weight": row.weight,
            "service": row.service,
            "promptTokens": row.prompt_tokens,
            "outputTokens": row.output_tokens,
            "counter": board.counter(name),
            "running": row.running,
            "waiting": row.waiting,
            "rejected": board.rejected(name),
            "aborted": row.aborted,
        }


def _bounded(what: str, brought: Iterable[str], known: Collection[str], most: int) -> None:
    count = len(known) + sum(name not in known for name in brought)
    if count > most:
        raise Nonsense(f"{count} {what} are more than {most}")


def _in_range(what: str, value: int) -> None:
    if not 0 <= value <= LARGEST:
        raise Nonsense(f"{what}: {value} is not in 0..2^62")
