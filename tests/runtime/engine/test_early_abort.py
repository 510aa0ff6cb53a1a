"""Early abort on a real engine: who waits too long is told, and nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.protocol import AddRequest, Delta, Sampling

FAIRNESS = json.dumps({"earlyAbort": {"ttftSeconds": 0.02}})


def ask(name: str, output: int = 60, given: tuple[int, ...] = ()) -> AddRequest:
    return AddRequest(name, [65] * 8, Sampling(max_tokens=output, temperature=0), None, list(given), "acme")


def finish(engine: Engine) -> dict[str, Delta]:
    """The last delta of each request."""
    found = {}
    while engine.has_work:
        found.update({delta.request_id: delta for delta in engine.step() if delta.finish_reason})
    return found


def test_who_cannot_start_in_time_is_given_up_and_who_runs_is_not(make: Callable[..., Engine]) -> None:
    engine = make(seqs=1, fairness=FAIRNESS)
    engine.handle(ask("runs"))
    engine.step()
    engine.handle(ask("late"))
    engine.handle(ask("resumed", output=3, given=(70, 71)))
    time.sleep(0.03)

    [lost] = [delta for delta in engine.step() if delta.request_id == "late"]

    assert lost.error.startswith("slo_unattainable: ")
    assert lost.retry_after >= 1
    last = finish(engine)
    assert {name: delta.finish_reason for name, delta in last.items()} == {"runs": "length", "resumed": "length"}
    assert engine.state().counters.early_aborts == 1
    told = engine.sharing()
    assert told is not None
    assert [(row.name, row.aborted, row.waiting, row.running) for row in told.tenants] == [("acme", 1, 0, 0)]


def test_without_it_everybody_is_served_however_late(make: Callable[..., Engine]) -> None:
    engine = make(seqs=1)
    engine.handle(ask("runs"))
    engine.step()
    engine.handle(ask("late", output=1))
    time.sleep(0.03)

    assert {delta.finish_reason for delta in finish(engine).values()} == {"length"}
    assert engine.state().counters.early_aborts == 0
