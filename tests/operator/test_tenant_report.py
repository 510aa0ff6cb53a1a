"""The body of GET /admin/tenants, as docs/contracts.md shows it, and what is no such body."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lorafleet_operator.core.usage import Report, Share
from lorafleet_operator.errors import RuntimeProtocolError
from lorafleet_operator.tenant_report import parse_tenants

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts.md"


def test_the_example_of_the_contract_is_read() -> None:
    after = CONTRACTS.read_text().partition("`GET /admin/tenants`")[2]
    example = re.search(r"```json\n(.*?)```", after, re.DOTALL)
    assert example is not None

    assert parse_tenants(json.loads(example[1])) == Report("…", 5_000_000, {
        "acme": Share(6_400_000, 2400, 2000, 5_200_000, running=2, waiting=7, rejected=4),
    })  # fmt: skip


@pytest.mark.parametrize("body", [
    {}, {"incarnation": "x"}, {"incarnation": "x", "tenants": [{"name": "acme"}]},
    {"incarnation": "x", "tenants": [{"name": "acme", "service": "much"}]},
    {"incarnation": "x", "tenants": [{"name": "acme", "service": -1}]},
    {"incarnation": "x", "tenants": [{"name": "acme", "service": float("inf")}]},
    {"incarnation": "x", "tenants": ["acme"]}, {"incarnation": "x", "tenants": 7},
])  # fmt: skip
def test_what_is_no_such_body_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RuntimeProtocolError, match="/admin/tenants does not follow the contract"):
        parse_tenants(body)
