from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_gateway.core.fleet_model import Quota
from lorafleet_gateway.core.quota import Account, Refusal, Use
from lorafleet_gateway.core.shared_use import MOST_GATEWAYS, NEW_EXCHANGES, SILENT_SECONDS, OwnUse, SharedUse


def test_a_new_gateways_first_use_counts_and_an_old_ones_history_does_not() -> None:
    others = SharedUse("me")

    assert others.hear("new", 3, {"acme": Use(2, 100, 1)}, 0.0, whole=True) == {"acme": (2, 100)}
    assert others.hear("old", 90_000, {"acme": Use(2000, 10_000, 3)}, 0.0, whole=True) == {}
    assert others.hear("old", 90_001, {"acme": Use(2001, 10_050, 4)}, 0.0, whole=False) == {"acme": (1, 50)}
    assert others.hear("old", 90_002, {"globex": Use(1, 9, 1)}, 0.0, whole=False) == {"globex": (1, 9)}
    assert others.hear("me", 1, {"acme": Use(9, 9, 9)}, 0.0, whole=True) == {}
    assert (others.running("acme"), others.running("globex"), others.running("nobody")) == (5, 1, 0)


def test_a_silent_gateway_is_forgotten_and_its_return_charges_no_history() -> None:
    others = SharedUse("me")
    others.hear("g", 1, {"acme": Use(1, 10, 1)}, 0.0, whole=True)
    others.forget(SILENT_SECONDS)
    assert others.running("acme") == 1
    others.forget(SILENT_SECONDS + 1)
    assert (others.running("acme"), len(others)) == (0, 0)

    # Replicas now tell only what changes, so that a tenant may come later than its gateway, with a long history.
    assert others.hear("g", 500, {"acme": Use(900, 9000, 2)}, 90.0, whole=False) == {}
    assert others.hear("g", 501, {"globex": Use(800, 8000, 1)}, 90.2, whole=False) == {}
    assert others.hear("g", 502, {"globex": Use(801, 8010, 1)}, 90.4, whole=False) == {"globex": (1, 10)}


def test_a_gateway_that_only_counts_on_is_not_silent() -> None:
    others = SharedUse("me")
    others.hear("g", 1, {"acme": Use(1, 10, 1)}, 0.0, whole=True)
    others.hear("g", 200, {}, 50.0, whole=False)
    others.hear("g", 200, {}, 100.0, whole=False)  # repeated by another replica: nothing new
    others.forget(100.0)
    assert others.running("acme") == 1

    others.forget(50.0 + SILENT_SECONDS + 1)
    assert others.running("acme") == 0


def test_more_gateways_than_there_can_be_are_not_kept() -> None:
    others = SharedUse("me")
    for i in range(MOST_GATEWAYS + 5):
        others.hear(f"g{i}", 1, {"acme": Use(started=1)}, 0.0, whole=True)

    assert len(others) == others.running("acme") == MOST_GATEWAYS


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 900), st.integers(0, 4)), min_size=1, max_size=12),
    st.integers(0, 2**32),
)
def test_losing_repeating_and_reordering_exchanges_does_no_harm_once_the_last_arrives(
    steps: list[tuple[int, int, int]], seed: int
) -> None:
    assert len(steps) <= NEW_EXCHANGES
    messages: list[tuple[int, Use]] = []
    requests = tokens = 0
    for sequence, (more, much, running) in enumerate(steps):
        requests, tokens = requests + more, tokens + much
        started = messages[-1][1].started + running if messages else running
        messages.append((sequence, Use(requests, tokens, started, started // 2)))
    draw = random.Random(seed)
    disturbed = [draw.choice(messages) for _ in range(draw.randrange(20))]
    disturbed.insert(draw.randrange(len(disturbed) + 1), messages[-1])

    def outcome(received: list[tuple[int, Use]]) -> tuple[int, int, int]:
        others, account = SharedUse("me"), Account(Quota(tokens_per_minute=1000), 0.0)
        charged = 0
        for sequence, use in received:
            for took in others.hear("g", sequence, {"acme": use}, 0.0, whole=False).values():
                account.took_elsewhere(*took, 0.0)
                charged += took[1]
        refusal = account.reserve(1000, 0.0)
        return charged, others.running("acme"), refusal.used if isinstance(refusal, Refusal) else 0

    assert outcome(disturbed) == outcome(messages)


@pytest.mark.parametrize("gateways", [2, 3])
@given(seed=st.integers(0, 2**32))
def test_together_gateways_admit_no_more_than_the_docstring_says(gateways: int, seed: int) -> None:
    """Every gateway is asked for more than it gives, and all hear of all others every `period` seconds."""
    rate, period, draw = 10.0, 0.5, random.Random(seed)
    limit = round(rate * 60)
    names = [f"g{i}" for i in range(gateways)]
    accounts = {name: Account(Quota(requests_per_minute=limit), 0.0) for name in names}
    others = {name: SharedUse(name) for name in names}
    admitted, most_over, settled_over, now = 0, 0.0, 0.0, 0.0
    for tick in range(1, 300):
        now = tick * period
        for name in draw.sample(names, gateways):
            for _ in range(draw.randrange(2 * limit)):
                if isinstance(accounts[name].reserve(0, now), Refusal):
                    break
                admitted += 1
        over = admitted - limit - rate * now
        most_over = max(most_over, over)
        if now > 130:  # the first burst has been paid back
            settled_over = max(settled_over, over)
        told = {name: accounts[name].told() for name in names}
        for reader in names:
            for teller in names:
                took = others[reader].hear(teller, tick, {"acme": told[teller]}, now, whole=tick == 1)
                for requests, tokens in took.values():
                    accounts[reader].took_elsewhere(requests, tokens, now)

    assert most_over <= (gateways - 1) * (limit + rate * period)
    if gateways == 2:  # with more, a debt of one bucket does not cover the first burst of all the others
        assert settled_over <= (gateways - 1) * rate * period + 1


def test_each_replica_is_told_what_it_does_not_know() -> None:
    own = OwnUse()
    own.touch("acme")
    own.sequence += 1
    assert own.since(0) == ["acme"]
    assert own.since(1) == []
    own.touch("globex")
    own.touch("acme")
    own.touch("acme")
    own.sequence += 1

    assert own.since(1) == ["acme", "globex"]
    assert own.since(0) == ["acme", "globex"]
    assert own.since(2) == []
