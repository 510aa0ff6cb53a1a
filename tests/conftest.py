"""Every test finds the process as a first one would. The tests that need a real Kubernetes come last: its binaries may
still be in the making. And at the very end the one that looks at what all of them asked of it: they share one cluster,
and so one process where several run tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # has to be there before any kernel is imported

from tests import process_state

CLUSTER = Path(__file__).parent / "cluster"
LAST = CLUSTER / "test_rights.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (CLUSTER in item.path.parents, item.path == LAST))
    for item in items:
        together = CLUSTER if CLUSTER in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(f"{together.relative_to(CLUSTER.parent)}"))


@pytest.fixture(scope="module", autouse=True)
def _module_leaves_no_trace() -> Iterator[None]:
    """What a module's fixtures do, too."""
    process_state.start_afresh()
    with process_state.kept():
        yield


@pytest.fixture(autouse=True)
def _test_leaves_no_trace(_module_leaves_no_trace: None) -> Iterator[None]:
    process_state.start_afresh()
    with process_state.kept():
        yield
