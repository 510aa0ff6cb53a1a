"""Status: what conditions say in each situation, that time moves only with the answer, and that the CRDs allow it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from lorafleet_operator.core.actions import Plan
from lorafleet_operator.core.columns import columns, evaluate
from lorafleet_operator.core.objects import (
    Desired,
    Engine,
    ObjectKey,
    Observed,
    Problem,
    Quota,
    SecretKeyRef,
    SetAside,
    Unresolved,
)
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.status import statuses
from lorafleet_operator.core.validation import admit
from lorafleet_sim.fleets import (
    BASE,
    adapter,
    base_model,
    desired,
    found,
    observed,
    replica,
    resident,
    secret,
    tenant,
)

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"
CRDS = Path(__file__).parents[3] / "crds"
ONE = base_model()
TWO = base_model(replicas=2)
PIRATE = adapter()
BASE_KEY = ObjectKey("BaseModel", "models", "smollm2")
ADAPTER_KEY = ObjectKey("LoRAAdapter", "acme", "pirate")
TENANT_KEY = ObjectKey("Tenant", "", "acme")
OLD = "sha256:" + "0" * 64
AWAY = Unresolved("NotFound", "there is no such folder")


def told(wanted: Desired, seen: Observed, previous: Mapping[ObjectKey, Any] | None = None, now: str = NOW) -> Any:
    return statuses(wanted, seen, plan(wanted, seen, 100.0), previous or {}, now)


def answers(status: Mapping[str, Any]) -> dict[str, str]:
    """Conditions in short: `True Ready`."""
    return {c["type"]: f"{c['status']} {c['reason']}" for c in status["conditions"]}


def of_adapter(*replicas: Any, base: Any = ONE, one: Any = PIRATE, **more: Any) -> dict[str, str]:
    wanted = desired(base, one)
    return answers(told(wanted, observed(wanted, *replicas, **more))[ADAPTER_KEY])


def test_a_serving_fleet_says_so_everywhere() -> None:
    wanted = desired(ONE, PIRATE, tenant(), secret())
    found_statuses = told(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE))))

    assert answers(found_statuses[BASE_KEY]) == {
        "Accepted": "True Accepted", "WorkloadReady": "True ReplicasReady", "Ready": "True Ready",
    }  # fmt: skip
    assert answers(found_statuses[ADAPTER_KEY]) == {
        "Accepted": "True Accepted", "ArtifactVerified": "True Verified", "Placed": "True Placed",
        "Ready": "True Ready", "Progressing": "False Settled", "Degraded": "False AsWanted",
    }  # fmt: skip
    assert answers(found_statuses[TENANT_KEY]) == {"Accepted": "True Accepted", "QuotaEnforced": "True NoLimits"}


def test_the_fields_of_an_adapter() -> None:
    wanted = desired(TWO, adapter(copies_min=2))
    seen = observed(wanted, replica(TWO, 0, resident(PIRATE)), replica(TWO, 1, resident(PIRATE, "Loading")))
    status = told(wanted, seen)[ADAPTER_KEY]
    revision = found(PIRATE).revision

    assert {key: status[key] for key in ("ready", "replicas", "rank", "pages", "revision", "shortRevision")} == {
        "ready": "1/2", "replicas": "smollm2-0", "rank": 8, "pages": 12, "revision": revision,
        "shortRevision": revision[7:19],
    }  # fmt: skip
    assert status["placements"] == [
        {"replica": "smollm2-0", "uid": "process-0", "revision": revision, "state": "Ready", "reason": "",
         "message": "", "since": NOW},
        {"replica": "smollm2-1", "uid": "process-1", "revision": revision, "state": "Loading", "reason": "",
         "message": "", "since": NOW},
    ]  # fmt: skip


@pytest.mark.parametrize(("situation", "ready", "others"), [
    ({}, "False NoReplicaReady", {"Placed": "False NoReplicaReady", "ArtifactVerified": "Unknown NotYetLoaded"}),
    ({"replicas": (replica(ONE),)}, "False Loading", {"Progressing": "True Acting", "Placed": "False Pending"}),
    ({"replicas": (replica(ONE, 0, resident(PIRATE, "Loading")),)}, "False Loading",
     {"Progressing": "True Loading", "Placed": "True Placed"}),
    ({"replicas": (replica(ONE, 0, resident(PIRATE, "Failed", "RankTooHigh")),)}, "False RankTooHigh",
     {"ArtifactVerified": "False RankTooHigh", "Degraded": "True RankTooHigh", "Progressing": "False Settled"}),
    ({"replicas": (replica(ONE, 0, resident(PIRATE, "Failed", "NoRoom")),),
      "load_retry_at": {(PIRATE.ref, "smollm2-0"): 999.0}}, "False NoRoom",
     {"ArtifactVerified": "Unknown NotYetLoaded", "Degraded": "True NoRoom"}),
    ({"replicas": (replica(ONE, 0, resident(PIRATE, revision=OLD), resident(PIRATE, "Loading")),)},
     "True ServingOldRevision", {"Progressing": "True Loading", "Degraded": "False AsWanted"}),
    ({"replicas": (replica(ONE, 0, resident(PIRATE, revision=OLD), resident(PIRATE, "Failed", "InvalidAdapter")),)},
     "True ServingOldRevision", {"ArtifactVerified": "False InvalidAdapter", "Degraded": "True InvalidAdapter"}),
    ({"artifacts": {PIRATE.ref: AWAY}}, "False NotFound", {"ArtifactVerified": "False NotFound"}),
    ({"artifacts": {PIRATE.ref: AWAY}, "replicas": (replica(ONE, 0, resident(PIRATE)),)}, "True Ready",
     {"ArtifactVerified": "False NotFound", "Degraded": "True NotFound"}),
    ({"one": adapter(copies_min=2, copies_max=2), "replicas": (replica(ONE, 0, resident(PIRATE)),)},
     "False InsufficientReplicas", {"Placed": "False InsufficientReplicas", "Degraded": "True InsufficientCopies"}),
    ({"replicas": (replica(ONE, 0, resident(PIRATE), state="Failed"),)}, "False NoReplicaReady", {}),
])  # fmt: skip
def test_what_an_adapter_says(situation: dict[str, Any], ready: str, others: dict[str, str]) -> None:
    situation = dict(situation)
    said = of_adapter(*situation.pop("replicas", ()), **situation)

    assert said["Ready"] == ready
    assert {name: said[name] for name in others} == others


@pytest.mark.parametrize(("base", "replicas", "workload", "ready"), [
    (ONE, (), "False ReplicasStarting", "False Starting"),
    (ONE, (replica(ONE, 0, state="Starting"),), "False ReplicasStarting", "False Starting"),
    (TWO, (replica(TWO, 0), replica(TWO, 1, state="Starting")), "False ReplicasStarting", "True Ready"),
    (TWO, (replica(TWO, 0), replica(TWO, 1, state="Failed")), "False ReplicaFailed", "True Ready"),
    (ONE, (replica(ONE, 0, state="Failed"),), "False ReplicaFailed", "False ReplicaFailed"),
    (ONE, (replica(ONE, 0, state="Starting", last_error="no memory"),), "False ReplicaFailed", "False ReplicaFailed"),
    (base_model(engine=Engine(max_num_seqs=8)), (replica(ONE, 0),), "False RollingOut", "True Ready"),
    (base_model(replicas=0), (), "True ReplicasReady", "False ScaledToZero"),
])  # fmt: skip
def test_what_a_base_model_says(base: Any, replicas: Any, workload: str, ready: str) -> None:
    wanted = desired(base)
    said = answers(told(wanted, observed(wanted, *replicas))[BASE_KEY])

    assert (said["WorkloadReady"], said["Ready"]) == (workload, ready)


def test_weights_that_cannot_be_found_are_named() -> None:
    wanted = desired(ONE)
    status = told(wanted, observed(wanted, base_artifacts={BASE: AWAY}))[BASE_KEY]

    assert answers(status)["WorkloadReady"] == "False NotFound"
    assert evaluate(columns("BaseModel")[-1].json_path, {"status": status}) == AWAY.message


def test_a_rollout_that_waits_says_for_what() -> None:
    base = base_model(engine=Engine(max_num_seqs=8))
    wanted = desired(base, PIRATE)
    seen = observed(wanted, replica(ONE, 0, resident(PIRATE)), replica(base, 1))

    (message,) = [c["message"] for c in told(wanted, seen)[BASE_KEY]["conditions"] if c["type"] == "WorkloadReady"]
    assert message == "smollm2-0 stays: it serves the last copy of acme/pirate"


def test_the_message_under_way_is_the_sentence_of_the_action() -> None:
    wanted = desired(ONE, PIRATE)
    seen = observed(wanted, replica(ONE))
    (action,) = plan(wanted, seen, 0.0).actions
    (message,) = [c["message"] for c in told(wanted, seen)[ADAPTER_KEY]["conditions"] if c["type"] == "Progressing"]

    assert message == action.why


def test_a_refused_object_says_why_and_is_not_ready() -> None:
    wanted = admit(desired(PIRATE))
    status = told(wanted, observed(wanted))[ADAPTER_KEY]

    assert answers(status) == {"Accepted": "False BaseModelNotFound", "Ready": "False BaseModelNotFound"}


def test_an_unreadable_object_whose_last_good_form_goes_on_says_both() -> None:
    typo = SetAside((Problem("a.yaml: LoRAAdapter acme/pirate", ".spec.pined", "unknown field"),), readable=False)
    wanted = desired(ONE, PIRATE, set_aside={ADAPTER_KEY: typo})
    said = told(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE))))[ADAPTER_KEY]

    assert answers(said)["Accepted"] == "False Invalid"
    assert answers(said)["Ready"] == "True Ready"
    assert said["conditions"][0]["message"] == ".spec.pined: unknown field; its last good form goes on"


def test_a_tenant_counts_its_adapters_and_keys_and_tells_which_is_missing() -> None:
    keys = (SecretKeyRef("acme", "acme-key", "key"), SecretKeyRef("acme", "next", "key"))
    acme = tenant(api_keys=keys, quota=Quota(requests_per_minute=5))
    wanted = admit(desired(base_model(allowed_namespaces=ONE.allowed_namespaces), acme, secret()))
    status = told(wanted, observed(wanted))[TENANT_KEY]

    assert (status["keys"], status["adapters"]) == ("1/2", 0)
    assert answers(status) == {"Accepted": "True Accepted", "QuotaEnforced": "True Enforced"}
    assert "there is no Secret acme/next" in status["conditions"][0]["message"]
    assert status["conditions"][1]["message"] == "gateways answer 429 beyond requestsPerMinute 5"


def test_nothing_changes_while_nothing_changes() -> None:
    wanted = desired(ONE, PIRATE, tenant(), secret())
    seen = observed(wanted, replica(ONE, 0, resident(PIRATE)))
    first = told(wanted, seen)

    assert told(wanted, seen, first, LATER) == first


def test_load_does_not_change_a_status() -> None:
    wanted = desired(ONE, PIRATE)
    busy = replica(ONE, 0, resident(PIRATE), running=9, waiting=4, pages_free=1)

    assert told(wanted, observed(wanted, busy)) == told(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE))))


def test_a_transition_time_moves_with_the_answer_only() -> None:
    wanted = desired(ONE, PIRATE)
    before = told(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE, "Loading"))))
    after = told(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE))), before, LATER)
    times = {c["type"]: c["lastTransitionTime"] for c in after[ADAPTER_KEY]["conditions"]}

    assert times == {"Accepted": NOW, "ArtifactVerified": LATER, "Placed": NOW, "Ready": LATER,
                     "Progressing": LATER, "Degraded": NOW}  # fmt: skip
    assert after[ADAPTER_KEY]["placements"][0]["since"] == LATER


def test_every_generation_is_the_objects_own() -> None:
    wanted = desired(base_model(generation=7))
    status = told(wanted, observed(wanted))[BASE_KEY]

    assert {status["observedGeneration"], *(c["observedGeneration"] for c in status["conditions"])} == {7}


@pytest.mark.parametrize("kind", ["BaseModel", "LoRAAdapter", "Tenant"])
def test_the_crds_allow_every_status_that_is_written(kind: str) -> None:
    crd = yaml.safe_load((CRDS / f"{kind.lower()}.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    wanted = admit(desired(TWO, PIRATE, adapter("lost", base=ONE.ref), tenant(), secret(), base_model(
        ref=TWO.ref, replicas=2, allowed_namespaces=ONE.allowed_namespaces)))  # fmt: skip
    failed = resident(PIRATE, "Failed", "NoRoom", message="x" * 5000)
    seen = observed(wanted, replica(TWO, 0, failed, message="y" * 5000), replica(TWO, 1, state="Gone"))

    for key, status in told(wanted, seen).items():
        if key.kind == kind:
            assert set(status) <= set(schema["properties"])
            jsonschema.validate(status, schema)


def test_a_plan_without_actions_is_enough() -> None:
    assert statuses(Desired(), Observed(), Plan(), {}, NOW) == {}
