"""A system under test as a process of its own: started, waited for, stopped while another one is measured, ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

PATIENCE_SECONDS = 900.0
"""vLLM compiles on its first start: four minutes were seen on two busy cores."""
END_SECONDS = 20.0


class Server:
    """A process group behind one address. `start_seconds`: until it knew all its models."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink,
                start_new_session=True,
            )  # fmt: skip
        self.start_seconds = 0.0

    def wait(self, models: Sequence[str]) -> None:
        """Until the server answers and lists `models`; exits with the end of its log when it does not come up."""
        begun = time.perf_counter()
        while not set(models) <= self._models():
            if self._process.poll() is not None or time.perf_counter() - begun > PATIENCE_SECONDS:
                sys.exit(f"{self.url} did not come up; the end of its log:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.2)
        self.start_seconds = time.perf_counter() - begun

    def pause(self) -> None:
        """Take it off the processors: some servers poll while they are idle."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        """Ask it to end, then see to it; a second call does nothing."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.resume()
            os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            os.killpg(self._process.pid, signal.SIGKILL)  # what its group has left
        self._process.wait()

    def _models(self) -> set[str]:
        try:
            answer = httpx.get(f"{self.url}/v1/models", timeout=5, trust_env=False)
        except httpx.TransportError:
            return set()
        return {model["id"] for model in answer.json()["data"]} if answer.status_code == 200 else set()


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, port: int, models: Sequence[str]
) -> Iterator[Server]:
    """A server from its start, all `models` being known, to its end."""
    server = Server(command, environment, log, port)
    try:
        server.wait(models)
        yield server
    finally:
        server.end()
