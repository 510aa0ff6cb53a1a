"""The tests that need a real Kubernetes come last: its binaries may still be in the making. And at the very end the
one that looks at what all of them asked of it."""

from __future__ import annotations

from pathlib import Path

import pytest

CLUSTER = Path(__file__).parent / "cluster"
LAST = CLUSTER / "test_rights.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (CLUSTER in item.path.parents, item.path == LAST))
