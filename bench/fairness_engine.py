"""The proof on the real engine: SmolLM2 behind `lorafleet up`, one tenant flooding, the others light.

For two and eight tenants over one and two replicas: the light tenants' time to the first token beside the flood,
against the same requests alone on the machine; then two tenants that both flood two replicas: the greatest difference
of their service while both wait everywhere, against the bound that the gateway exports."""

from __future__ import annotations

import asyncio
import statistics
import time

from bench.fairness_fleet import Client, Fleet, running, samples, session
from bench.record import Result

FLOOD_CONCURRENCY = 32
FLOOD_TOKENS = 48
GOAL_RATIO = 1.5


async def light_ttfts(fleet: Fleet, tenants: int, seconds: float, *, flooded: bool) -> tuple[list[float], float]:
    """The light tenants' times to the first token, and the mean step's seconds."""
    async with session() as http:
        clients = [Client(http, fleet.url, index) for index in range(tenants)]
        await clients[1].ask("warm up", 4)
        clients[1].ttfts.clear()
        flood = asyncio.create_task(clients[0].flood("Tell me a long story about", FLOOD_TOKENS, FLOOD_CONCURRENCY))
        if not flooded:
            flood.cancel()
        else:
            await asyncio.sleep(5.0)
        await asyncio.gather(*(client.trickle(seconds) for client in clients[1:]))
        steps = [(await samples(http, url))[("lorafleet_step_seconds", "")] for url in fleet.replica_urls()]
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
        assert not any(client.failures for client in clients), "a request failed"
        return [ttft for client in clients[1:] for ttft in client.ttfts], statistics.mean(steps)


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def shielded(tenants: int, replicas: int, seconds: float) -> list[Result]:
    """Light tenants beside a flood, and the same without."""
    with running(tenants, replicas) as fleet:
        alone, _ = await light_ttfts(fleet, tenants, seconds, flooded=False)
        beside, step = await light_ttfts(fleet, tenants, seconds, flooded=True)
    case = f"{tenants} tenants, one floods, {replicas} replica{'s' if replicas > 1 else ''}"
    value, baseline = percentile(beside, 0.99), percentile(alone, 0.99)
    limit = GOAL_RATIO * baseline + step
    return [
        Result(
            "fairness", case, "light tenants' TTFT p99", value, "s", baseline, value / baseline,
            f"<= 1.5x alone + one batch ({limit:.3f} s)", value <= limit, len(beside),
        ),
        Result("fairness", case, "light tenants' TTFT p50", percentile(beside, 0.5), "s", percentile(alone, 0.5),
               percentile(beside, 0.5) / percentile(alone, 0.5), repeats=len(beside)),
        Result("fairness", case, "mean step beside the flood", step, "s"),
    ]  # fmt: skip


async def two_floods(seconds: float) -> list[Result]:
    """Two tenants with requests of different shapes flood two replicas: how far their service drifts apart."""
    with running(2, 2) as fleet:
        async with session() as http:
            long, short = Client(http, fleet.url, 0), Client(http, fleet.url, 1)
            floods = [
                asyncio.create_task(long.flood("Tell me a long story about " * 6, FLOOD_TOKENS, FLOOD_CONCURRENCY)),
                asyncio.create_task(short.flood("Say", 4, FLOOD_CONCURRENCY)),
            ]
            await asyncio.sleep(5.0)
            gaps, bounds, end = [], [], time.monotonic() + seconds
            while time.monotonic() < end:
                replicas = await asyncio.gather(*(samples(http, url) for url in fleet.replica_urls()))
                gateway = await samples(http, fleet.url)
                if not all(f[("lorafleet_fairness_waiting", t)] for f in replicas for t in ("t0", "t1")):
                    break  # the bound is for tenants that wait everywhere
                service = [sum(f[("lorafleet_fairness_service_total", t)] for f in replicas) for t in ("t0", "t1")]
                gaps.append(service[0] - service[1])
                bounds.append(gateway[("lorafleet_fairness_fleet_bound", "")])
                await asyncio.sleep(0.25)
            for flood in floods:
                flood.cancel()
            await asyncio.gather(*floods, return_exceptions=True)
    assert len(gaps) > 20, "the tenants did not wait on both replicas throughout"
    gap, bound = max(gaps) - min(gaps), max(bounds)
    return [
        Result("fairness", "two tenants flood two replicas", "greatest drift of their service", gap, "service", bound,
               gap / bound, "<= the bound that the gateway exports", gap <= bound, len(gaps)),
    ]  # fmt: skip


def results(quick: bool) -> list[Result]:
    """Every case. Some six minutes; quick: one case of each kind, a minute."""
    cases = [(2, 1)] if quick else [(2, 1), (8, 1), (2, 2), (8, 2)]
    seconds = 10.0 if quick else 40.0
    found = [result for case in cases for result in asyncio.run(shielded(*case, seconds))]
    return found + asyncio.run(two_floods(seconds))
