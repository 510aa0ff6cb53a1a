from __future__ import annotations

from lorafleet_runtime.frontend.restarts import NEVER, Restarts


def test_each_death_within_the_window_waits_longer_and_one_more_is_the_last() -> None:
    restarts = Restarts((0.0, 1.0, 5.0), 600.0)

    assert [restarts.delay([100.0 + i for i in range(deaths)]) for deaths in (1, 2, 3, 4)] == [0.0, 1.0, 5.0, None]


def test_deaths_of_long_ago_do_not_count() -> None:
    assert Restarts((0.0, 1.0), 600.0).delay([0.0, 1.0, 2.0, 700.0, 800.0]) == 1.0


def test_never_is_never() -> None:
    assert NEVER.delay([5.0]) is None
