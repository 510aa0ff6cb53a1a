"""The node tier: one node for all tests, which run in order, each on what the ones before it have left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.node import node as harness
from tests.cluster.node.client import Client


@pytest.fixture(scope="session")
def node() -> Iterator[harness.Node]:
    """The node, with the volume for the claim of examples/cluster."""
    if why := harness.lacking():
        pytest.skip(why)
    with harness.running() as node:
        node.provide("quickstart")
        yield node


@pytest.fixture(scope="session")
def client(node: harness.Node) -> Client:
    """A pod that asks the gateway; it has acme's key."""
    client = Client(node)
    client.start()
    return client


@pytest.fixture(autouse=True)
def _timed(request: pytest.FixtureRequest) -> Iterator[None]:
    request.getfixturevalue("node")  # whose own times come before
    with harness.lap(request.node.name):
        yield
