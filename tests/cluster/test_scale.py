"""The scale tier: 200 fake nodes' pods, each at an address of its own that a light runtime answers.

The addresses exist only in a network namespace, so its tests (tests/cluster/scale) run in one, by a pytest of their
own."""

from __future__ import annotations

import os
import sys

import pytest

from tests.cluster import lab
from tests.cluster.scale import kit

pytestmark = [pytest.mark.slow, pytest.mark.scale]


def test_the_fleet_at_scale(capfd: pytest.CaptureFixture[str]) -> None:
    if why := lab.lacking() or ("" if os.geteuid() == 0 or os.environ.get("CI") else "needs root for a namespace"):
        pytest.skip(why)
    lab.build("api", "controllers", "kwok")
    ended = kit.enter(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/cluster/scale")

    assert ended.returncode == 0, capfd.readouterr().out[-12_000:]
