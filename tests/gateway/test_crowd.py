"""Thousands of connections by one tenant, at a gateway process of its own: it stays within its quota, and another
tenant does not notice."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator

import aiohttp
import psutil
import pytest

from tests.gateway.fake_runtime import FakeRuntime
from tests.gateway.gateway_kit import KEY, OTHER_KEY, TOKEN, Kit, chat, tenant

CROWD = 2000
ADMITTED = 8
BODY = json.dumps(chat(stream=True)).encode()


@pytest.fixture(autouse=True)
def file_descriptors() -> Iterator[None]:
    """Room for the crowd in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else max(soft, 65_536), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
async def gateway(kit: Kit) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A gateway process over two tenants; `kit.url` is where. It starts with few file descriptors, and has to see to
    it that it gets more."""
    kit.tenants = [
        tenant("acme", KEY, quota={"maxConcurrentRequests": ADMITTED}),
        tenant("globex", OTHER_KEY, quota={"maxConcurrentRequests": ADMITTED}),
    ]
    await kit.replica(tokens=10**6, delay=0.05)
    await kit.publish()
    command = f"ulimit -Sn 1024; exec {sys.executable} -m lorafleet_gateway serve --fleet {kit.folder} --port 0"
    process = subprocess.Popen(
        ["sh", "-c", f"{command} --log-format json"],
        stderr=subprocess.PIPE,
        env={**os.environ, "LORAFLEET_SERVING_TOKEN": TOKEN},
    )
    assert process.stderr is not None
    line = await asyncio.to_thread(process.stderr.readline)
    reading = asyncio.create_task(asyncio.to_thread(process.stderr.read))
    kit.url = f"http://127.0.0.1:{json.loads(line)['port']}"
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        await reading
        process.stderr.close()
        kit.url = ""


async def ask(port: int, gate: asyncio.Semaphore) -> tuple[str, asyncio.StreamWriter]:
    """One connection of the crowd, which stays open; its status."""
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4096)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        writer.write(f"{head}Content-Length: {len(BODY)}\r\n\r\n".encode() + BODY)
        status = (await reader.readline()).split()[1].decode()
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        return status, writer


async def lasts(http: aiohttp.ClientSession) -> float:
    """Seconds until the other tenant has its answer's first bytes."""
    started = time.monotonic()
    body = {"model": "smol-135m", "messages": [], "stream": True}
    async with http.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        await response.content.readany()
    return time.monotonic() - started


@pytest.mark.slow
@pytest.mark.alone
async def test_two_thousand_connections_of_one_tenant_get_its_quota_and_do_not_hold_up_another(
    kit: Kit, gateway: subprocess.Popen[bytes]
) -> None:
    [replica] = kit.replicas
    memory = psutil.Process(gateway.pid).memory_info
    port = int(kit.url.rsplit(":", 1)[1])
    headers = {"Authorization": f"Bearer {OTHER_KEY}"}
    async with asyncio.timeout(60), aiohttp.ClientSession(kit.url, headers=headers) as http:
        await lasts(http)
        before = memory().rss
        gate = asyncio.Semaphore(500)  # connecting at a time; the listen backlog holds them
        crowd = [asyncio.create_task(ask(port, gate)) for _ in range(CROWD)]
        seconds = [await lasts(http) for _ in range(20)]
        found = await asyncio.gather(*crowd)
        grown = memory().rss - before
        seconds.append(await lasts(http))
        for _, writer in found:
            writer.close()

    assert Counter(status for status, _ in found) == {"200": ADMITTED, "429": CROWD - ADMITTED}
    assert _most_running(replica) <= ADMITTED + 2
    print(f"slowest answer for the other tenant {max(seconds):.3f} s, {grown / CROWD / 1024:.1f} KiB a connection")
    assert max(seconds) < 2.0
    assert grown / CROWD < 64 * 1024


def _most_running(replica: FakeRuntime) -> int:
    return len([seen for seen in replica.seen if seen.headers["Lorafleet-Tenant"] == "acme"])
