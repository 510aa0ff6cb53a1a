from __future__ import annotations

import hashlib

import pytest

from lorafleet_gateway.core.fleet_model import ApiKey, Tenant, TenantsDocument
from lorafleet_gateway.tenants import TenantTable


def keyed(name: str, *keys: str) -> Tenant:
    return Tenant(name, keys=tuple(ApiKey(f"{name}/{k}", hashlib.sha256(k.encode()).hexdigest()) for k in keys))


def table(*tenants: Tenant) -> TenantTable:
    return TenantTable(TenantsDocument(1, 1, tenants))


@pytest.mark.parametrize("header", ["Bearer sk-a", "bearer sk-a", "BEARER  sk-a "])
def test_a_key_names_its_tenant(header: str) -> None:
    found = table(keyed("acme", "sk-a"), keyed("globex", "sk-b")).authenticate(header)

    assert found is not None and found.name == "acme"


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer sk-",
        "sk-a",
        "Basic sk-a",
        "Bearer sk-a x",
        "Bearer ÿ",
        "Bearer sk-A",
        f"Bearer {hashlib.sha256(b'sk-a').hexdigest()}",
    ],
)
def test_anything_else_names_nobody(header: str | None) -> None:
    assert table(keyed("acme", "sk-a")).authenticate(header) is None
    assert TenantTable().authenticate(header) is None


def test_a_key_is_rotated_with_both_valid_for_a_while() -> None:
    during, after = table(keyed("acme", "old", "new")), table(keyed("acme", "new"))

    assert during.authenticate("Bearer old") is not None
    assert during.authenticate("Bearer new") is not None
    assert after.authenticate("Bearer old") is None


def test_a_key_of_two_tenants_identifies_neither() -> None:
    shared = table(keyed("acme", "same", "own"), keyed("globex", "same"), keyed("third", "same"))

    assert shared.authenticate("Bearer same") is None
    assert shared.authenticate("Bearer own") is not None
    assert shared.ambiguous == ["globex/same", "third/same"]


def test_a_non_ascii_key_works_as_its_utf_8_bytes() -> None:
    header = "Bearer " + "schlüssel".encode().decode("latin-1")

    assert table(keyed("acme", "schlüssel")).authenticate(header) is not None
