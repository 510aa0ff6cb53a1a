"""What the operator's lists say when the cluster does not know a kind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lorafleet_operator.errors import KubeGone
from lorafleet_operator.handlers import Watches
from lorafleet_operator.kube.settings import cluster_settings
from lorafleet_operator.kube.store import Store

ENVIRONMENT = {
    "LORAFLEET_SERVING_TOKEN": "s" * 16, "LORAFLEET_ADMIN_TOKEN": "a" * 16, "POD_NAMESPACE": "home",
}  # fmt: skip


class Api:
    """Knows every kind but tenants."""

    async def pages(self, kind: str, namespace: str, selector: str) -> AsyncIterator[list[dict[str, Any]]]:
        if kind == "Tenant":
            raise KubeGone("LIST /apis/lorafleet.dev/v1alpha1/tenants: 404 page not found", status=404)
        yield []


async def test_a_missing_definition_is_named_with_what_to_do() -> None:
    store = Store()
    settings = cluster_settings(image="runtime:test", env=ENVIRONMENT)
    watches = Watches(settings, Api(), store, lambda: None)  # type: ignore[arg-type]  # lists are all that is asked

    with pytest.raises(KubeGone, match=r"404 page not found: the cluster knows no Tenant: install its Custom.*crds/"):
        await watches.list_all()
    assert not store.complete
