"""A fake replica's side of `POST /fairness`: it merges by maximum and hands on, as docs/contracts.md says.

Plain dicts and no code of the gateway's, so that the two can disagree."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeFairness:
    """`service` is what this replica gave; `answers` replace its answers, one each; `lost` answers never arrive."""

    incarnation: str
    service: dict[str, int] = field(default_factory=dict)
    fairness: dict[str, Any] = field(default_factory=lambda: {"policy": "VTC", "spread": 0, "bound": 0, "rate": 0})
    asked: list[dict[str, Any]] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    cells: dict[tuple[str, ...], int] = field(default_factory=dict)
    usage: dict[str, dict[str, Any]] = field(default_factory=dict)
    at: int = 0
    _changed: dict[tuple[str, ...], int] = field(default_factory=dict)

    def exchange(self, told: dict[str, Any], load: dict[str, int]) -> Any:
        """The answer to one request."""
        self.asked.append(copy.deepcopy(told))
        assert self.incarnation not in told["table"]["service"], "a replica knows its own column"
        for name in told["table"]["retired"]:
            self._raise(("retired", name), 1)
        for cell, value in cells_of(told["table"]):
            self._raise(cell, value)
        for tenant, value in self.service.items():
            self._raise(("service", self.incarnation, tenant), value)
        for gateway, use in told["usage"].items():
            known = self.usage.setdefault(gateway, {"sequence": -1, "tenants": {}})
            if use["sequence"] > known["sequence"]:
                known["sequence"] = use["sequence"]
                known["tenants"].update(use["tenants"])
                self._touch(("gateway", gateway))
                for tenant in use["tenants"]:
                    self._touch(("use", gateway, tenant))
        if self.answers:
            return self.answers.pop(0)
        since = told["since"] if told["incarnation"] == self.incarnation else 0
        return self._answer(since, load)

    def _raise(self, cell: tuple[str, ...], value: int) -> None:
        if value > self.cells.get(cell, 0):
            self.cells[cell] = value
            self._touch(cell)

    def _touch(self, what: tuple[str, ...]) -> None:
        self.at += 1
        self._changed[what] = self.at

    def _answer(self, since: int, load: dict[str, int]) -> dict[str, Any]:
        table: dict[str, Any] = {"service": {}, "refunds": {}, "offsets": {}, "retired": []}
        usage: dict[str, Any] = {}
        for what, changed in self._changed.items():
            if changed <= since:
                continue
            match what:
                case ("service" | "refunds" as kind, column, tenant):
                    table[kind].setdefault(column, {})[tenant] = self.cells[what]
                case ("offsets", tenant):
                    table["offsets"][tenant] = self.cells[what]
                case ("retired", name):
                    table["retired"].append(name)
                case ("gateway", name):
                    usage.setdefault(name, {"sequence": self.usage[name]["sequence"], "tenants": {}})
                case ("use", name, tenant):
                    told = usage.setdefault(name, {"sequence": self.usage[name]["sequence"], "tenants": {}})
                    told["tenants"][tenant] = self.usage[name]["tenants"][tenant]
        head = {"version": 1, "incarnation": self.incarnation, "at": self.at, "load": load}
        return {**head, "table": table, "usage": usage, "fairness": self.fairness}


def cells_of(table: dict[str, Any]) -> list[tuple[tuple[str, ...], int]]:
    """A table's service, refunds and offsets, one by one."""
    found: list[tuple[tuple[str, ...], int]] = []
    for kind in ("service", "refunds"):
        for column, row in table[kind].items():
            found += [((kind, column, tenant), value) for tenant, value in row.items()]
    return found + [(("offsets", tenant), value) for tenant, value in table["offsets"].items()]
