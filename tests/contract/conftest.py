"""The JSON examples of docs/contracts.md, which the parts' real output is held against."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts.md"
_BLOCK = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def examples() -> dict[str, Any]:
    """Each example by the most telling of its fields."""
    blocks = [json.loads(block) for block in _BLOCK.findall(CONTRACTS.read_text(encoding="utf-8"))]
    names = {
        "files": "order", "phase": "state", "baseModel": "fleet", "since": "exchange", "at": "exchanged",
        "jain": "shares", "tenants": "tenants",
    }  # fmt: skip
    found = {next(names[field] for field in names if field in block): block for block in blocks}
    assert found.keys() == set(names.values())
    assert len(blocks) == len(found)
    return found
