"""The production planner over a fleet in memory: what must hold whatever happens, for any fleet and any seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafleet_operator.core.actions import LoadAdapter, StopReplica, UnloadAdapter
from lorafleet_operator.core.objects import Desired, Engine, Observed, Ref, Unresolved
from lorafleet_operator.core.planner import plan
from lorafleet_operator.reconcile import reconcile
from lorafleet_sim.fleets import BASE, adapter, base_model, desired
from lorafleet_sim.judge import ready_copies, shortfalls, watch
from lorafleet_sim.world import Laws, SimWorld, run, settle

MANY = settings(max_examples=25)


@st.composite
def fleets(draw: st.DrawFn) -> Desired:
    """One or two base models and up to eight adapters, with copies that fit or do not."""
    bases = [
        base_model(replicas=draw(st.integers(1, 4)), ref=Ref("models", name))
        for name in draw(st.sampled_from([["smollm2"], ["smollm2", "other"]]))
    ]
    adapters = []
    for index in range(draw(st.integers(0, 8))):
        least = draw(st.integers(1, 3))
        adapters.append(adapter(
            f"a{index}", base=draw(st.sampled_from(bases)).ref, copies_min=least,
            copies_max=least + draw(st.integers(0, 2)), priority=draw(st.integers(-1, 1)),
        ))  # fmt: skip
    return desired(*bases, *adapters)


@MANY
@given(fleets())
def test_a_fleet_in_a_perfect_world_gets_what_is_wanted_and_then_is_left_alone(wanted: Desired) -> None:
    world = SimWorld(wanted)

    asyncio.run(settle(world))

    assert shortfalls(world) == []
    assert plan(wanted, world.truth(), world.now()).actions == ()


@MANY
@given(fleets())
def test_copies_are_spread_evenly(wanted: Desired) -> None:
    world = SimWorld(wanted)

    asyncio.run(settle(world))

    for ref in wanted.base_models:
        held = [len(r.residents) for r in world.truth().replicas.values() if r.base == ref]
        assert max(held) - min(held) <= max([1, *(a.copies_min for a in wanted.adapters.values())])


@MANY
@given(fleets(), st.integers(0, 2**32 - 1))
def test_a_lost_replica_is_made_good_elsewhere_and_then_replaced(wanted: Desired, seed: int) -> None:
    world = SimWorld(wanted, seed=seed)
    asyncio.run(settle(world))
    lost = sorted(world.replicas)[seed % len(world.replicas)]

    world.crash(lost)
    asyncio.run(reconcile(world))
    elsewhere = {action.replica for action in world.plans[-1].actions if isinstance(action, LoadAdapter)}
    asyncio.run(settle(world))

    assert lost not in elsewhere
    assert shortfalls(world) == []


@MANY
@given(fleets(), st.integers(0, 2**32 - 1))
def test_a_world_of_faults_becomes_as_wanted_once_the_faults_end(wanted: Desired, seed: int) -> None:
    laws = Laws(crash_rate=0.01, failed_starts=0.3, failed_loads=0.2, stale=0.3)
    world = SimWorld(wanted, laws, seed)

    asyncio.run(run(world, 60))
    world.laws = Laws()
    asyncio.run(settle(world))

    assert shortfalls(world) == []


@MANY
@given(fleets(), st.integers(0, 2**32 - 1), st.sampled_from(["revision", "settings", "fewer", "copies"]))
def test_no_change_and_no_stale_picture_takes_away_the_last_ready_copy(wanted: Desired, seed: int, change: str) -> None:
    world = SimWorld(wanted, seed=seed)
    asyncio.run(settle(world))

    world.laws = Laws(stale=0.5)
    world.desired = changed(wanted, change)
    losses = asyncio.run(watch(world, 120))
    world.laws = Laws()
    asyncio.run(settle(world))

    assert losses == Counter()
    assert shortfalls(world) == []


def changed(wanted: Desired, change: str) -> Desired:
    """What users do to a fleet that serves."""
    bases, adapters = dict(wanted.base_models), dict(wanted.adapters)
    if change == "settings":
        bases = {ref: replace(base, engine=Engine(max_num_seqs=32)) for ref, base in bases.items()}
    if change == "fewer":
        bases = {ref: replace(base, replicas=1) for ref, base in bases.items()}
        adapters = {ref: replace(one, copies_max=max(1, one.copies_min)) for ref, one in adapters.items()}
    if change == "revision":
        source = {ref: replace(one.source, uri=one.source.uri + "-2") for ref, one in adapters.items()}
        adapters = {ref: replace(one, source=source[ref]) for ref, one in adapters.items()}
    if change == "copies":
        adapters = {ref: replace(one, copies_min=1, copies_max=1) for ref, one in adapters.items()}
    return replace(wanted, base_models=bases, adapters=adapters)


def test_the_watch_for_lost_copies_can_see_one() -> None:
    world = SimWorld(desired(base_model(runtime={"updateStrategy": "Replace"}), adapter()))
    asyncio.run(settle(world))

    world.desired = changed(world.desired, "settings")

    assert asyncio.run(watch(world, 60)) == Counter({adapter().ref: 1})


@MANY
@given(fleets(), st.integers(0, 2**32 - 1))
def test_a_stale_picture_costs_a_bounded_number_of_actions(wanted: Desired, seed: int) -> None:
    calm, stale = SimWorld(wanted, seed=seed), SimWorld(wanted, Laws(stale=0.5), seed)

    asyncio.run(run(calm, 90))
    asyncio.run(run(stale, 90))

    def churn(world: SimWorld) -> int:
        actions = [action for decided in world.plans[20:] for action in decided.actions]
        return sum(isinstance(action, UnloadAdapter | StopReplica) for action in actions)

    assert churn(calm) == 0
    assert churn(stale) == 0


def test_an_adapter_that_is_refused_is_tried_once_per_revision_and_harms_nobody() -> None:
    bad = adapter("bad")
    world = SimWorld(desired(base_model(replicas=2), bad, adapter()), Laws(refused={bad.ref: "RankTooHigh"}))

    asyncio.run(run(world, 600))

    loads = [a for decided in world.plans for a in decided.actions if isinstance(a, LoadAdapter)]
    assert Counter(load.adapter for load in loads) == {bad.ref: 1, adapter().ref: 1}


def test_adapters_that_find_no_room_back_off_instead_of_hammering() -> None:
    wanted = desired(base_model(), *(adapter(f"a{i}") for i in range(4)))
    world = SimWorld(wanted, Laws(pages=24))

    asyncio.run(run(world, 600))

    loads = Counter(a.adapter for decided in world.plans for a in decided.actions if isinstance(a, LoadAdapter))
    assert sum(ready_copies(world).values()) == 2
    assert max(loads.values()) <= 20


def test_a_source_that_goes_away_takes_nothing_with_it() -> None:
    world = SimWorld(desired(base_model(replicas=2), adapter()))
    asyncio.run(settle(world))

    world.unresolved = {BASE: Unresolved("NotFound", "x"), adapter().ref: Unresolved("NotFound", "x")}
    asyncio.run(settle(world))

    assert ready_copies(world)[adapter().ref] == 1
    assert len(world.replicas) == 2


def test_a_deleted_fleet_ends() -> None:
    world = SimWorld(desired(base_model(replicas=3), adapter()))
    asyncio.run(settle(world))

    world.desired = Desired()
    asyncio.run(settle(world))

    assert world.replicas == {}


def test_equal_seeds_give_equal_histories() -> None:
    laws = Laws(crash_rate=0.05, failed_loads=0.2, stale=0.3)
    worlds = [SimWorld(desired(base_model(replicas=3), adapter(), adapter("poet")), laws, seed=7) for _ in range(2)]

    for world in worlds:
        asyncio.run(run(world, 120))

    assert worlds[0].plans == worlds[1].plans


def test_a_hundredth_adapter_restarts_nothing() -> None:
    adapters = [adapter(f"a{i}") for i in range(100)]
    world = SimWorld(desired(base_model(replicas=4), *adapters[:99]))
    asyncio.run(settle(world))
    before = {name: replica.incarnation for name, replica in world.replicas.items()}

    world.desired = desired(base_model(replicas=4), *adapters)
    asyncio.run(settle(world))

    assert {name: replica.incarnation for name, replica in world.replicas.items()} == before
    assert shortfalls(world) == []


@pytest.mark.parametrize("adapters", [2000])
def test_a_large_fleet_is_planned_in_one_pass_without_repeating_itself(adapters: int) -> None:
    wanted = desired(base_model(replicas=8), *(adapter(f"a{i}") for i in range(adapters)))
    world = SimWorld(wanted, Laws(pages=100_000))
    asyncio.run(settle(world))
    lost = world.truth().replicas["smollm2-3"]

    world.crash("smollm2-3")
    decided = plan(wanted, world.truth(), world.now())

    loads = [action for action in decided.actions if isinstance(action, LoadAdapter)]
    assert {load.adapter for load in loads} == {resident.adapter for resident in lost.residents}
    assert len(loads) == len(decided.actions) == adapters // 8


def test_an_empty_world_is_settled() -> None:
    world = SimWorld(Desired())

    asyncio.run(settle(world))

    assert world.truth() == Observed()
