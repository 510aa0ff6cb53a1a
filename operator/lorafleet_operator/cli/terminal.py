"""How things look on a terminal: kubectl's plain tables, and rich ones for people. Knows no fleet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TextIO

from rich.console import Console

from lorafleet_operator.core.columns import Column, columns, evaluate


class CurrentStderr:
    """A text stream that is whatever `sys.stderr` is now: rich replaces it while it draws, to print above its bars."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


def console(stream: TextIO | None = None) -> Console:
    """A rich console on `stream` (standard output), as wide as its lines when it is no terminal."""
    out = stream or sys.stdout
    return Console(file=out, width=None if out.isatty() else 200, highlight=False, soft_wrap=not out.isatty())


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table as kubectl prints it: upper-case header, columns three spaces apart."""
    cells = [[name.upper() for name in header], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    return ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def object_header(kind: str, *, wide: bool, namespaced: bool) -> list[str]:
    """The header of the table of one kind."""
    return [*(["Namespace"] if namespaced else []), "Name", *(column.name for column in _shown(kind, wide))]


def object_row(kind: str, document: Mapping[str, Any], *, wide: bool, namespaced: bool, now: datetime) -> list[str]:
    """One object as the cells under `object_header`."""
    metadata = document["metadata"]
    cells = [metadata.get("namespace", "")] if namespaced else []
    cells.append(metadata["name"])
    return [*cells, *(_cell(column, document, now) for column in _shown(kind, wide))]


def _shown(kind: str, wide: bool) -> list[Column]:
    return [column for column in columns(kind) if wide or column.priority == 0]


def _cell(column: Column, document: Mapping[str, Any], now: datetime) -> str:
    value = evaluate(column.json_path, document)
    if value is None:
        return ""
    return age(str(value), now) if column.type == "date" else str(value)


def age(timestamp: str, now: datetime) -> str:
    """How long ago, as kubectl says it: 45s, 12m, 3h, 2d; the text itself when it is no timestamp."""
    try:
        then = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    except ValueError:
        return timestamp
    seconds = max(0, int((now - then.astimezone(UTC)).total_seconds()))
    for unit, size, below in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if seconds < below:
            return f"{seconds // size}{unit}"
    return f"{seconds // 86400}d"
