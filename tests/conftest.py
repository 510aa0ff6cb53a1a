"""The tests that need a real Kubernetes come last: its binaries may still be in the making. And at the very end the
one that looks at what all of them asked of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # has to be there before any kernel is imported

CLUSTER = Path(__file__).parent / "cluster"
LAST = CLUSTER / "test_rights.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (CLUSTER in item.path.parents, item.path == LAST))


@pytest.fixture(autouse=True)
def _logs_go_back() -> Iterator[None]:
    """A command run inside the tests sends this process's log lines to the output that pytest caught for that test:
    a later test that logs would write to a closed file."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configured = structlog.get_config() if structlog.is_configured() else None
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if configured is None:
        structlog.reset_defaults()
    else:
        structlog.configure(**configured)
