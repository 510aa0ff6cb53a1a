"""S-LoRA's settings and its synthetic workload (MLSys'24, section 7.1; the artifact's trace and exp_suite).

Times are seconds, lengths tokens. The same seed gives the same requests."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from lorafleet_sim.serving import Timing
from lorafleet_sim.workloads import Request, Workload, workload

SHORTEST, LONGEST = 8, 511
"""Of prompts and of outputs, uniform."""
DURATION = 300.0
CLIENT = "0"


@dataclass(frozen=True, slots=True)
class Setting:
    """A model on a GPU. `pool` in tokens of KV, which adapters share: one takes 4·rank. `rate` in requests a second."""

    name: str
    pool: int
    ranks: tuple[int, ...]
    adapters: int
    rate: float
    timing: Timing


A10G_S2 = Setting("A10G S2", 14_500, (64, 32, 16, 8), 200, 2.0, Timing(0.022, 0.001, 0.000218, per_load=0.03))
"""Llama-7B. Timing as fitted to the VTC paper's run on the same GPU; 30 ms an adapter: 134 MB for rank 64, moved twice,
in 64 copies. Gives some 1.7 requests a second; the artifact has 1.58 over a run with its tail."""
A100_S4 = Setting("A100-80 S4", 65_000, (64, 32, 16), 400, 6.0, Timing(0.03, 0.00052, 0.0001, per_load=0.02))
"""Llama-13B. Fitted to the 4.0 requests a second at which the artifact's run saturates."""
SETTINGS = (A10G_S2, A100_S4)


def gamma_arrivals(rng: random.Random, rate: float, cv: float, number: int) -> Iterator[float]:
    """So many arrivals, `rate` a second on average, whose distances have the coefficient of variation `cv`."""
    at = 0.0
    for _ in range(number):
        at += rng.gammavariate(1 / cv**2, cv**2 / rate)
        yield at


def power_law(rng: random.Random, alpha: float, number: int) -> int:
    """An adapter's index, P(index < k) = (k / number)^alpha: uniform for 1, the first ones for less."""
    return min(int(rng.random() ** (1 / alpha) * number), number - 1)


def synthetic(
    setting: Setting, cv: float = 1.0, seed: int = 0, *, rate: float | None = None, alpha: float = 1.0,
    adapters: int | None = None, duration: float = DURATION,
) -> Workload:  # fmt: skip
    """`rate`·`duration` requests of one client: one process of arrivals over all adapters, as in the artifact."""
    rng = random.Random(seed)
    rate, number = rate or setting.rate, adapters or setting.adapters

    def requests() -> Iterator[Request]:
        for at in gamma_arrivals(rng, rate, cv, int(rate * duration)):
            index = power_law(rng, alpha, number)
            rank = setting.ranks[index % len(setting.ranks)]
            prompt, output = rng.randint(SHORTEST, LONGEST), rng.randint(SHORTEST, LONGEST)
            yield Request(CLIENT, at, prompt, output, adapter=f"{index}", rank=rank)

    return workload(f"{setting.name}, {rate:g}/s, cv {cv:g}", duration, requests())
