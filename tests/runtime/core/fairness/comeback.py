"""One client works for a while, another comes from nowhere, and both flood the engine: who gets how much?"""

from __future__ import annotations

import random

from lorafleet_runtime.core.fairness.cost import MICRO
from lorafleet_runtime.core.fairness.fair_queue import FairQueue
from lorafleet_sim.serving import Engine
from tests.runtime.core.fairness.kit import bound_of, flood


def comeback(queue: FairQueue, seed: int) -> tuple[float, float]:
    """The newcomers' greatest share of the service in the steps after its return, and the share that it may have:
    1/n + 2U*/(all service), whichever of the two asks first, and with others waiting or nobody."""
    rng = random.Random(seed)
    pool = rng.choice((32, 64, 128))
    run = Engine(queue, pool)
    prompt, output = rng.randint(1, pool // 4), rng.randint(2, pool // 4)
    alone = rng.randint(1, 20)
    for _ in range(alone):
        for request in flood("old", rng.choice((1, pool // (prompt + output))), prompt, output):
            run.offer(request)
        while len(run.queue) or (run.running and rng.random() < 0.8):
            run.step()
    both = ["new", "old"] if rng.random() < 0.5 else ["old", "new"]
    needed = 4 * pool * 2 // (prompt + 2 * output) + 2
    for client in both:
        for request in flood(client, needed, prompt, output):
            run.offer(request)
    before = dict(run.served)
    while {"new", "old"} <= run.backlogged:
        run.step()
    gained = {client: run.served[client] - before[client] for client in both}
    total = max(sum(gained.values()), MICRO)
    return gained["new"] / total, 0.5 + 2 * bound_of(pool, prompt) / total
