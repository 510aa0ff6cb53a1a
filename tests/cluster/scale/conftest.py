"""These tests run inside a namespace of their own: tests/cluster/test_scale.py takes them there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.scale import kit
from tests.cluster.scale.kit import ScaleFleet

BASE_MODELS, REPLICAS, TENANTS, ADAPTERS = 20, 10, 50, 1000

collect_ignore_glob = [] if kit.inside() else ["test_*.py"]


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScaleFleet]:
    """200 replicas that hold 1,000 adapters of 50 tenants."""
    folder: Path = tmp_path_factory.mktemp("scale")
    with kit.running(folder, base_models=BASE_MODELS, replicas=REPLICAS, tenants=TENANTS) as fleet:
        fleet.declare()
        fleet.create(fleet.adapter(number) for number in range(ADAPTERS))
        fleet.operator.start()
        fleet.gateway.start()
        fleet.until_ready(ADAPTERS, 300)
        yield fleet
