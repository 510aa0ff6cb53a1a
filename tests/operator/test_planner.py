"""The planner as a table of situations: what is wanted, what is there, and what is done about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lorafleet_operator.core.actions import LoadAdapter, StartReplica, StopReplica, UnloadAdapter
from lorafleet_operator.core.objects import (
    Engine,
    Lora,
    ObjectKey,
    Problem,
    Quota,
    Ref,
    SetAside,
    Unresolved,
)
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.rollout import spec_hash
from lorafleet_sim.fleets import (
    BASE,
    adapter,
    base_model,
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


def short(wanted, seen, now=100.0):  # type: ignore[no-untyped-def]  # a table's helper
    """The plan in short: what is done to what."""
    marks = {StartReplica: "+", StopReplica: "-", LoadAdapter: ">", UnloadAdapter: "<"}
    decided = plan(wanted, seen, now)
    assert all(action.why for action in decided.actions)
    return [
        marks[type(action)] + action.replica
        + (f":{action.adapter}" if isinstance(action, LoadAdapter) else "")
        + (f":{action.adapter_id}" if isinstance(action, UnloadAdapter) else "")
        for action in decided.actions
    ]  # fmt: skip


def test_an_empty_fleet_gets_its_replicas_at_once() -> None:
    wanted = desired(TWO, PIRATE)

    assert short(wanted, observed(wanted)) == ["+smollm2-0", "+smollm2-1"]


def test_a_converged_fleet_is_left_alone() -> None:
    wanted = desired(TWO, PIRATE)
    seen = observed(wanted, replica(TWO, 0, resident(PIRATE)), replica(TWO, 1))

    assert plan(wanted, seen, 100.0).actions == ()
    assert plan(wanted, seen, 100.0).wake_at is None


def test_a_missing_replica_takes_the_lowest_free_index() -> None:
    wanted = desired(base_model(replicas=3))

    assert short(wanted, observed(wanted, replica(ONE, 0), replica(ONE, 2))) == ["+smollm2-1"]


def test_a_name_that_another_namespace_uses_gets_the_namespace_in_front() -> None:
    other = base_model(ref=Ref("other", "smollm2"))
    wanted = desired(ONE, other)

    assert short(wanted, observed(wanted)) == ["+smollm2-0", "+other.smollm2-0"]


def test_nothing_starts_without_weights() -> None:
    wanted = desired(ONE)
    away = Unresolved("NotFound", "there is no such file")

    assert short(wanted, observed(wanted, base_artifacts={BASE: away})) == []


def test_a_failed_replica_starts_again_when_its_time_has_come() -> None:
    wanted = desired(ONE)
    seen = observed(wanted, replica(ONE, state="Failed", failures=2, retry_at=110.0))

    assert plan(wanted, seen, 109.0).actions == ()
    assert plan(wanted, seen, 109.0).wake_at == 110.0
    assert short(wanted, seen, 110.0) == ["+smollm2-0"]


def test_a_failed_replica_starts_at_once_when_its_settings_have_changed() -> None:
    wanted = desired(CHANGED)

    assert short(wanted, observed(wanted, replica(ONE, state="Failed", retry_at=999.0))) == ["+smollm2-0"]


def test_surplus_replicas_stop_from_the_highest_index() -> None:
    wanted = desired(ONE)

    assert short(wanted, observed(wanted, *(replica(ONE, i) for i in range(3)))) == ["-smollm2-2", "-smollm2-1"]


def test_a_surplus_replica_serves_on_while_the_one_that_stays_is_down() -> None:
    wanted = desired(ONE)
    seen = observed(wanted, replica(ONE, 0, state="Failed", retry_at=999.0), replica(ONE, 1))

    assert short(wanted, seen) == []
    assert plan(wanted, seen, 0.0).waits == {"smollm2-1": "too few others are Ready"}


def test_scaling_to_zero_stops_everything_though_adapters_are_wanted() -> None:
    wanted = desired(base_model(replicas=0), PIRATE)

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)))) == ["-smollm2-0"]


def test_scaling_down_waits_for_the_adapters_to_lie_elsewhere() -> None:
    wanted = desired(ONE, PIRATE)
    leaving = replica(ONE, 1, resident(PIRATE))

    assert short(wanted, observed(wanted, replica(ONE, 0), leaving)) == [f">smollm2-0:{PIRATE.ref}"]
    loading = replica(ONE, 0, resident(PIRATE, "Loading"))
    assert short(wanted, observed(wanted, loading, leaving)) == []
    ready = replica(ONE, 0, resident(PIRATE))
    assert short(wanted, observed(wanted, ready, leaving)) == ["-smollm2-1"]


def test_replicas_of_a_base_model_that_is_gone_stop() -> None:
    assert short(desired(), observed(desired(), replica(ONE, 0, resident(PIRATE)))) == [
        "<smollm2-0:acme.pirate", "-smollm2-0",
    ]  # fmt: skip


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

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)))) == ["<smollm2-0:acme.pirate"]


def test_changed_settings_bring_a_new_replica_before_the_old_one_goes() -> None:
    wanted = desired(CHANGED, PIRATE)
    old = replica(ONE, 0, resident(PIRATE))

    assert short(wanted, observed(wanted, old)) == ["+smollm2-1"]
    starting = replica(CHANGED, 1, state="Starting")
    assert short(wanted, observed(wanted, old, starting)) == []
    assert short(wanted, observed(wanted, old, replica(CHANGED, 1))) == [f">smollm2-1:{PIRATE.ref}"]
    assert short(wanted, observed(wanted, old, replica(CHANGED, 1, resident(PIRATE)))) == ["-smollm2-0"]


def test_several_replicas_change_one_after_another() -> None:
    wanted = desired(replace(CHANGED, replicas=2))
    old = [replica(TWO, 0), replica(TWO, 1)]

    assert short(wanted, observed(wanted, *old)) == ["+smollm2-2"]
    assert short(wanted, observed(wanted, *old, replica(CHANGED, 2))) == ["-smollm2-0"]
    assert short(wanted, observed(wanted, old[1], replica(CHANGED, 2))) == ["+smollm2-0"]


def test_replace_stops_first_and_reuses_the_index() -> None:
    changed = replace(CHANGED, runtime={"updateStrategy": "Replace"})
    wanted = desired(changed, PIRATE)

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)))) == ["-smollm2-0"]
    assert short(wanted, observed(wanted, replica(ONE, 0, state="Draining", since=99.0))) == []
    assert short(wanted, observed(wanted)) == ["+smollm2-0"]


def test_a_rollout_does_not_wait_for_an_adapter_that_the_new_settings_refuse() -> None:
    smaller = replace(ONE, lora=Lora(max_rank=4))
    wanted = desired(smaller, PIRATE)
    refused = replica(smaller, 1, resident(PIRATE, "Failed", "RankTooHigh"))

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)), refused)) == ["-smollm2-0"]


def test_a_rollout_without_room_gets_another_replica_instead_of_waiting_for_ever() -> None:
    wanted = desired(replace(CHANGED, replicas=2), PIRATE)
    old = [replica(TWO, 0, resident(PIRATE)), replica(TWO, 1)]
    full = replica(CHANGED, 2, resident(PIRATE, "Failed", "NoRoom"))
    seen = observed(wanted, old[0], full, load_retry_at={(PIRATE.ref, "smollm2-2"): 999.0})

    assert short(wanted, seen) == ["+smollm2-1"]


@pytest.mark.parametrize(("change", "restarts"), [
    ({"engine": Engine(max_model_len=4096)}, True),
    ({"lora": Lora(max_rank=8)}, True),
    ({"runtime": {"image": "runtime:2"}}, True),
    ({"source": replace(ONE.source, uri="file:other.gguf")}, True),
    ({"replicas": 7}, False),
    ({"fairness": {"policy": "FCFS"}}, False),
    ({"migration": {"enabled": True}}, False),
    ({"generation": 9}, False),
    ({"runtime": {"drainSeconds": 5, "updateStrategy": "Replace"}}, False),
])  # fmt: skip
def test_only_settings_that_a_process_cannot_change_restart_it(change: dict[str, object], restarts: bool) -> None:
    changed = replace(ONE, **change)  # type: ignore[arg-type]  # the table holds valid fields

    assert (spec_hash(changed, found(changed)) != spec_hash(ONE, found(ONE))) == restarts


def test_a_drain_that_nobody_ends_is_ended() -> None:
    wanted = desired(ONE)
    seen = observed(wanted, replica(ONE, 0), replica(ONE, 1, state="Draining", since=100.0))

    assert plan(wanted, seen, 139.0).wake_at == 140.0
    assert short(wanted, seen, 140.0) == ["-smollm2-1"]


def test_adapters_load_where_the_fewest_are() -> None:
    wanted = desired(TWO, PIRATE, POET)
    seen = observed(wanted, replica(TWO, 0, resident(POET)), replica(TWO, 1))

    assert short(wanted, seen) == [f">smollm2-1:{PIRATE.ref}"]


def test_adapters_wait_for_a_replica_to_be_ready() -> None:
    wanted = desired(ONE, PIRATE)

    assert short(wanted, observed(wanted, replica(ONE, 0, state="Starting"))) == []


def test_a_new_revision_loads_beside_the_old_one() -> None:
    wanted = desired(ONE, PIRATE)
    old = resident(PIRATE, revision=OLD)

    assert short(wanted, observed(wanted, replica(ONE, 0, old))) == [f">smollm2-0:{PIRATE.ref}"]
    assert short(wanted, observed(wanted, replica(ONE, 0, old, resident(PIRATE, "Loading")))) == []


def test_an_adapter_without_an_object_is_unloaded() -> None:
    wanted = desired(ONE)

    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE)))) == ["<smollm2-0:acme.pirate"]
    assert short(wanted, observed(wanted, replica(ONE, 0, resident(PIRATE, "Draining")))) == []


def test_an_adapter_that_belongs_to_another_base_model_now_moves() -> None:
    other = base_model(ref=Ref("models", "other"))
    moved = adapter(base=other.ref)
    wanted = desired(ONE, other, moved)
    seen = observed(wanted, replica(ONE, 0, resident(moved)), replica(other, 0))

    assert short(wanted, seen) == ["<smollm2-0:acme.pirate", f">other-0:{moved.ref}"]


def test_a_failed_load_is_tried_again_when_its_time_has_come() -> None:
    wanted = desired(ONE, PIRATE)
    seen = observed(
        wanted, replica(ONE, 0, resident(PIRATE, "Failed", "FetchFailed")),
        load_retry_at={(PIRATE.ref, "smollm2-0"): 120.0},
    )  # fmt: skip

    assert plan(wanted, seen, 119.0).actions == ()
    assert plan(wanted, seen, 119.0).wake_at == 120.0
    assert short(wanted, seen, 120.0) == [f">smollm2-0:{PIRATE.ref}"]


def test_a_load_that_failed_for_want_of_room_goes_elsewhere_and_its_memory_is_cleared() -> None:
    wanted = desired(TWO, PIRATE)
    full = replica(TWO, 0, resident(PIRATE, "Failed", "NoRoom"))

    assert short(wanted, observed(wanted, full, replica(TWO, 1))) == [f">smollm2-1:{PIRATE.ref}"]
    assert short(wanted, observed(wanted, full, replica(TWO, 1, resident(PIRATE)))) == ["<smollm2-0:acme.pirate"]


@pytest.mark.parametrize("reason", ["InvalidAdapter", "RankTooHigh", "DigestMismatch"])
def test_a_permanent_failure_is_not_tried_again_until_the_revision_changes(reason: str) -> None:
    wanted = desired(TWO, PIRATE)
    refused = replica(TWO, 0, resident(PIRATE, "Failed", reason))

    assert short(wanted, observed(wanted, refused, replica(TWO, 1)), 1e9) == []
    changed = desired(TWO, adapter(uri="file:adapters/fixed"))
    assert short(changed, observed(changed, refused, replica(TWO, 1))) == [f">smollm2-0:{PIRATE.ref}"]


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
        f">smollm2-0:{urgent.ref}", f">smollm2-0:{PIRATE.ref}",
    ]  # fmt: skip


def test_adapters_beyond_the_byte_quota_are_not_loaded() -> None:
    acme = tenant(quota=Quota(max_adapter_bytes=found(PIRATE).bytes))
    wanted = desired(ONE, PIRATE, POET, acme)

    assert short(wanted, observed(wanted, replica(ONE, 0))) == [f">smollm2-0:{PIRATE.ref}"]


def test_actions_come_in_an_order_that_makes_room_first_and_takes_away_last() -> None:
    other = base_model(ref=Ref("models", "other"))
    gone = base_model(ref=Ref("models", "gone"))
    wanted = desired(ONE, other, PIRATE)
    seen = observed(wanted, replica(ONE, 0, resident(POET)), replica(gone, 0))

    assert short(wanted, seen) == [
        "+other-0", "<smollm2-0:acme.poet", f">smollm2-0:{PIRATE.ref}", "-gone-0",
    ]  # fmt: skip


def test_the_log_line_of_an_action_says_why() -> None:
    wanted = desired(ONE)
    (action,) = plan(wanted, observed(wanted), 0.0).actions

    assert str(action) == "start replica smollm2-0: 0 of 1 replicas exist"
