"""A new operator goes on from what the statuses say, until it has looked for itself."""

from __future__ import annotations

from typing import Any

import pytest

from lorafleet_operator.core.objects import Artifact, Unresolved
from lorafleet_operator.core.planner import plan
from lorafleet_operator.kube.last_revisions import with_last_revisions
from lorafleet_operator.kube.store import Store
from lorafleet_sim.fleets import adapter, base_model, brief, desired, observed, replica, resident

ONE = adapter("one")
STATUS = {"revision": "sha256:1", "observedGeneration": 1}


def store(status: dict[str, Any]) -> Store:
    found = Store()
    spec = {"baseModelRef": {"name": "smollm2"}, "source": {"uri": ONE.source.uri}}
    found.put("LoRAAdapter", {"metadata": {"namespace": "acme", "name": "one"}, "spec": spec, "status": status})
    return found


@pytest.mark.parametrize(("status", "known"), [
    (STATUS, {ONE.ref: Artifact("sha256:1")}),
    ({**STATUS, "observedGeneration": 2}, {}),  # the status is about another spec
    ({**STATUS, "revision": ""}, {}),
    ({}, {}),
])  # fmt: skip
def test_what_has_not_been_looked_at_has_the_revision_of_its_status(status: dict[str, Any], known: object) -> None:
    assert with_last_revisions("LoRAAdapter", {ONE.ref: ONE}, {}, store(status)) == known


def test_what_has_been_looked_at_counts_more() -> None:
    away = Unresolved("NotFound", "x")

    assert with_last_revisions("LoRAAdapter", {ONE.ref: ONE}, {ONE.ref: away}, store(STATUS)) == {ONE.ref: away}


def test_a_revision_alone_keeps_what_serves_and_loads_nothing() -> None:
    base, two = base_model(), adapter("two")
    wanted = desired(base, ONE, two)
    seen = observed(
        wanted, replica(base, 0, resident(ONE, revision="sha256:1")),
        artifacts={ONE.ref: Artifact("sha256:1"), two.ref: Artifact("sha256:2")},
    )  # fmt: skip

    assert brief(plan(wanted, seen, 0.0)) == []
