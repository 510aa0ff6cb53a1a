"""Every test finds the process as a first one would. Files that take long come first, so that no worker waits for
another's last one. The tests that need a real Kubernetes come last: its binaries may still be in the making. And at the
very end the one that looks at what all of them asked of it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # has to be there before any kernel is imported

from tests import process_state

# A busy machine is slow, and not wrong.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

CLUSTER = Path(__file__).parent / "cluster"
LAST = CLUSTER / "test_rights.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Counter(item.path for item in items)
    interpreted = {item.path for item in items if item.get_closest_marker("interpreted")}

    def place(item: pytest.Item) -> tuple[bool, bool, bool, int]:
        late = CLUSTER in item.path.parents
        return late, item.path == LAST, item.path not in interpreted, -tests[item.path] * (not late)

    items.sort(key=place)


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
