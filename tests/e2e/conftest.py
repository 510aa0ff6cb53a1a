"""Fleets of real processes, shared by a session because starting one takes seconds; logs are shown on failure."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.e2e import tiny_fleet
from tests.e2e.fleet_kit import RUNNING, Fleet, free_port

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
QUICKSTART_KEYS = {"acme": "sk-acme-demo", "globex": "sk-globex-demo"}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The tiny fleet. A test that changes its files puts them back."""
    root = tmp_path_factory.mktemp("tiny")
    yield from _running(Fleet(tiny_fleet.write(root / "fleet"), root / "state", free_port(), tiny_fleet.KEYS))


@pytest.fixture
def own_tiny(tmp_path: Path) -> Iterator[Fleet]:
    """A tiny fleet of the test's own, to be ended by force."""
    yield from _running(Fleet(tiny_fleet.write(tmp_path / "fleet"), tmp_path / "state", free_port(), tiny_fleet.KEYS))


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet of examples/quickstart, the real model, in float32: then its answers can be compared exactly."""
    root = tmp_path_factory.mktemp("quickstart")
    folder = shutil.copytree(QUICKSTART, root / "fleet")
    base = folder / "base-model.yaml"
    text = base.read_text()
    assert "dtype: auto" in text
    base.write_text(text.replace("dtype: auto", "dtype: float32"))
    yield from _running(Fleet(folder, root / "state", free_port(), QUICKSTART_KEYS))


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
