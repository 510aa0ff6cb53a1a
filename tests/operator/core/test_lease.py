"""At most one operator acts, whatever the clocks say, and each change of holder raises the epoch."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lorafleet_operator.core.lease import Record, View, decide, still_mine


def record(holder: str, version: str = "1", transitions: int = 3) -> Record:
    return Record(holder, transitions, 9.0, version)


def test_the_first_operator_creates_the_lease_and_acts_under_epoch_one() -> None:
    verdict = decide(None, "a", View(), 0.0)
    assert (verdict.act, verdict.epoch) == ("create", 1)


def test_a_holder_renews_under_its_epoch() -> None:
    verdict = decide(record("a"), "a", View(), 100.0)
    assert (verdict.act, verdict.epoch) == ("renew", 4)


def test_a_candidate_waits_as_long_as_the_record_changes() -> None:
    view = View()
    for second in range(100):
        verdict = decide(record("a", version=str(second)), "b", view, float(second))
        view = verdict.view
        assert verdict.act == "wait"


def test_a_candidate_takes_over_once_the_record_has_not_changed_for_its_duration() -> None:
    view = decide(record("a"), "b", View(), 0.0).view
    assert decide(record("a"), "b", view, 8.9).act == "wait"
    verdict = decide(record("a"), "b", view, 9.0)
    assert (verdict.act, verdict.epoch) == ("take", 5)


def test_a_released_lease_is_taken_at_once() -> None:
    assert decide(record(""), "b", View(), 0.0).act == "take"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 5), st.booleans()), max_size=60))
def test_two_operators_never_act_at_the_same_time(steps: list[tuple[str, float, bool]]) -> None:
    """Candidates look in any order; a write may be lost. Writes are ordered by the API."""
    now, version, transitions = 0.0, 0, -1
    holder: str | None = None
    views = {name: View() for name in "abc"}
    renewed = {name: float("-inf") for name in "abc"}
    epochs: list[int] = []
    for name, pause, lost in steps:
        now += pause
        seen = None if holder is None else Record(holder, transitions, 9.0, str(version))
        verdict = decide(seen, name, views[name], now)
        views[name] = verdict.view
        if verdict.act != "wait" and not lost:
            if verdict.act != "renew":
                epochs.append(verdict.epoch)
            holder, version, transitions = name, version + 1, verdict.epoch - 1
            renewed[name] = now
        acting = [other for other in "abc" if still_mine(renewed[other], now, 9.0)]
        assert acting in ([], [holder])
    assert epochs == sorted(set(epochs))
