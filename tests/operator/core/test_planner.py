"""The planner as a table of situations: what is wanted, what is there, and what is done about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorafleet_operator.core.objects import (
    Desired,
    Engine,
    ObjectKey,
    Observed,
    Problem,
    Quota,
    Ref,
    SetAside,
    Unresolved,
)
from lorafleet_operator.core.planner import plan
from lorafleet_sim.fleets import (
    adapter,
    base_model,
    brief,
    desired,
    found,
    observed,
    replica,
    resident,
    tenant,
)

ONE = base_model()
TWO = base_model(replicas=2)
CHANGED = replace(ONE, engine=Engine(max_num_seqs=32))
PIRATE = adapter()
POET = adapter("poet")
OLD = "sha256:" + "0" * 64


def short(wanted: Desired, seen: Observed, now: float = 100.0) -> list[str]:
    """The plan in short; every action says why."""
    decided = plan(wanted, seen, now)
    assert all(action.why for action in decided.actions)
    return brief(decided)


def test_a_converged_fleet_is_left_alone() -> None:
    wanted = desired(TWO, PIRATE)
    seen = observed(wanted, replica(TWO, 0, resident(PIRATE)), replica(TWO, 1))

    assert plan(wanted, seen, 100.0).actions == ()
    assert plan(wanted, seen, 100.0).wake_at is None


def test_nothing_is_taken_away_while_the_input_cannot_be_read() -> None:
    seen = observed(desired(), replica(ONE, 0, resident(PIRATE)))
    typo = (Problem("f.yaml", "", "is not YAML"),)
    base_typo = {ObjectKey("BaseModel", "models", "smollm2"): SetAside(typo, readable=False)}
    adapter_typo = {ObjectKey("LoRAAdapter", "acme", "pirate"): SetAside(typo, readable=False)}

    assert short(desired(complete=False), seen) == []
    assert short(desired(set_aside=base_typo | adapter_typo), seen) == []


def test_what_a_rule_refuses_is_taken_away() -> None:
    refused = {ObjectKey("LoRAAdapter", "acme", "pirate"): SetAside((Problem("x", "", "no"),), readable=True)}
    wanted = desired(ONE, set_aside=refused)

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)))) == ["<smollm2-0 acme.pirate"]


def test_adapters_load_where_the_fewest_are() -> None:
    wanted = desired(TWO, PIRATE, POET)
    seen = observed(wanted, replica(TWO, 0, resident(POET)), replica(TWO, 1))

    assert short(wanted, seen) == [f">smollm2-1 {PIRATE.ref.wire_id}"]


def test_adapters_wait_for_a_replica_to_be_ready() -> None:
    wanted = desired(ONE, PIRATE)

    assert short(wanted, observed(wanted, replica(ONE, 0, state="Starting"))) == []


def test_a_new_revision_loads_beside_the_old_one() -> None:
    wanted = desired(ONE, PIRATE)
    old = resident(PIRATE, revision=OLD)

    assert short(wanted, observed(wanted, replica(ONE, 0, old))) == [f">smollm2-0 {PIRATE.ref.wire_id}"]
    assert short(wanted, observed(wanted, replica(ONE, 0, old, resident(PIRATE, "Loading")))) == []


def test_an_adapter_without_an_object_is_unloaded() -> None:
    wanted = desired(ONE)

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)))) == ["<smollm2-0 acme.pirate"]
    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE, "Draining")))) == []


def test_an_adapter_that_belongs_to_another_base_model_now_moves() -> None:
    other = base_model(ref=Ref("models", "other"))
    moved = adapter(base=other.ref)
    wanted = desired(ONE, other, moved)
    seen = observed(wanted, replica(ONE, 0, resident(moved)), replica(other, 0))

    assert short(wanted, seen) == ["<smollm2-0 acme.pirate", f">other-0 {moved.ref.wire_id}"]


def test_a_failed_load_is_tried_again_when_its_time_has_come() -> None:
    wanted = desired(ONE, PIRATE)
    seen = observed(
        wanted, replica(ONE, 0, resident(PIRATE, "Failed", "FetchFailed")),
        load_retry_at={(PIRATE.ref, "smollm2-0"): 120.0},
    )  # fmt: skip

    assert plan(wanted, seen, 119.0).actions == ()
    assert plan(wanted, seen, 119.0).wake_at == 120.0
    assert short(wanted, seen, 120.0) == [f">smollm2-0 {PIRATE.ref.wire_id}"]


def test_a_load_that_failed_for_want_of_room_goes_elsewhere_and_its_memory_is_cleared() -> None:
    wanted = desired(TWO, PIRATE)
    full = replica(TWO, 0, resident(PIRATE, "Failed", "NoRoom"))

    assert short(wanted, observed(wanted, full, replica(TWO, 1))) == [f">smollm2-1 {PIRATE.ref.wire_id}"]
    assert short(wanted, observed(wanted, full, replica(TWO, 1, resident(PIRATE)))) == ["<smollm2-0 acme.pirate"]


@pytest.mark.parametrize("reason", ["InvalidAdapter", "RankTooHigh", "DigestMismatch"])
def test_a_permanent_failure_is_not_tried_again_until_the_revision_changes(reason: str) -> None:
    wanted = desired(TWO, PIRATE)
    refused = replica(TWO, 0, resident(PIRATE, "Failed", reason))

    assert short(wanted, observed(wanted, refused, replica(TWO, 1)), 1e9) == []
    changed = desired(TWO, adapter(uri="file:adapters/fixed"))
    assert short(changed, observed(changed, refused, replica(TWO, 1))) == [f">smollm2-0 {PIRATE.ref.wire_id}"]


def test_an_old_revision_serves_on_while_the_new_one_is_refused() -> None:
    wanted = desired(ONE, PIRATE)
    both = replica(ONE, 0, resident(PIRATE, revision=OLD), resident(PIRATE, "Failed", "InvalidAdapter"))

    assert short(wanted, observed(wanted, both), 1e9) == []


def test_an_adapter_whose_source_is_away_keeps_its_copies() -> None:
    wanted = desired(ONE, PIRATE)
    away = Unresolved("NotFound", "there is no such folder")

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)), artifacts={PIRATE.ref: away})) == []


def test_important_adapters_are_placed_first() -> None:
    urgent = adapter("urgent", priority=10)
    wanted = desired(ONE, PIRATE, urgent)

    assert short(wanted, observed(wanted, replica(ONE, 0))) == [
        f">smollm2-0 {urgent.ref.wire_id}", f">smollm2-0 {PIRATE.ref.wire_id}",
    ]  # fmt: skip


def test_adapters_beyond_the_byte_quota_are_not_loaded() -> None:
    acme = tenant(quota=Quota(max_adapter_bytes=found(PIRATE).bytes))
    wanted = desired(ONE, PIRATE, POET, acme)

    assert short(wanted, observed(wanted, replica(ONE, 0))) == [f">smollm2-0 {PIRATE.ref.wire_id}"]


def test_actions_come_in_an_order_that_makes_room_first_and_takes_away_last() -> None:
    other = base_model(ref=Ref("models", "other"))
    gone = base_model(ref=Ref("models", "gone"))
    wanted = desired(ONE, other, PIRATE)
    seen = observed(wanted, replica(ONE, 0, resident(POET)), replica(gone, 0))

    assert short(wanted, seen) == [
        "+other-0", "<smollm2-0 acme.poet", f">smollm2-0 {PIRATE.ref.wire_id}", "-gone-0",
    ]  # fmt: skip


def test_the_log_line_of_an_action_says_why() -> None:
    wanted = desired(ONE)
    (action,) = plan(wanted, observed(wanted), 0.0).actions

    assert str(action) == "start replica smollm2-0: 0 of 1 replicas exist"
