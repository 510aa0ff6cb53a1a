"""Correctness before speed: the bounds on fixed seeds, and controls that must break them."""

from __future__ import annotations

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.serving import Engine
from lorafleet_sim.workloads import Request, small, unweighted

SEEDS = range(20)


def gate() -> None:
    """Raises AssertionError when the policies are not what they are measured as."""
    assert not any(_breaks_the_bound("vtc", seed) for seed in SEEDS), "VTC must keep its bound"
    assert any(_breaks_the_bound("lcf", seed) for seed in SEEDS), "LCF must break it: else the gate sees nothing"
    assert _share_of_a_newcomer("vtc") < 0.6, "idling must save up nothing"
    assert _share_of_a_newcomer("lcf") > 0.9, "without a lift a newcomer takes nearly all: else the gate sees nothing"
    for policy in ("vtc", "vtc-oracle", "drr", "fcfs"):
        engine = Engine(queue_for(policy, pool=64), 64)
        engine.run([Request("a", float(at), 4, 4) for at in range(10)])
        assert engine.queue.tallies["a"].service == engine.served["a"], f"{policy}: charged is what was served"


def _breaks_the_bound(policy: str, seed: int) -> bool:
    """Whether counters of waiting clients were ever further apart than U = w_q·M."""
    load = small(seed)
    engine = Engine(queue_for(policy, pool=load.pool), load.pool)
    spreads = [0]

    def watch() -> None:
        counters = [engine.queue.order.meter.counter(client) for client in engine.backlogged]
        spreads.append(max(counters) - min(counters) if counters else 0)

    engine.run(unweighted(load.requests), watch=watch)
    return max(spreads) > 2 * load.pool * MICRO


def _share_of_a_newcomer(policy: str) -> float:
    """Of the service in the steps after it comes, to somebody who has worked for long."""
    engine = Engine(queue_for(policy, pool=64), 64)
    engine.run([Request("old", 0.0, 4, 4)] * 200)
    for client in ("new", "old"):
        for _ in range(100):
            engine.offer(Request(client, engine.now, 4, 4))
    before = dict(engine.served)
    for _ in range(40):
        engine.step()
    gained = {client: engine.served[client] - before.get(client, 0) for client in ("new", "old")}
    return gained["new"] / sum(gained.values())
