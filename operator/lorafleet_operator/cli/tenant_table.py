"""`top tenants`: who receives what, base model by base model, as `top` shows processes."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lorafleet_operator.cli.live_table import Exposition
from lorafleet_operator.cli.tenant_metrics import Board, Line, boards, rate

COLUMNS = ("WEIGHT", "SERVICE", "SHARE", "COUNTER", "LAG", "WAITING", "RUNNING", "TOKENS/S", "REJECTED")
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class TenantTable:
    """A view that remembers the last look, for rates."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str, str], Line] = {}
        self._replicas: frozenset[str] = frozenset()
        self._at: float | None = None

    def __call__(self, found: list[Exposition], now: float) -> RenderableType:
        """What people see of these replicas, looked at now."""
        seen = boards(found)
        parts = [part for board in seen for part in (self._head(board), self._table(board, now), Text())]
        self._lines = {(board.namespace, board.base, line.tenant): line for board in seen for line in board.lines}
        self._replicas = frozenset(each.replica for each in found if each.text)
        self._at = now
        return Group(*parts[:-1]) if parts else Text("no replica is there to ask")

    def _head(self, board: Board) -> Text:
        head = Text(f"{board.namespace}/{board.base}", style="bold", overflow="fold")
        if board.answered < board.replicas:
            head.append(f"  {board.answered} of {board.replicas} replicas answer", style="yellow")
        if board.answered:
            numbers = {"floor": board.floor, "spread": board.spread, "bound": board.bound}
            head.append("".join(f"  {name} {short(value)}" for name, value in numbers.items()), style="not bold")
            head.append(f"  Jain {board.jain:.2f}", style="not bold")
        return head

    def _table(self, board: Board, now: float) -> Table:
        shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        shown.add_column("TENANT")  # the only column that gives way on a narrow terminal
        for name in COLUMNS:
            shown.add_column(name, justify="right", no_wrap=True)
        for line in board.lines:
            shown.add_row(
                Text(line.tenant, no_wrap=True, overflow="ellipsis"), f"{line.weight:g}", short(line.service),
                f"{100 * line.share:.0f}%", short(line.counter), short(line.lag), short(line.waiting),
                short(line.running), self._rate(board, line, now), short(line.rejected),
            )  # fmt: skip
        return shown

    def _rate(self, board: Board, line: Line, now: float) -> str:
        if self._at is None or now <= self._at:
            return "-"
        before = self._lines.get((board.namespace, board.base, line.tenant))
        return short(rate(line, before, self._replicas, now - self._at))


def short(value: float) -> str:
    """A number in at most six characters: 9999, 12.3k, -1.23M."""
    if not abs(value) >= 9999.5:  # NaN is short as it is
        return f"{value:.1f}".removesuffix(".0") if abs(value) < 100 else f"{value:.0f}"
    size, unit = next((size, unit) for size, unit in UNITS if abs(value) >= 0.9995 * size)
    scaled = value / size
    return f"{scaled:.{2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0}f}{unit}"
