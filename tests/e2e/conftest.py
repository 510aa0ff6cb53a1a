"""Fleets of real processes, shared by a session because starting one takes seconds; logs are shown on failure."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e import real_fleet, tiny_fleet
from tests.e2e.fleet_kit import RUNNING, Fleet, free_port


@pytest.fixture(scope="session")
def shared_tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    root = tmp_path_factory.mktemp("tiny")
    yield from _running(Fleet(tiny_fleet.write(root / "fleet"), root / "state", free_port(), tiny_fleet.KEYS))


@pytest.fixture
def tiny(shared_tiny: Fleet) -> Fleet:
    """The tiny fleet, with everything in it Ready. A test that changes its files puts them back."""
    tiny_fleet.wait_until_settled(shared_tiny)
    return shared_tiny


@pytest.fixture
def own_tiny(tmp_path: Path) -> Iterator[Fleet]:
    """A tiny fleet of the test's own, to be ended by force."""
    yield from _running(Fleet(tiny_fleet.write(tmp_path / "fleet"), tmp_path / "state", free_port(), tiny_fleet.KEYS))


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet of examples/quickstart, the real model, and the variants; in float32, so that answers compare."""
    root = tmp_path_factory.mktemp("quickstart")
    folder = real_fleet.write(root / "fleet")
    yield from _running(Fleet(folder, root / "state", free_port(), real_fleet.KEYS))


def _running(fleet: Fleet) -> Iterator[Fleet]:
    try:
        fleet.up()
        yield fleet
    finally:
        fleet.down()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of every fleet that lives to the report of a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"fleet in {fleet.folder}", fleet.logs()) for fleet in RUNNING]
    return report
