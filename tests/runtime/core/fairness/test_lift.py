"""The counter lift: idling saves up nothing, and forgives nothing [VTC, algorithm 2; P8-P10]."""

from __future__ import annotations

from lorafleet_runtime.core.fairness.vtc import Vtc
from lorafleet_sim.fairness_policies import queue_for
from lorafleet_sim.workloads import small, unweighted
from tests.runtime.core.fairness.comeback import comeback
from tests.runtime.core.fairness.kit import engine, for_seeds


@for_seeds()
def test_a_lift_raises_who_was_away_to_the_floor_and_touches_nobody_else(seed: int) -> None:
    """P8 and P10: monotone, idempotent, none for who waits; a debt above the floor stays what it is."""
    load = small(seed)
    run = engine(load.pool)
    order = run.queue.order
    assert isinstance(order, Vtc)
    clients = [f"{i}" for i in range(load.clients)]
    for request in unweighted(load.requests):
        while run.busy and run.now < request.at:
            run.step()
        run.now = max(run.now, request.at)
        before = {client: order.meter.counter(client) for client in clients}
        waiting, floor = run.backlogged, order.floor()

        run.offer(request)

        after = {client: order.meter.counter(client) for client in clients}
        lifted = before | ({} if request.client in waiting else {request.client: max(before[request.client], floor)})
        assert after == lifted
        assert all(after[request.client] >= min(before[c] for c in waiting) for _ in waiting)
        assert not order.meter.table.lift(request.client, floor)


@for_seeds()
def test_idling_saves_up_nothing_however_long_and_whoever_comes_first(seed: int) -> None:
    """P9, also when the queue is empty as the idle one comes back."""
    share, allowed = comeback(queue_for("vtc"), seed)

    assert share <= allowed
