from __future__ import annotations

from lorafleet_gateway.core.fleet_model import (
    Adapter,
    BaseModel,
    Fleet,
    FleetDocument,
    ModelRef,
    Placement,
    Replica,
    Tenant,
    fleet_of,
    index,
)
from lorafleet_gateway.core.naming import ListedModel, Target, list_models, resolve

ACME = Tenant("acme", namespaces=("acme", "acme-lab"), models=(ModelRef("models", "smol"),))
GLOBEX = Tenant("globex", namespaces=("globex",))


def adapter(identity: str, served_name: str = "", *, ready: bool = True) -> Adapter:
    namespace, name = identity.split(".", 1)
    placements = (Placement("r0", "rev", "Ready" if ready else "Loading"),)
    return Adapter(identity, namespace, name, served_name or name, "rev", "Ready", placements=placements)


def fleet(*adapters: Adapter, state: str = "Ready") -> Fleet:
    replicas = (Replica("r0", "http://r0", state),)
    smol = FleetDocument(1, 1, BaseModel("models", "smol", "smol-135m", 2048), replicas, adapters)
    big = FleetDocument(1, 1, BaseModel("models", "big", "big-7b"), replicas, (adapter("acme.only-big"),))
    return fleet_of([index(smol), index(big)])


def test_each_tenants_support_is_its_own() -> None:
    both = fleet(adapter("acme.support"), adapter("globex.support"))

    assert resolve("support", ACME, both) == Target(("models", "smol"), "acme.support", "support", "acme.support")
    assert resolve("support", GLOBEX, both) == Target(("models", "smol"), "globex.support", "support", "globex.support")


def test_another_tenants_adapter_is_nothing_under_any_of_its_names() -> None:
    part = fleet(adapter("acme.pirate"))

    assert resolve("pirate", GLOBEX, part) is None
    assert resolve("acme.pirate", GLOBEX, part) is None
    assert [row.served_name for row in list_models(GLOBEX, part)] == []


def test_a_base_model_is_for_the_tenants_that_may_call_it_bare() -> None:
    part = fleet()

    assert resolve("smol-135m", ACME, part) == Target(("models", "smol"), None, "smol-135m", "smol-135m")
    assert resolve("smol-135m", GLOBEX, part) is None
    assert resolve("big-7b", ACME, part) is None


def test_an_adapter_wins_over_a_base_model_of_the_same_name() -> None:
    part = fleet(adapter("acme.mine", "smol-135m"))
    target = resolve("smol-135m", ACME, part)

    assert target is not None and target.adapter_id == "acme.mine"
    assert ListedModel("smol-135m", "smol-135m", 2048, True) in list_models(ACME, part)
    assert len([row for row in list_models(ACME, part) if row.served_name == "smol-135m"]) == 1


def test_the_earlier_of_a_tenants_namespaces_has_the_name() -> None:
    part = fleet(adapter("acme-lab.support"), adapter("acme.support"))
    target = resolve("support", ACME, part)

    assert target is not None and target.adapter_id == "acme.support"


def test_what_is_listed_is_what_resolves_and_says_whether_it_is_ready() -> None:
    part = fleet(adapter("acme.a"), adapter("acme.b", ready=False), adapter("globex.c"))
    rows = list_models(ACME, part)

    assert [(row.served_name, row.ready) for row in rows] == [
        ("smol-135m", True), ("a", True), ("b", False), ("only-big", True),
    ]  # fmt: skip
    assert all(resolve(row.served_name, ACME, part) is not None for row in rows)
    assert not any(row.ready for row in list_models(ACME, fleet(adapter("acme.a"), state="Starting")))
