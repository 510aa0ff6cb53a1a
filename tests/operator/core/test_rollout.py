"""Replicas: how they start, fail, restart, change their settings and go, each a situation and what is done about it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace

import pytest

from lorafleet_operator.core.objects import (
    Desired,
    Engine,
    Lora,
    Observed,
    Ref,
    Unresolved,
)
from lorafleet_operator.core.planner import plan
from lorafleet_operator.core.rollout import spec_hash
from lorafleet_sim.fleets import (
    BASE,
    adapter,
    base_model,
    brief,
    desired,
    found,
    observed,
    replica,
    resident,
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


def test_an_empty_fleet_gets_its_replicas_at_once() -> None:
    wanted = desired(TWO, PIRATE)

    assert short(wanted, observed(wanted)) == ["+smollm2-0", "+smollm2-1"]


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


def test_of_too_many_replicas_the_one_that_holds_the_fewest_adapters_goes() -> None:
    twice = adapter(copies_max=2)
    wanted = desired(TWO, twice, POET)
    full, some = (resident(twice), resident(POET)), (resident(twice),)
    seen = observed(wanted, replica(TWO, 0, *full), replica(TWO, 1), replica(TWO, 2, *some))

    assert short(wanted, seen) == ["-smollm2-1"]


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
    leaving = replica(ONE, 1, resident(PIRATE), chosen=True)

    assert short(wanted, observed(wanted, replica(ONE, 0), leaving)) == [f">smollm2-0 {PIRATE.ref.wire_id}"]
    loading = replica(ONE, 0, resident(PIRATE, "Loading"))
    assert short(wanted, observed(wanted, loading, leaving)) == []
    ready = replica(ONE, 0, resident(PIRATE))
    assert short(wanted, observed(wanted, ready, leaving)) == ["-smollm2-1"]


def test_replicas_of_a_base_model_that_is_gone_stop() -> None:
    assert short(desired(), observed(desired(), replica(ONE, 0, resident(PIRATE)))) == [
        "<smollm2-0 acme.pirate", "-smollm2-0",
    ]  # fmt: skip


def test_changed_settings_bring_a_new_replica_before_the_old_one_goes() -> None:
    wanted = desired(CHANGED, PIRATE)
    old = replica(ONE, 0, resident(PIRATE))

    assert short(wanted, observed(wanted, old)) == ["+smollm2-1"]
    starting = replica(CHANGED, 1, state="Starting")
    assert short(wanted, observed(wanted, old, starting)) == []
    assert short(wanted, observed(wanted, old, replica(CHANGED, 1))) == [f">smollm2-1 {PIRATE.ref.wire_id}"]
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
    ({"fairness": {"policy": "FCFS"}}, True),
    ({"fairness": {"users": "Fair"}}, True),
    ({"fairness": {"policy": "VTC", "users": "Tenant", "cost": {"input": 1.0}}}, False),
    ({"migration": {"enabled": True}}, False),
    ({"generation": 9}, False),
    ({"runtime": {"drainSeconds": 5, "updateStrategy": "Replace"}}, False),
])  # fmt: skip
def test_only_settings_that_a_process_cannot_change_restart_it(change: dict[str, object], restarts: bool) -> None:
    changed = replace(ONE, **change)  # type: ignore[arg-type]  # the table holds valid fields

    assert (spec_hash(changed, found(changed)) != spec_hash(ONE, found(ONE))) == restarts


def test_the_hash_of_default_fairness_is_that_of_replicas_which_never_heard_of_it() -> None:
    settings = [ONE.served_name, found(ONE).revision, asdict(ONE.engine), asdict(ONE.lora), {}]

    assert spec_hash(ONE, found(ONE)) == hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def test_a_drain_that_nobody_ends_is_ended() -> None:
    wanted = desired(ONE)
    seen = observed(wanted, replica(ONE, 0), replica(ONE, 1, state="Draining", since=100.0))

    assert plan(wanted, seen, 139.0).wake_at == 140.0
    assert short(wanted, seen, 140.0) == ["-smollm2-1"]
