"""How tenants share a real engine: turns by service, the bound, refusals, and what it tells of them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest

from lorafleet_runtime.core.fairness.counters import CounterTable, Table
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_runtime.core.fairness.meter import Meter
from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.engine.sharing import SharingReport
from lorafleet_runtime.protocol import AbortRequest, AddRequest, MergeCounters, Sampling, Sharing, TenantRow

UNIT = 1_000_000


def ask(
    name: str, tenant: str, *, prompt: int = 8, output: int = 8, weight: float = 1.0, user: str = "",
    given: tuple[int, ...] = (),
) -> AddRequest:  # fmt: skip
    sampling = Sampling(max_tokens=output, temperature=0)
    return AddRequest(name, [65] * prompt, sampling, None, list(given), tenant, weight, user)


def row(sharing: Sharing | None, tenant: str) -> TenantRow:
    assert sharing is not None
    return {row.name: row for row in sharing.tenants}[tenant]


def run(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_what_a_request_costs_is_told_once_and_in_full(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.handle(ask("r", "acme", prompt=8, output=5, weight=2.0))
    run(engine)

    told = engine.sharing()

    assert told is not None
    assert row(told, "acme") == TenantRow("acme", 2.0, (8 + 2 * 5) * UNIT, 8, 5)
    assert told.table.service == {"own": {"acme": 9 * UNIT}}
    assert engine.sharing() is None


def test_what_was_lately_fades_and_is_told_until_it_is_gone() -> None:
    queue = FairQueue(Vtc(Meter(table := CounterTable("own"))))
    report = SharingReport(queue, table, "VTC")
    sampling = Sampling(max_tokens=4)
    for arrival, tenant in enumerate(("acme", "globex")):
        queue.add(Sequence(tenant, [1] * 8, 8, sampling, None, tenant, arrival=arrival))
    queue.admit(Sequence("r", [1] * 8, 8, sampling, None, "acme", arrival=0))
    busy = report.news(0.0)
    queue.cancel(Sequence("globex", [1] * 8, 8, sampling, None, "globex", arrival=1))
    at_once, later, gone = report.news(0.1), report.news(1.5), report.news(20.0)

    assert busy is not None
    assert at_once is not None
    assert later is not None
    assert gone is not None
    assert (busy.backlogged, at_once.backlogged, later.backlogged) == (1, 1, 0)
    assert later.rate > 0
    assert gone.rate == 0
    assert report.news(21.5) is None


def test_a_request_that_begins_elsewhere_is_not_charged_again(make: Callable[..., Engine]) -> None:
    engine = make()
    engine.handle(ask("r", "acme", prompt=8, output=5, given=(70, 71, 72)))
    run(engine)

    assert row(engine.sharing(), "acme").service == 2 * 2 * UNIT


def test_an_abort_pays_for_what_was_computed_and_for_nothing_else(make: Callable[..., Engine]) -> None:
    engine = make(pages=400, max_model_len=512)  # 64 tokens of a prompt in a step
    engine.handle(ask("chunked", "acme", prompt=150))
    engine.handle(ask("queued", "globex", prompt=150))
    engine.step()
    engine.handle(AbortRequest("chunked"))
    engine.handle(AbortRequest("queued"))

    told = engine.sharing()

    assert row(told, "acme").service == 64 * UNIT
    assert row(told, "globex").service == 0
    assert (row(told, "acme").running, row(told, "globex").waiting) == (0, 0)


def test_tenants_that_wait_throughout_stay_within_the_bound(make: Callable[..., Engine]) -> None:
    engine = make(pages=60, seqs=6)
    rng = random.Random(5)
    for index in range(80):
        engine.handle(ask(f"a{index}", "acme", prompt=rng.randint(1, 60), output=rng.randint(1, 40)))
        engine.handle(ask(f"b{index}", "globex", prompt=3, output=40, weight=2.0))
    services: dict[str, int] = {}
    worst, bound = 0.0, 0
    while True:
        engine.step()
        told = engine.sharing()
        assert told is not None
        services |= {row.name: row.service for row in told.tenants}
        if not all(row.waiting for row in told.tenants):
            break
        bound = told.bound
        worst = max(worst, abs(services["acme"] - services["globex"] / 2))

    assert 0 < worst <= bound


def test_what_other_replicas_gave_counts_in_the_next_turn(make: Callable[..., Engine]) -> None:
    engine = make(seqs=1)
    for name, tenant in (("busy", "acme"), ("a", "acme"), ("b", "globex")):
        engine.handle(ask(name, tenant, output=2))
    engine.step()
    engine.handle(MergeCounters(Table(service={"other": {"globex": 10**9}})))

    finished = []
    while engine.has_work:
        finished += [delta.request_id for delta in engine.step() if delta.finish_reason]

    assert finished == ["busy", "a", "b"]


def test_a_tenants_users_take_turns_where_that_is_asked_for(make: Callable[..., Engine]) -> None:
    def order(fairness: dict[str, str]) -> list[str]:
        engine = make(seqs=1, fairness=json.dumps(fairness))
        for index in range(3):
            engine.handle(ask(f"ann{index}", "acme", output=1, user="ann"))
        engine.handle(ask("bob", "acme", output=1, user="bob"))
        finished = []
        while engine.has_work:
            finished += [delta.request_id for delta in engine.step() if delta.finish_reason]
        return finished

    assert order({"users": "Fair"}) == ["ann0", "bob", "ann1", "ann2"]
    assert order({}) == ["ann0", "ann1", "ann2", "bob"]


def test_the_policy_rpm_refuses_with_the_time_to_wait(make: Callable[..., Engine]) -> None:
    engine = make(fairness=json.dumps({"policy": "RPM", "requestsPerMinute": 2}))
    for index in range(3):
        engine.handle(ask(f"r{index}", "acme", output=1))
    engine.handle(ask("other", "globex", output=1))

    refused = {delta.request_id: delta for delta in engine.step() if delta.finish_reason == "error"}

    assert list(refused) == ["r2"]
    assert refused["r2"].error.startswith("rate_limited: ")
    assert 59 <= refused["r2"].retry_after <= 60


@pytest.mark.parametrize(
    "spec",
    [{"policy": "FCFS"}, {"policy": "LCF"}, {"policy": "DRR", "quantum": 16},
     {"policy": "DLPM", "quantum": 16}, {"prediction": "MovingAverage"},
     {"cost": {"kind": "Quadratic", "input": 0.21, "output": 0.1, "product": 0.004, "outputSquared": 0.003,
               "constant": 1.1}},
     {"cost": {"kind": "KVTime", "memory": 0.01}},
     {"cost": {"kind": "Piecewise", "inputTable": [{"tokens": 100, "cost": 50}],
               "outputTable": [{"tokens": 10, "cost": 30}, {"tokens": 100, "cost": 200}]}}],
    ids=json.dumps,
)  # fmt: skip
def test_every_policy_and_cost_serves_everybody_and_ends_without_a_debt_of_seats(
    make: Callable[..., Engine], spec: dict[str, object]
) -> None:
    engine = make(seqs=4, fairness=json.dumps(spec))
    for index in range(8):
        engine.handle(ask(f"a{index}", "acme"))
        engine.handle(ask(f"b{index}", "globex", output=3))
    run(engine)

    told = engine.sharing()

    for tenant in ("acme", "globex"):
        assert (row(told, tenant).running, row(told, tenant).waiting) == (0, 0)
        assert row(told, tenant).service > 0
