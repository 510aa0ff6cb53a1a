"""A gateway over scripted replicas, on real sockets; lets these tests import what they share as
`tests.gateway.…`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.gateway.gateway_kit import Kit


@pytest_asyncio.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    """A folder, no replica and no gateway yet; whatever the test starts is stopped after it."""
    made = Kit(tmp_path)
    try:
        yield made
    finally:
        await made.close()
