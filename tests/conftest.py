"""The tests that need a real Kubernetes come last: its binaries may still be in the making."""

from __future__ import annotations

from pathlib import Path

import pytest

CLUSTER = Path(__file__).parent / "cluster"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: CLUSTER in item.path.parents)
