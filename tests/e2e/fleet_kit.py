"""A fleet as users run it: `lorafleet up` as a child process, its folder, its clients, and its end without a trace."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

START_SECONDS = 120.0
RUNNING: list[Fleet] = []
"""The fleets that live now: a test that fails shows their logs."""


def wait_until(condition: Callable[[], object], seconds: float = 30.0, what: str = "") -> float:
    """Wait for a condition and say how long that took; fail after `seconds`."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        assert waited < seconds, f"waited {waited:.1f} s in vain{f' for {what}' if what else ''}"
        time.sleep(0.02)
    return time.monotonic() - started


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(eq=False)
class Fleet:
    """One `lorafleet up`. `keys` are the API keys by tenant."""

    folder: Path
    state: Path
    port: int
    keys: Mapping[str, str]
    process: subprocess.Popen[bytes] = field(init=False)
    _seen: dict[int, psutil.Process] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, tenant: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.keys[tenant], max_retries=0, timeout=120)

    def async_client(self, tenant: str) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.keys[tenant], max_retries=0, timeout=120)

    def http(self, tenant: str) -> httpx.Client:
        """For requests that no well-behaved client would send."""
        headers = {"Authorization": f"Bearer {self.keys[tenant]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def up(self) -> None:
        """Start, and return when `up` says that everything is settled."""
        argv = [sys.executable, "-m", "lorafleet_operator", "up", "-f", str(self.folder), "--port", str(self.port)]
        argv += ["--state-dir", str(self.state)]
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "out").open("wb") as out, (self.state / "err").open("wb") as err:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        RUNNING.append(self)
        wait_until(lambda: "serving OpenAI's API" in self.said() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, self.logs()
        self.children()

    def said(self, stream: str = "out") -> str:
        """What `up` has printed so far."""
        return (self.state / stream).read_text()

    def logs(self) -> str:
        """Everything that helps to understand a failure: the end of each log."""
        paths = [self.state / "out", self.state / "err", *sorted((self.state / "logs").glob("*.log"))]
        return "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in paths if path.exists())

    def document(self, base: str = "models.tiny") -> dict[str, Any]:
        """The fleet document that the gateway reads."""
        return read_json(self.state / "fleet" / f"{base}.json") or {}

    def replicas(self) -> dict[str, str]:
        """The incarnations of the replicas that are Ready, by name."""
        rows = self.document().get("replicas", ())
        return {row["name"]: row["incarnation"] for row in rows if row["state"] == "Ready"}

    def condition(self, kind: str, name: str, which: str = "Ready") -> dict[str, Any]:
        """One condition of an object's status; {} while there is none."""
        objects = (read_json(self.state / "status.json") or {}).get("objects", ())
        for found in objects:
            if (found["kind"], found["metadata"]["name"]) == (kind, name):
                conditions = found["status"].get("conditions", ())
                return next((dict(c) for c in conditions if c["type"] == which), {})
        return {}

    def children(self) -> list[psutil.Process]:
        """Every process below `up` that lives: gateway, runtimes, engines."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
            self._seen |= {child.pid: child for child in found}
            return [child for child in found if alive(child)]
        return []

    def processes(self, module: str) -> dict[int, psutil.Process]:
        """The children that `up` itself started to run this module, by pid."""
        found = {}
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.ppid() == self.process.pid and module in process.cmdline():
                    found[process.pid] = process
        return found

    @property
    def gateway(self) -> psutil.Process:
        [process] = self.processes("lorafleet_gateway").values()
        return process

    @property
    def runtime(self) -> psutil.Process:
        """The one replica's front end."""
        [process] = self.processes("lorafleet_runtime").values()
        return process

    @property
    def engine(self) -> psutil.Process:
        """The one replica's engine, which is its front end's child."""
        [process] = self.runtime.children()
        return process

    def survivors(self) -> list[psutil.Process]:
        """Of all processes that this fleet ever had, as far as seen, those that live."""
        self.children()
        return [process for process in self._seen.values() if alive(process)]

    def down(self) -> None:
        """End it in order; whatever is left after that is killed by pid, and is a failure."""
        if self not in RUNNING:
            return
        self.children()
        try:
            if self.process.poll() is None:
                self.process.terminate()
                self.process.wait(30)
            wait_until(lambda: not self.survivors(), 5, "the children's end")
        finally:
            RUNNING.remove(self)
            for process in self.survivors():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    @contextlib.contextmanager
    def file(self, name: str, text: str) -> Iterator[Path]:
        """A YAML file in the fleet's folder while the block runs; what was there before comes back."""
        path = self.folder / name
        before = path.read_text() if path.exists() else None
        replace_text(path, text)
        try:
            yield path
        finally:
            if before is None:
                path.unlink(missing_ok=True)
            else:
                replace_text(path, before)


def replace_text(path: Path, text: str) -> None:
    """Replace a file in one step, as editors do."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def read_json(path: Path) -> Any | None:
    """The document in a file that is replaced as a whole; None when there is none yet."""
    return json.loads(path.read_text()) if path.exists() else None


def alive(process: psutil.Process) -> bool:
    """Does this very process run (not a later one with its pid, not a zombie)?"""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One run of `lorafleet` to its end."""
    argv = [sys.executable, "-m", "lorafleet_operator", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The JSON of each event of a raw stream; the end mark must come last."""
    last = ""
    for line in lines:
        if line:
            last = line.removeprefix("data: ")
            if last != "[DONE]":
                yield json.loads(last)
    assert last == "[DONE]", f"the stream ended with {last!r}"
