"""A gateway over scripted replicas, on real sockets; lets these tests import what they share as
`tests.gateway.…`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog

from tests.gateway.gateway_kit import Kit


@pytest_asyncio.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """A folder, no replica and no gateway yet; whatever the test starts is stopped after it."""
    made = Kit(tmp_path)
    try:
        yield made
    finally:
        await made.close()


@pytest.fixture(autouse=True)
def unconfigured() -> Iterator[None]:
    """Whatever a test does to the process's logging is undone."""
    yield
    structlog.reset_defaults()
    for name in ("uvicorn", "aiohttp", "asyncio"):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
