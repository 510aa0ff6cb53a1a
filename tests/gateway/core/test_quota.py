from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_gateway.core.fleet_model import Quota
from lorafleet_gateway.core.quota import Account, Refusal, Reservation, Use

times = st.floats(0, 1e6, allow_nan=False)


def admit(account: Account, tokens: int, now: float, elsewhere: int = 0) -> Reservation | Refusal:
    """One request's way in; a refused one leaves nothing behind."""
    refusal = account.enter(elsewhere, now)
    if refusal is not None:
        return refusal
    reserved = account.reserve(tokens, now)
    if isinstance(reserved, Refusal):
        account.leave()
    return reserved


def reserved(account: Account, tokens: int, now: float) -> Reservation:
    found = admit(account, tokens, now)
    assert isinstance(found, Reservation)
    return found


def test_a_minutes_requests_are_there_at_once_and_come_back_evenly() -> None:
    account = Account(Quota(requests_per_minute=60), 0.0)
    for _ in range(60):
        reserved(account, 1, 0.0)

    assert admit(account, 1, 0.5) == Refusal("requestsPerMinute", 60, 60, 1, 1)
    reserved(account, 1, 1.0)
    assert isinstance(admit(account, 1, 1.5), Refusal)


def test_a_clock_that_jumps_back_neither_gives_nor_takes_and_then_goes_on() -> None:
    account = Account(Quota(requests_per_minute=60), 1000.0)
    for _ in range(59):
        reserved(account, 1, 1000.0)
    reserved(account, 1, 3.0)

    assert isinstance(admit(account, 1, 3.5), Refusal)
    reserved(account, 1, 4.0)


def test_the_limit_that_refuses_for_longest_is_named() -> None:
    account = Account(Quota(requests_per_minute=60, tokens_per_minute=600, max_concurrent_requests=60), 0.0)
    for _ in range(60):
        reserved(account, 10, 0.0)

    assert admit(account, 10, 0.0) == Refusal("maxConcurrentRequests", 60, 60, 1, 1)
    account.leave()
    refusal = account.reserve(300, 0.0)
    assert refusal == Refusal("tokensPerMinute", 600, 600, 300, 30)


def test_requests_elsewhere_count_as_running() -> None:
    account = Account(Quota(max_concurrent_requests=3), 0.0)

    assert admit(account, 1, 0.0, elsewhere=3) == Refusal("maxConcurrentRequests", 3, 3, 1, 1)
    assert isinstance(admit(account, 1, 0.0, elsewhere=2), Reservation)
    assert isinstance(admit(account, 1, 0.0, elsewhere=2), Refusal)


def test_a_request_larger_than_the_limit_takes_all_of_it_and_owes_the_rest() -> None:
    account = Account(Quota(tokens_per_minute=600), 0.0)
    first = reserved(account, 10**9, 0.0)

    assert first == Reservation(600, 0, 600)
    account.settle(first, 1200, 0.0)
    assert admit(account, 1, 0.0) == Refusal("tokensPerMinute", 600, 1200, 1, 61)
    assert isinstance(admit(account, 600, 119.0), Refusal)
    assert isinstance(admit(account, 600, 120.0), Reservation)


def test_what_was_reserved_too_much_is_there_again_at_the_end() -> None:
    account = Account(Quota(requests_per_minute=2, tokens_per_minute=600), 0.0)
    first = reserved(account, 500, 0.0)
    account.settle(first, 100, 0.0)
    second = reserved(account, 500, 0.0)
    account.give_back(second, 0.0)
    account.leave()

    reserved(account, 500, 0.0)
    assert account.told() == Use(requests=2, tokens=600, started=3, finished=1)


def test_what_is_told_never_shrinks_and_new_use_counts_only_beyond_it() -> None:
    account = Account(Quota(tokens_per_minute=10_000), 0.0)
    first = reserved(account, 800, 0.0)
    assert account.told().tokens == 800
    account.settle(first, 100, 0.0)
    assert account.told().tokens == 800
    reserved(account, 900, 0.0)

    assert account.told().tokens == 1000


