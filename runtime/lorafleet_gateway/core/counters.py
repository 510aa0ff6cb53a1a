"""One base model's service counters as this gateway knows them: a table that merges by maximum.

A cell is a column (an incarnation of a replica) of service or of refunds for one tenant, or a tenant's offset; a column
has one writer and only grows. Merging takes the greater value of each cell, so that it does not matter how often, in
what order or by which way a value arrives, nor whether a column or only its changed cells do. A tenant's counter is its
service, less its refunds, plus its offset.

Folding. The column of a replica that is gone is added to the offsets and its name `retired`, never to be taken again;
otherwise every restart would leave a column for ever. Whoever hears of a retired column that it still has folds its own
value of it and takes the greater offset; a value that arrives where the column is folded is not taken, because its
sender is about to fold it and to tell the sum.

That keeps every counter exact if all tables have the column's last value when they fold it: then all add the same
number to the same offset, whoever folds first and however they meet. A gateway therefore folds only what has not
changed for ten minutes, some thousand exchanges. A table that was cut off for so long folds an older value, and of two
different sums the greater stays: what is lost, in the tenant's favour, is at most the difference of the two values, and
which sum stays may depend on who met first. No counter falls by folding, and all tables come to be equal even then."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

MOST = 2**62  # micro-units of service; sums stop there
MOST_TENANTS = 65_536
MOST_COLUMNS = 4_096  # living ones, of one base model
MOST_RETIRED = 65_536
MOST_CELLS = 50_000  # of one message: some two megabytes

Amount = Annotated[int, Meta(ge=0, le=MOST)]
Name = Annotated[str, Meta(max_length=63)]
Incarnation = Annotated[str, Meta(min_length=1, max_length=64)]
_Row = Mapping[Name, Amount]  # per tenant
_Cell = tuple[str, str, str]  # kind, column, tenant; the offsets' column is ""


class Table(msgspec.Struct, frozen=True):
    """Some cells, or all, as they travel: service and refunds by column, and the rest."""

    service: Mapping[Incarnation, _Row] = {}
    refunds: Mapping[Incarnation, _Row] = {}
    offsets: _Row = {}
    retired: tuple[Incarnation, ...] = ()

    def cells(self) -> Iterator[tuple[_Cell, int]]:
        """Every cell with its value."""
        for kind, columns in (("service", self.service), ("refunds", self.refunds)):
            for column, row in columns.items():
                for tenant, value in row.items():
                    yield (kind, column, tenant), value
        for tenant, value in self.offsets.items():
            yield ("offsets", "", tenant), value


class Counters:
    """The merged table, and when each cell last changed."""

    def __init__(self) -> None:
        self.version = 0  # of the newest change
        self._cells: dict[_Cell, tuple[int, int]] = {}  # value and version, oldest change first
        self._tenants: set[str] = set()
        self._columns: set[str] = set()
        self._retired: dict[str, int] = {}  # name -> version
        self._quiet_since: dict[str, float] = {}  # columns of no living replica

    @property
    def columns(self) -> Collection[str]:
        """Those that are not folded."""
        return self._columns

    def room_for(self, table: Table) -> str:
        """Why the table must not be taken, "" when it may: one replica's nonsense must not fill our memory."""
        tenants = {cell[2] for cell, _ in table.cells() if cell[2] not in self._tenants}
        columns = {*table.service, *table.refunds} - self._columns - self._retired.keys()
        retired = set(table.retired) - self._retired.keys()
        for what, count, most in (
            ("tenants", len(tenants) + len(self._tenants), MOST_TENANTS),
            ("columns", len(columns) + len(self._columns), MOST_COLUMNS),
            ("retired columns", len(retired) + len(self._retired), MOST_RETIRED),
        ):
            if count > most:
                return f"{count} {what}, of which there may be {most}"
        return ""

    def take(self, table: Table) -> None:
        """Merge. A column that the other side has retired is folded first, with the value that it has here."""
        for name in table.retired:
            self.retire(name)
        for cell, value in table.cells():
            if cell[1] not in self._retired:
                self._raise(cell, value)

    def retire(self, column: str) -> None:
        """Fold a column, which need not be there, into the offsets, and never take it again."""
        if column in self._retired:
            return
        self.version += 1
        self._retired[column] = self.version
        if column not in self._columns:
            return
        self._columns.discard(column)
        self._quiet_since.pop(column, None)
        service = self._drop("service", column)
        refunds = self._drop("refunds", column)
        for tenant, value in service.items():
            offset = self._cells.get(("offsets", "", tenant), (0, 0))[0] + max(0, value - refunds.get(tenant, 0))
            self._raise(("offsets", "", tenant), min(offset, MOST))

    def retire_quiet(self, living: Collection[str], now: float, seconds: float) -> list[str]:
        """Retire the columns of no living replica that have not changed for `seconds`; their names."""
        for column in self._columns.intersection(living):
            self._quiet_since.pop(column, None)
        gone = []
        for column in self._columns.difference(living):
            if now - self._quiet_since.setdefault(column, now) >= seconds:
                gone.append(column)
        for column in gone:
            self.retire(column)
        return gone

    def since(self, version: int, *, without: str = "") -> Table:
        """What changed after `version`, all of it after 0; `without` the column that the reader itself writes."""
        return self.part(version, len(self._cells), without=without)[0]

    def part(self, version: int, most: int, *, without: str = "") -> tuple[Table, int]:
        """The first `most` cells that changed after `version`, and the version up to which that is all."""
        news = []
        for cell, (value, changed) in reversed(self._cells.items()):
            if changed <= version:
                break
            news.append((cell, value, changed))
        news.reverse()
        until = self.version if len(news) <= most else news[most - 1][2]
        service: dict[str, dict[str, int]] = {}
        refunds: dict[str, dict[str, int]] = {}
        offsets: dict[str, int] = {}
        for (kind, column, tenant), value, _ in news[:most]:
            if kind == "offsets":
                offsets[tenant] = value
            elif column != without:
                (service if kind == "service" else refunds).setdefault(column, {})[tenant] = value
        retired = tuple(name for name, changed in self._retired.items() if version < changed <= until)
        return Table(service, refunds, offsets, retired), until

    def _raise(self, cell: _Cell, value: int) -> None:
        """The cell's value is at least this."""
        known = self._cells.get(cell)
        if value <= (known[0] if known else 0):
            return
        if known is not None:
            del self._cells[cell]  # so that the newest change is the last one
        else:
            self._tenants.add(cell[2])
        self.version += 1
        self._cells[cell] = (value, self.version)
        if cell[1]:
            self._columns.add(cell[1])
            self._quiet_since.pop(cell[1], None)

    def _drop(self, kind: str, column: str) -> dict[str, int]:
        cells = [cell for cell in self._cells if cell[0] == kind and cell[1] == column]
        return {cell[2]: self._cells.pop(cell)[0] for cell in cells}
