from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_gateway.core.fleet_model import (
    Adapter,
    BaseFleet,
    BaseModel,
    FleetDocument,
    Placement,
    Replica,
    index,
)
from lorafleet_gateway.core.routing import Choice, Load, Unavailable, route, superseded

STATES = st.sampled_from(["Ready", "Starting", "Draining", "Failed", "SomethingNew"])
REVISIONS = st.sampled_from(["new", "old"])
NAMES = ["r0", "r1", "r2", "r3"]
BASE = BaseModel("models", "smol", "smol-135m")


def fleet(states: dict[str, str], placements: list[Placement] | None = None, **fields: str) -> BaseFleet:
    replicas = tuple(Replica(name, f"http://{name}", state, "i1") for name, state in states.items())
    adapter = Adapter("acme.a", "acme", "a", "a", "new", placements=tuple(placements or ()), **fields)
    return index(FleetDocument(1, 1, BASE, replicas, (adapter,)))


def held(*names: str, revision: str = "new", state: str = "Ready") -> list[Placement]:
    return [Placement(name, revision, state) for name in names]


@st.composite
def situations(draw: st.DrawFn) -> tuple[BaseFleet, dict[tuple[str, str, str], Load], set[tuple[str, str, str]]]:
    part = fleet(
        {name: draw(STATES) for name in draw(st.lists(st.sampled_from(NAMES), unique=True))},
        draw(st.lists(st.builds(Placement, st.sampled_from(NAMES), REVISIONS, STATES), max_size=8)),
    )
    keys = [replica.key for replica in part.document.replicas]
    loads = {key: Load(draw(st.integers(0, 3)), draw(st.integers(0, 3))) for key in keys}
    return part, loads, {key for key in keys if draw(st.booleans())}


@given(situations(), st.integers(0, 2**64), st.booleans())
def test_a_choice_is_a_ready_holder_that_is_not_excluded_and_nobody_is_less_loaded(
    situation: tuple[BaseFleet, dict[tuple[str, str, str], Load], set[tuple[str, str, str]]], seed: int, bare: bool
) -> None:
    part, loads, excluded = situation
    adapter_id = None if bare else "acme.a"
    found = route(part, adapter_id, loads, seed=seed, excluded=excluded)

    ready = {r.name for r in part.document.replicas if r.state == "Ready"}
    placements = [p for p in part.document.adapters[0].placements if p.state == "Ready" and p.replica in ready]
    wanted = [p for p in placements if p.revision == "new"] or placements
    may = ready if bare else {p.replica for p in wanted}
    may = {name for name in may if part.replicas[name].key not in excluded}
    if isinstance(found, Unavailable):
        assert not may and not found.gone and found.why
    else:
        assert found.replica.name in may
        assert loads[found.replica.key].total == min(loads[part.replicas[name].key].total for name in may)
        assert bare or Placement(found.replica.name, found.revision, "Ready") in wanted


@given(situations(), st.integers(0, 2**64))
def test_one_seed_gives_one_answer_whatever_the_order_of_the_document(
    situation: tuple[BaseFleet, dict[tuple[str, str, str], Load], set[tuple[str, str, str]]], seed: int
) -> None:
    part, loads, excluded = situation
    document = part.document
    turned = index(FleetDocument(1, 1, BASE, document.replicas[::-1], document.adapters))

    assert route(part, None, loads, seed=seed, excluded=excluded) == route(
        turned, None, loads, seed=seed, excluded=excluded
    )


@given(situations(), st.integers(0, 2**64))
def test_avoiding_replicas_never_makes_a_request_unavailable(
    situation: tuple[BaseFleet, dict[tuple[str, str, str], Load], set[tuple[str, str, str]]], seed: int
) -> None:
    part, loads, avoided = situation
    plain = route(part, "acme.a", loads, seed=seed)
    careful = route(part, "acme.a", loads, seed=seed, avoided=avoided)

    assert isinstance(plain, Choice) == isinstance(careful, Choice)


def test_ties_spread_evenly_over_seeds() -> None:
    part = fleet(dict.fromkeys(NAMES, "Ready"), held(*NAMES))

    counts: Counter[str] = Counter()
    for seed in range(4000):
        found = route(part, "acme.a", {}, seed=seed)
        assert isinstance(found, Choice)
        counts[found.replica.name] += 1
    assert all(850 < counts[name] < 1150 for name in NAMES)


def test_an_old_revision_serves_until_the_wanted_one_is_ready_somewhere() -> None:
    ready = {"r0": "Ready", "r1": "Ready"}
    old = held("r0", revision="old")
    rolling = route(fleet(ready, old + held("r1", state="Loading")), "acme.a", {}, seed=0)
    rolled = route(fleet(ready, old + held("r1")), "acme.a", {}, seed=0)

    assert isinstance(rolling, Choice) and rolling.revision == "old"
    assert isinstance(rolled, Choice) and (rolled.replica.name, rolled.revision) == ("r1", "new")


def test_a_begun_answer_finds_only_its_own_revision() -> None:
    part = fleet({"r0": "Ready", "r1": "Ready"}, held("r0", revision="old") + held("r1"))
    found = route(part, "acme.a", {}, seed=0, revision="old")
    gone = route(part, "acme.a", {}, seed=0, revision="older")

    assert isinstance(found, Choice) and found.replica.name == "r0"
    assert gone == Unavailable("the revision that began the answer is no longer served")


def test_a_preferred_holder_is_taken_whatever_its_load_and_a_preferred_stranger_is_not() -> None:
    part = fleet({"r0": "Ready", "r1": "Ready", "r2": "Ready"}, held("r0", "r1"))
    loads = {part.replicas["r1"].key: Load(99)}

    for preferred, chosen in (("r1", "r1"), ("r2", "r0")):
        found = route(part, "acme.a", loads, seed=0, preferred=preferred)
        assert isinstance(found, Choice) and found.replica.name == chosen


@pytest.mark.parametrize(
    ("part", "adapter_id", "why", "gone"),
    [
        (None, None, "its base model is no longer served", True),
        (fleet({"r0": "Ready"}), "acme.b", "the adapter is no longer served", True),
        (fleet({}), None, "its base model has no replica", False),
        (fleet({"r0": "Starting"}), None, "no replica of its base model is ready (they are Starting)", False),
        (fleet({"r0": "Ready"}, state="Loading"), "acme.a", "the adapter is Loading", False),
        (
            fleet({"r0": "Ready"}, state="Failed", reason="DigestMismatch", message="sha256 differs."),
            "acme.a",
            "the adapter is Failed (DigestMismatch: sha256 differs)",
            False,
        ),
    ],
)
def test_why_nothing_can_be_asked(part: BaseFleet | None, adapter_id: str | None, why: str, gone: bool) -> None:
    assert route(part, adapter_id, {}, seed=0) == Unavailable(why, gone, failed="is Failed" in why)


def test_a_process_is_superseded_when_it_failed_or_its_name_has_another() -> None:
    part = fleet({"r0": "Ready", "r1": "Failed"})

    assert superseded(part, ("r0", "i0", "http://r0"))
    assert superseded(part, ("r1", "i1", "http://r1"))
    assert not superseded(part, ("r0", "i1", "http://r0"))
    assert not superseded(part, ("r9", "i1", "http://r9"))
    assert not superseded(None, ("r0", "i1", "http://r0"))