def test_another_limit_counts_at_once_and_keeps_what_runs() -> None:
    account = Account(Quota(), 0.0)
    running = reserved(account, 0, 0.0)
    account.follow(Quota(requests_per_minute=60, tokens_per_minute=600, max_concurrent_requests=1), 1.0)
    assert isinstance(admit(account, 1, 1.0), Refusal)

    account.settle(running, 200, 2.0)
    account.leave()
    assert account.reserve(401, 2.0) == Refusal("tokensPerMinute", 600, 200, 401, 1)
    account.follow(Quota(tokens_per_minute=6000), 2.0)
    assert account.reserve(5801, 2.0) == Refusal("tokensPerMinute", 6000, 200, 5801, 1)
    account.follow(Quota(tokens_per_minute=60), 2.0)
    assert isinstance(account.reserve(60, 2.0), Reservation)
    account.follow(Quota(), 2.0)
    assert isinstance(account.reserve(10**6, 2.0), Reservation)


def test_the_average_answer_follows_what_is_seen() -> None:
    account = Account(Quota(), 0.0)
    assert account.average_output == 256
    for _ in range(200):
        account.learn(10)

    assert 10 <= account.average_output < 11


@given(st.lists(st.tuples(times, st.integers(1, 700)), max_size=60), st.integers(1, 600), st.integers(1, 600))
def test_whatever_the_clock_does_no_more_is_admitted_than_a_bucket_and_its_refill(
    steps: list[tuple[float, int]], requests: int, tokens: int
) -> None:
    account = Account(Quota(requests_per_minute=requests, tokens_per_minute=tokens), steps[0][0] if steps else 0.0)
    forward, last, admitted, spent = 0.0, steps[0][0] if steps else 0.0, 0, 0
    for now, asked in steps:
        forward += max(0.0, now - last)  # a clock that jumps back fills nothing
        last = now
        found = admit(account, asked, now)
        if isinstance(found, Reservation):
            admitted, spent = admitted + 1, spent + found.tokens

    assert admitted <= requests * (1 + forward / 60) + 0.001
    assert spent <= tokens * (1 + forward / 60) + 0.001


@given(
    st.integers(1, 100),
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)), max_size=20),
    st.integers(0, 200_000),
)
def test_whoever_waits_as_long_as_it_was_told_is_admitted(
    requests: int, tokens: int, past: list[tuple[int, int]], asked: int
) -> None:
    account = Account(Quota(requests_per_minute=requests, tokens_per_minute=tokens), 0.0)
    for estimate, used in past:
        found = admit(account, estimate, 0.0)
        if isinstance(found, Reservation):
            account.settle(found, used, 0.0)
            account.leave()
    refusal = account.reserve(asked, 0.0)

    if isinstance(refusal, Refusal):
        assert refusal.seconds >= 1
        assert isinstance(account.reserve(asked, float(refusal.seconds)), Reservation)


@given(st.lists(st.tuples(st.sampled_from(["settle", "give back"]), st.integers(0, 900), st.integers(0, 900))))
def test_every_token_is_settled_once_whatever_becomes_of_its_request(ends: list[tuple[str, int, int]]) -> None:
    account = Account(Quota(requests_per_minute=10**6, tokens_per_minute=10**6), 0.0)
    used = settled = 0
    for end, estimate, tokens in ends:
        found = reserved(account, estimate, 0.0)
        if end == "settle":
            account.settle(found, tokens, 0.0)
            used, settled = used + tokens, settled + 1
        else:
            account.give_back(found, 0.0)
        account.leave()

    refusal = account.reserve(10**6, 0.0)
    assert (refusal.used if isinstance(refusal, Refusal) else 0) == used
    assert account._requests - isinstance(refusal, Reservation) == settled


@pytest.mark.parametrize("amounts", [[100, 500, 900], [1500], [10**9]])
def test_others_use_is_a_debt_of_at_most_one_bucket(amounts: list[int]) -> None:
    account = Account(Quota(tokens_per_minute=600), 0.0)
    for amount in amounts:
        account.took_elsewhere(0, amount, 0.0)

    refusal = account.reserve(600, 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.used, refusal.seconds) == (min(sum(amounts), 1200), min(sum(amounts), 1200) // 10)
