"""Tenants' counters on many replicas at once: a join-semilattice, merged by maximum [vtc 17].

A tenant's counter is what every replica has charged it, less what was refunded, plus a lift offset:

    c[i] = Σ_q service[q][i] - Σ_q refunds[q][i] + offset[i]

Column q belongs to one replica incarnation, which alone writes it, and only grows. A lift raises the offset to
`floor - (service - refunds)` and offsets merge by maximum: two replicas that lift one tenant at once do not charge it
twice (adding lifts up breaks the bound four to eight times over). So merging is commutative, associative and
idempotent: exchanges may be lost, repeated and reordered. All numbers are integers, in micro-units over the weight.

Memory: a column is folded into the offsets once its replica is gone for good (`retire`), which is exact as soon as
everybody has its last value: whoever folds it later, with more lifts, only raises the maximum.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

LARGEST = 2**62
"""No number on the wire is larger; a column that would be goes on in a new one."""

Columns = dict[str, dict[str, int]]


@dataclass(slots=True)
class Table:
    """A whole table, or the part of one that changed. Micro-units by column and tenant."""

    service: Columns = field(default_factory=dict)
    refunds: Columns = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.service or self.refunds or self.offsets or self.retired)


class CounterTable:
    """One party's view. `own` is the column that it writes; "" for one who only passes on what others say.

    `version` grows with every change; `since(version)` is what changed after it. Charges come with every token, and are
    given versions when somebody asks."""

    def __init__(self, own: str = "") -> None:
        self.own = own
        self._version = 0
        self._spent: dict[str, None] = {}  # tenants charged in the own column whose versions are still to be given
        self._lives = 0
        self._first = own
        self._service: Columns = {}
        self._refunds: Columns = {}
        self._offsets: dict[str, int] = {}
        self._retired: set[str] = set()
        self._counters: dict[str, int] = {}
        self._log: OrderedDict[tuple[str, str, str], int] = OrderedDict()  # entry -> version of its last change

    @property
    def version(self) -> int:
        self._book()
        return self._version

    def tick(self) -> int:
        """A new version, for something that somebody else keeps beside the table."""
        self._book()
        self._version += 1
        return self._version

    def counter(self, tenant: str) -> int:
        """0 for a tenant that nobody has charged."""
        return self._counters.get(tenant, 0)

    def tenants(self) -> Collection[str]:
        """Everybody who has been charged or lifted."""
        return self._counters.keys()

    def columns(self) -> Collection[str]:
        """The columns that are not folded."""
        return self._service.keys() | self._refunds.keys()

    def own_service(self, tenant: str) -> int:
        """What this party itself has charged a tenant in its present column."""
        own = self._service.get(self.own)
        return own.get(tenant, 0) if own else 0

    def given(self, column: str, tenant: str) -> tuple[int, int]:
        """Service and refunds of a tenant in a column, as far as they are known here."""
        return self._service.get(column, {}).get(tenant, 0), self._refunds.get(column, {}).get(tenant, 0)

    def spend(self, tenant: str, amount: int) -> None:
        """Charge; `amount` ≥ 0."""
        if amount <= 0:
            return
        entries = self._service.setdefault(self.own, {})
        value = entries.get(tenant, 0) + amount
        if value > LARGEST:
            self.begin_column()
            entries, value = self._service.setdefault(self.own, {}), amount
        # `_grow`, without asking again what is known: this runs for every token.
        entries[tenant] = value
        self._counters[tenant] = self._counters.get(tenant, 0) + amount
        self._spent[tenant] = None

    def refund(self, tenant: str, amount: int) -> None:
        """Give back a charge for what was not executed; `amount` ≥ 0."""
        before = self._refunds.get(self.own, {}).get(tenant, 0)
        self._grow("refunds", self._refunds, self.own, tenant, before + amount)

    def lift(self, tenant: str, floor: int) -> bool:
        """Raise a counter to `floor`; False when it is there already: a lift forgives nothing."""
        missing = floor - self.counter(tenant)
        if missing <= 0:
            self._counters.setdefault(tenant, self.counter(tenant))
            return False
        self._offset(tenant, self._offsets.get(tenant, 0) + missing)
        return True

    def merge(self, other: Table) -> set[str]:
        """Take over what another party knows; the tenants whose counters changed."""
        before = self.version
        for column in other.retired:
            self.retire(column)
        folded: dict[str, int] = {}
        for sign, name, mine, theirs in (
            (1, "service", self._service, other.service),
            (-1, "refunds", self._refunds, other.refunds),
        ):
            for column, entries in theirs.items():
                for tenant, value in entries.items():
                    if column in self._retired:
                        folded[tenant] = folded.get(tenant, 0) + sign * value
                    else:
                        self._grow(name, mine, column, tenant, value)
        # Who knows more of a folded column than was folded here is heard even if it does not say its offset: what it
        # says is at least that much.
        for tenant in other.offsets.keys() | folded.keys():
            self._offset(tenant, other.offsets.get(tenant, 0) + max(0, folded.get(tenant, 0)))
        return {tenant for _, _, tenant in self._entries(before)} - {""}

    def retire(self, column: str) -> None:
        """Fold a column into the offsets, and never take it again. Whose own column is retired, by a mistake of others,
        goes on in a new one."""
        if column in self._retired:
            return
        self._book()
        self._retired.add(column)
        self._touch(("retired", column, ""))
        service, refunds = self._service.pop(column, {}), self._refunds.pop(column, {})
        for tenant in service.keys() | refunds.keys():
            value = service.get(tenant, 0) - refunds.get(tenant, 0)
            self._counters[tenant] -= value
            self._log.pop(("service", column, tenant), None)
            self._log.pop(("refunds", column, tenant), None)
            self._offset(tenant, self._offsets.get(tenant, 0) + value)
        if column == self.own:
            self._name_column()

    def begin_column(self) -> None:
        """Close the own column, which would outgrow the wire, and open the next."""
        self._name_column()

    def since(self, version: int) -> Table:
        """What changed after `version`; everything for 0. A column's service to a tenant and what it was refunded go
        together: whoever has folded the column needs the difference."""
        return self.part(version, len(self._log) + len(self._spent))[0]

    def part(self, version: int, most: int) -> tuple[Table, int]:
        """The first `most` entries that changed after `version`, and the version up to which that is all."""
        entries = self._entries(version)
        until = self._version if len(entries) <= most else self._log[entries[most - 1]]
        table = Table()
        for name, column, tenant in entries[:most]:
            if name == "retired":
                table.retired.append(column)
            elif name == "offset":
                table.offsets[tenant] = self._offsets[tenant]
            else:
                for mine, theirs in ((self._service, table.service), (self._refunds, table.refunds)):
                    if tenant in mine.get(column, {}):
                        theirs.setdefault(column, {})[tenant] = mine[column][tenant]
        return table, until

    def shift(self, amount: int) -> None:
        """Add to every counter. Only for a table that nobody else has seen: it tells relative order alone, so that a
        constant changes no decision."""
        for tenant in list(self._counters):
            self._offsets[tenant] = self._offsets.get(tenant, 0) + amount
            self._counters[tenant] += amount
            self._touch(("offset", "", tenant))

    def _book(self) -> None:
        for tenant in self._spent:
            self._touch(("service", self.own, tenant))
        self._spent.clear()

    def _name_column(self) -> None:
        self._book()
        self._lives += 1
        self.own = f"{self._first}.{self._lives}"

    def _grow(self, name: str, columns: Columns, column: str, tenant: str, value: int) -> None:
        entries = columns.setdefault(column, {})
        more = value - entries.get(tenant, 0)
        if more > 0:
            entries[tenant] = value
            self._counters[tenant] = self.counter(tenant) + (more if name == "service" else -more)
            self._touch((name, column, tenant))

    def _offset(self, tenant: str, value: int) -> None:
        value = min(value, LARGEST)  # nobody would take more
        more = value - self._offsets.get(tenant, 0)
        if more > 0:
            self._offsets[tenant] = value
            self._counters[tenant] = self.counter(tenant) + more
            self._touch(("offset", "", tenant))

    def _touch(self, entry: tuple[str, str, str]) -> None:
        self._version += 1
        self._log[entry] = self._version
        self._log.move_to_end(entry)

    def _entries(self, version: int) -> list[tuple[str, str, str]]:
        self._book()
        found = []
        for entry, changed in reversed(self._log.items()):
            if changed <= version:
                break
            found.append(entry)
        return found[::-1]
