"""The real API server accepts and refuses what the operator's reader does. Nothing is stored: these are dry runs."""

from __future__ import annotations

from typing import Any

import pytest

from lorafleet_operator.kube.client import path
from tests.cluster.lab import Cluster
from tests.deploy import documents

pytestmark = pytest.mark.slow


def create(cluster: Cluster, document: dict[str, Any]) -> tuple[int, str]:
    """The API server's verdict on a document, and its words."""
    kind, namespace = document["kind"], document["metadata"].get("namespace", "")
    if namespace:
        document = {**document, "metadata": {**document["metadata"], "namespace": "default"}}
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    where = path(kind, "default" if namespace else "")
    response = cluster.api.post(where, params=query, json=document)
    return response.status_code, response.json().get("message", "")


@pytest.mark.parametrize("kind", list(documents.FULL))
def test_the_full_and_the_shortest_document_are_accepted(cluster: Cluster, kind: str) -> None:
    for document in (documents.FULL[kind], documents.minimal(kind)):
        assert create(cluster, document)[0] == 201, create(cluster, document)


@pytest.mark.parametrize(("kind", "field", "value"), documents.GOOD, ids=str)
def test_a_good_value_is_accepted(cluster: Cluster, kind: str, field: str, value: Any) -> None:
    status, message = create(cluster, documents.changed(kind, field, value))
    assert status == 201, message


@pytest.mark.parametrize(("kind", "field", "value", "_named"), documents.BAD, ids=str)
def test_a_bad_value_is_refused_and_the_field_is_named(
    cluster: Cluster, kind: str, field: str, value: Any, _named: str
) -> None:
    status, message = create(cluster, documents.changed(kind, field, value))
    assert status in (400, 422), (status, message)
    assert field.split(".")[0] in message
