"""Which Secrets are read, and when: those that tenants and sources name, at once when new, again when due."""

from __future__ import annotations

from typing import Any

import pytest

from lorafleet_operator.core.objects import Ref, Secret, Unresolved
from lorafleet_operator.errors import KubeGone, KubeRefused, KubeUnreachable
from lorafleet_operator.kube import named_secrets
from lorafleet_operator.kube.named_secrets import NamedSecrets
from lorafleet_operator.kube.store import Store


class Api:
    """Secrets by name, and every read."""

    def __init__(self) -> None:
        self.held: dict[str, str] = {}
        self.reads: list[str] = []
        self.away = False
        self.forbidden = False

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        self.reads.append(name)
        if self.away:
            raise KubeUnreachable("away")
        if self.forbidden:
            raise KubeRefused("secrets is forbidden", status=403)
        if name not in self.held:
            raise KubeGone(name, status=404)
        metadata = {"name": name, "namespace": namespace, "uid": name}
        return {"kind": kind, "metadata": metadata, "data": {"key": self.held[name]}}


@pytest.fixture
def api() -> Api:
    return Api()


@pytest.fixture
def store() -> Store:
    return Store()


def secrets(api: Api, store: Store, seconds: float = 3600) -> NamedSecrets:
    return NamedSecrets(api, store, seconds, lambda: None)  # type: ignore[arg-type]  # all that it asks of a client


def name_key(store: Store, *names: str) -> None:
    keys = [{"secretRef": {"namespace": "acme", "name": name, "key": "key"}} for name in names]
    version = str(len(store.raw) + len(names) + 1)
    metadata = {"name": "acme", "uid": "u", "resourceVersion": version, "generation": 1}
    store.put("Tenant", {"metadata": metadata, "spec": {"namespaces": ["acme"], "apiKeys": keys}})


def held(store: Store) -> set[Ref]:
    return set(store.desired().secrets)


async def test_a_secret_is_read_once_when_a_tenant_first_names_it(api: Api, store: Store) -> None:
    api.held = {"one": "azE=", "two": "azI="}
    reader = secrets(api, store)
    name_key(store, "one")
    await reader.read()
    await reader.read()
    assert api.reads == ["one"]

    name_key(store, "one", "two")
    await reader.read()
    assert api.reads == ["one", "two"]
    assert held(store) == {Ref("acme", "one"), Ref("acme", "two")}


async def test_a_rotated_secret_is_seen_when_it_is_due(
    api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(named_secrets, "READS_PER_SECOND", float("inf"))
    api.held = {"one": "azE="}
    reader = secrets(api, store, seconds=0.0)
    name_key(store, "one")
    await reader.read()
    api.held = {"one": "azI="}
    await reader.read()
    assert store.desired().secrets[Ref("acme", "one")].data == {"key": b"k2"}


async def test_a_secret_that_no_tenant_names_any_more_is_forgotten(api: Api, store: Store) -> None:
    api.held = {"one": "azE=", "two": "azI="}
    reader = secrets(api, store)
    name_key(store, "one", "two")
    await reader.read()
    name_key(store, "two")
    await reader.read()
    assert held(store) == {Ref("acme", "two")}


async def test_a_secret_outlives_an_api_server_that_is_away_and_not_its_deletion(
    api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_secrets, "READS_PER_SECOND", float("inf"))
    api.held = {"one": "azE="}
    reader = secrets(api, store, seconds=0.0)
    name_key(store, "one")
    await reader.read()
    api.away = True
    await reader.read()
    assert held(store) == {Ref("acme", "one")}

    api.away, api.held = False, {}
    await reader.read()
    assert held(store) == set()


def name_source(store: Store, secret: str | None, version: int = 1) -> None:
    source = {"uri": "s3://b/p", **({"secretRef": {"name": secret}} if secret else {})}
    metadata = {"name": "one", "namespace": "acme", "uid": "u", "resourceVersion": str(version), "generation": 1}
    store.put("LoRAAdapter", {"metadata": metadata, "spec": {"baseModelRef": {"name": "tiny"}, "source": source}})


async def test_the_secret_of_a_source_is_read_and_its_lack_is_told_until_it_is_there(
    api: Api, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(named_secrets, "READS_PER_SECOND", float("inf"))
    changes: list[int] = []
    reader = NamedSecrets(api, store, 0.0, lambda: changes.append(1))  # type: ignore[arg-type]  # all that it asks
    login = Ref("acme", "login")
    name_source(store, "login")
    assert reader.look(login) is None
    await reader.read()
    await reader.read()
    found = reader.look(login)
    assert isinstance(found, Unresolved)
    assert (found.reason, "acme/login" in found.message, len(changes)) == ("SecretNotFound", True, 1)
    api.held = {"login": "azE="}
    await reader.read()
    assert reader.look(login) == Secret(login, {"key": b"k1"})
    assert len(changes) == 2
    name_source(store, None, 2)
    await reader.read()
    assert reader.look(login) is None


async def test_a_secret_that_may_not_be_read_says_what_the_chart_needs(api: Api, store: Store) -> None:
    api.forbidden = True
    reader = secrets(api, store)
    name_source(store, "login")
    await reader.read()
    found = reader.look(Ref("acme", "login"))
    assert isinstance(found, Unresolved)
    assert (found.reason, "rbac.tenantSecretNamespaces" in found.message) == ("SecretForbidden", True)
