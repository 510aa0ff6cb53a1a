"""The exchange of counters and use between real gateways and fake replicas, which relay it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from lorafleet_gateway.core.counters import MOST
from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_kit import OTHER_KEY, QUICK, Kit, chat, error_of

LABELS = {"base_model": "models/smol"}


async def replicas_of_their_own(kit: Kit, count: int) -> list[FakeRuntime]:
    """Replicas with an incarnation each, as real ones have, in a fleet that `kit` serves."""
    for i in range(count):
        await kit.replica(incarnation=f"i{i}")
    await kit.publish()
    await kit.serve()
    return kit.replicas


def value(kit: Kit, name: str, **labels: str) -> float:
    return kit.metrics.registry.get_sample_value(name, {**LABELS, **labels}) or 0.0


def knows(replica: FakeRuntime, *cell: str) -> int:
    return replica.fairness.cells.get(cell, 0)


async def exchanged(kit: Kit, *replicas: FakeRuntime) -> None:
    """Wait until a gateway has heard all of them after now, and told them what it heard."""
    before = [len(replica.fairness.asked) for replica in replicas]
    for extra in (2, 4):
        await kit.until(
            lambda extra=extra: all(  # type: ignore[misc]
                len(r.fairness.asked) >= b + extra for r, b in zip(replicas, before, strict=True)
            )
        )


async def test_a_gateway_carries_what_one_replica_says_to_all_others_and_only_once(kit: Kit) -> None:
    first, second = await replicas_of_their_own(kit, 2)
    first.fairness.service = {"acme": 100, "globex": 7}
    await kit.until(lambda: knows(second, "service", "i0", "acme") == 100)
    second.fairness.cells["offsets", "acme"] = 5
    second.fairness._touch(("offsets", "acme"))
    await kit.until(lambda: knows(first, "offsets", "acme") == 5)
    first.fairness.service["acme"] = 250
    await kit.until(lambda: knows(second, "service", "i0", "acme") == 250)
    await exchanged(kit, first, second)

    told = [asked["table"]["service"] for asked in second.fairness.asked if asked["table"]["service"]]
    assert told == [{"i0": {"acme": 100, "globex": 7}}, {"i0": {"acme": 250}}]
    assert first.fairness.asked[0]["since"] == 0
    assert first.fairness.asked[-1]["since"] > 0
    assert {asked["incarnation"] for asked in first.fairness.asked[1:]} == {"i0"}
    assert value(kit, "lorafleet_fairness_exchanges_total", result="ok") >= 8


async def test_many_replicas_are_asked_less_often_each(tmp_path: Path) -> None:
    kit = Kit(tmp_path, dataclasses.replace(QUICK, exchanges_per_second=4.0))
    try:
        first, second = await replicas_of_their_own(kit, 2)
        await kit.until(lambda: len(first.fairness.asked) >= 1)
        await asyncio.sleep(1.3)
    finally:
        await kit.close()

    assert 2 <= len(second.fairness.asked) <= 4  # every half a second, not every 50 ms


async def test_a_lone_replica_is_asked_too(kit: Kit) -> None:
    [replica] = await replicas_of_their_own(kit, 1)

    await exchanged(kit, replica)
    assert value(kit, "lorafleet_fairness_exchange_age_seconds") < 1


@pytest.mark.parametrize("announced", [True, False])
async def test_a_replica_that_restarts_is_told_everything_again(kit: Kit, announced: bool) -> None:
    first, second = await replicas_of_their_own(kit, 2)
    first.fairness.service = {"acme": 100}
    second.fairness.service = {"acme": 40}
    await kit.text_of()
    await kit.until(lambda: knows(second, "service", "i0", "acme") == 100)
    await kit.until(lambda: any(use["tenants"] for use in second.fairness.usage.values()))

    second.incarnation = "another"
    if announced:
        await kit.publish()

    await kit.until(lambda: second.fairness.incarnation == "another" and knows(second, "service", "i1", "acme") == 40)
    await kit.until(lambda: knows(second, "service", "i0", "acme") == 100)
    await kit.until(lambda: any("acme" in use["tenants"] for use in second.fairness.usage.values()))


async def test_a_lost_exchange_is_made_good(kit: Kit) -> None:
    first, second = await replicas_of_their_own(kit, 2)
    await exchanged(kit, first, second)
    second.fairness_status = 500
    first.fairness.service = {"acme": 100}
    await exchanged(kit, first)
    await kit.until(lambda: value(kit, "lorafleet_fairness_exchanges_total", result="failed") > 2)
    second.fairness_status = 200

    await kit.until(lambda: knows(second, "service", "i0", "acme") == 100)


NONSENSE: list[Callable[[dict[str, Any]], Any]] = [
    lambda good: "no json",
    lambda good: {**good, "table": {"service": {"i0": {"acme": -1}}}},
    lambda good: {**good, "table": {"service": {"i0": {"acme": MOST + 1}}}},
    lambda good: {**good, "table": {"offsets": {f"t{i}": 1 for i in range(70_000)}}},
    lambda good: {**good, "table": {"retired": ["x"], "offsets": {"x" * 64: 1}}},
    lambda good: {**good, "version": 2},
]


@pytest.mark.parametrize("spoil", NONSENSE)
async def test_an_answer_that_makes_no_sense_counts_nothing_and_is_logged_once(
    kit: Kit, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    kit.limits = dataclasses.replace(QUICK, connect_seconds=15.0)  # a busy machine reads the largest for a second
    kit.__post_init__()
    with capture_logs() as lines:
        first, second = await replicas_of_their_own(kit, 2)
        await exchanged(kit, first, second)
        good = first.fairness._answer(0, {"running": 99, "waiting": 0})
        first.fairness.answers = [spoil({**good, "table": {"service": {"i0": {"acme": 500}}}})] * 3
        await kit.until(lambda: not first.fairness.answers)
        await kit.until(lambda: value(kit, "lorafleet_fairness_rejected_tables_total") == 3)
        first.fairness.service = {"acme": 3}
        await kit.until(lambda: knows(second, "service", "i0", "acme") == 3)  # and the next good one counts

    assert len([line for line in lines if line["event"] == "no exchange of counters"]) == 1
    assert knows(second, "retired", "x") == 0
    assert value(kit, "lorafleet_fairness_exchanges_total", result="invalid") == 3


@pytest.mark.parametrize("status", [404, 500, 400])
async def test_a_replica_without_the_exchange_serves_as_before(kit: Kit, status: int) -> None:
    first, second = await replicas_of_their_own(kit, 2)
    first.others_waiting = 5
    await exchanged(kit, first, second)
    first.fairness_status = status
    result = {404: "unsupported", 500: "failed", 400: "refused"}[status]
    await kit.until(lambda: value(kit, "lorafleet_fairness_exchanges_total", result=result) >= 1)
    second.others_waiting = 5
    await exchanged(kit, second)
    for _ in range(4):
        await kit.text_of()

    assert (len(first.seen), len(second.seen)) == (4, 0)


async def test_a_slow_replica_delays_no_other(kit: Kit) -> None:
    first, second = await replicas_of_their_own(kit, 2)
    await exchanged(kit, first, second)
    first.fairness_delay = 60.0
    before = len(second.fairness.asked)
    started = time.monotonic()
    await kit.until(lambda: len(second.fairness.asked) > before + 8)

    assert time.monotonic() - started < kit.limits.connect_seconds
    assert value(kit, "lorafleet_fairness_exchange_age_seconds") > 0.2


async def test_the_fleets_bound_is_the_replicas_and_what_can_happen_unheard(kit: Kit) -> None:
    first, second = await replicas_of_their_own(kit, 2)
    first.fairness.fairness.update(bound=4_000_000, rate=0, spread=1_500_000)
    second.fairness.fairness.update(bound=2_000_000, rate=0, spread=500_000)
    await exchanged(kit, first, second)
    await kit.until(lambda: value(kit, "lorafleet_fairness_fleet_bound") == 6.0)
    assert value(kit, "lorafleet_fairness_fleet_spread") == 1.5

    second.fairness.fairness.update(rate=10_000_000)
    await exchanged(kit, second)
    first.fairness_status = 500
    await asyncio.sleep(0.5)
    age = value(kit, "lorafleet_fairness_exchange_age_seconds")
    assert age > 0.4
    assert value(kit, "lorafleet_fairness_fleet_bound") == pytest.approx(6.0 + 2 * 10 * age)

    (kit.folder / "models.smol.json").unlink()
    await kit.until(lambda: "fleet_bound{" not in kit.metrics.render().decode())


async def test_the_column_of_a_replica_that_is_gone_is_folded_everywhere(kit: Kit) -> None:
    quick = dataclasses.replace(QUICK, retire_seconds=0.3)
    kit.limits = quick
    kit.__post_init__()  # the gateway anew, with that limit
    first, second = await replicas_of_their_own(kit, 2)
    first.fairness.service = {"acme": 100}
    second.fairness.service = {"acme": 11}
    await kit.until(lambda: knows(second, "service", "i0", "acme") == 100)
    await first.stop()
    kit.replicas.remove(first)
    await kit.publish()

    await kit.until(lambda: knows(second, "retired", "i0") == 1)
    await kit.until(lambda: knows(second, "offsets", "acme") == 100)
    assert knows(second, "retired", "i1") == 0


# Two gateways and one quota.


def everywhere(kit: Kit) -> list[Kit]:
    return [kit, *kit.siblings]


async def test_what_runs_at_one_gateway_counts_at_the_other(kit: Kit) -> None:
    kit.quota = {"maxConcurrentRequests": 2}
    replicas = await kit.up(2, tokens=10**6, delay=0.05)
    other = await kit.sibling()
    asking = [asyncio.create_task(kit.chunks_of(chat())) for _ in range(2)]
    await kit.until(lambda: sum(replica.running for replica in replicas) == 2)

    async def refused() -> bool:
        return (await error_of(other, json={**chat("nothing")}))[0] == 429

    end = time.monotonic() + 2
    while not await refused():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    for task in asking:
        task.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    while await refused():
        assert time.monotonic() < end + 2
        await asyncio.sleep(0.02)


async def test_two_gateways_admit_one_quota_and_no_more_than_their_exchange_explains(kit: Kit) -> None:
    limit, seconds = 60, 4.0  # one a second, and each gateway is asked for some twenty a second
    kit.quota = {"requestsPerMinute": limit}
    await kit.up(2, tokens=1)
    await kit.sibling()
    admitted = {gateway.url: 0 for gateway in everywhere(kit)}
    started = time.monotonic()

    async def press(gateway: Kit) -> None:
        while time.monotonic() < started + seconds:
            async with gateway.http.post("/v1/chat/completions", json=chat()) as response:
                admitted[gateway.url] += response.status == 200
                await response.read()
            await asyncio.sleep(0.01)

    await asyncio.gather(*(press(gateway) for gateway in everywhere(kit)))
    allowed = limit + limit / 60 * (time.monotonic() - started)

    # One other gateway, which is asked for some ten within two periods of 0.05 s and what the event loop adds.
    assert allowed - 2 <= sum(admitted.values()) <= allowed + 15
    assert min(admitted.values()) > limit / 4


async def test_tokens_used_at_one_gateway_are_gone_at_the_other(kit: Kit) -> None:
    kit.quota = {"tokensPerMinute": 660}
    await kit.up(1, tokens=97)
    other = await kit.sibling()
    await asyncio.sleep(0.2)
    for _ in range(6):
        await kit.text_of(chat(max_tokens=97))  # 100 each, of which 3 are the prompt

    async def refusal() -> str:
        status, error = await error_of(other, json=chat(max_tokens=500))
        return str(error["param"]) if status == 429 else ""

    end = time.monotonic() + 2
    while await refusal() != "tokensPerMinute":
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_a_new_gateway_does_not_pay_for_what_was_used_before_it_came(kit: Kit) -> None:
    kit.quota = {"requestsPerMinute": 100}
    [replica] = await kit.up(tokens=1)
    for _ in range(100):
        await kit.text_of()
    quotas = kit.app.state.services.quotas
    quotas.own.sequence = 90_000  # a gateway of some hours
    await kit.until(lambda: replica.fairness.usage[quotas.gateway]["sequence"] > 90_000)

    late = await kit.sibling()
    await kit.until(lambda: len(late.app.state.services.quotas._others) == 1)
    assert await late.text_of() == replica.text()
    headers = {"Authorization": f"Bearer {OTHER_KEY}"}  # the first that globex asks for, and that does count
    async with kit.http.post("/v1/chat/completions", json=chat("parrot"), headers=headers) as response:
        assert response.status == 200
    buckets = late.app.state.services.quotas._accounts["globex"]
    await kit.until(lambda: buckets._requests_bucket.level < 600 - 0.9)
