"""The columns of `get`: what they show of an object, and the small path language that they use."""

from __future__ import annotations

import pytest

from lorafleet_operator.core.columns import columns, evaluate
from lorafleet_operator.core.objects import ObjectKey
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.status import statuses
from lorafleet_sim.fleets import adapter, base_model, desired, observed, replica, resident

NOW = "2026-01-01T00:00:00Z"
ONE = base_model()
PIRATE = adapter()


def test_columns_show_what_the_status_says() -> None:
    wanted = desired(ONE, PIRATE)
    seen = observed(wanted, replica(ONE, 0, resident(PIRATE)))
    status = statuses(wanted, seen, plan(wanted, seen, 0.0), {}, NOW)[ObjectKey("LoRAAdapter", "acme", "pirate")]
    document = {
        "metadata": {"creationTimestamp": NOW},
        "spec": {"baseModelRef": {"name": "smollm2"}},
        "status": status,
    }

    assert {c.name: evaluate(c.json_path, document) for c in columns("LoRAAdapter")} == {
        "Base": "smollm2", "Serves": "pirate", "Ready": "1/1", "Revision": status["shortRevision"],
        "Status": "Ready", "Age": NOW, "Replicas": "smollm2-0",
        "Message": f"1 copy serves {status['revision']}",
    }  # fmt: skip
    assert all(evaluate(c.json_path, {}) is None for kind in ("BaseModel", "Tenant") for c in columns(kind))


def test_a_path_that_columns_do_not_use_is_refused() -> None:
    with pytest.raises(ValueError, match="not a path"):
        evaluate(".status.placements[0].state", {})
