from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from lorafleet_gateway.cli import main
from tests.gateway.gateway_kit import Kit, chat, open_unread, stalls


def start(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lorafleet_gateway", "serve", "--fleet", str(folder), "--port", "0"]
    return subprocess.Popen(
        [*command, "--log-format", "json", *flags],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LORAFLEET_SERVING_TOKEN": "sk-never-shown"},
    )


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(tmp_path, "--exit-with-parent")
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            assert pipe is not None
            pipe.close()


def port(process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    line = process.stderr.readline()
    assert b"sk-never-shown" not in line
    return int(json.loads(line)["port"])


@pytest.mark.slow
def test_a_gateway_process_serves_and_ends_when_its_parent_lets_go(gateway: subprocess.Popen[bytes]) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port(gateway)}/health", timeout=5) as answer:
        assert answer.status == 200

    assert gateway.stdin is not None
    gateway.stdin.close()
    assert gateway.wait(timeout=2) == 0


@pytest.mark.slow
def test_a_gateway_process_stops_in_order_when_it_is_told_to(gateway: subprocess.Popen[bytes]) -> None:
    port(gateway)
    gateway.send_signal(signal.SIGTERM)

    assert gateway.wait(timeout=5) in (0, -signal.SIGTERM)


@pytest.mark.slow
async def test_a_gateway_process_holds_a_replica_back_for_a_client_that_does_not_read(kit: Kit) -> None:
    # The other tests' event loop is asyncio's; a process runs uvloop.
    replica = await kit.replica(tokens=10**9, padding="x" * 4000)
    await kit.publish()
    process = start(kit.folder)
    try:
        url = f"http://127.0.0.1:{await asyncio.to_thread(port, process)}"
        with await open_unread(url, chat(stream=True)):
            assert await stalls(replica)
        await kit.until(lambda: replica.cancelled == 1)
    finally:
        process.kill()
        process.communicate()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--fleet", str(tmp_path / "nowhere")]) == 2
    assert "nowhere' is not a folder" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        assert main(["serve", "--fleet", str(tmp_path), "--port", str(number)]) == 2

    assert f"--port {number} cannot be had" in capsys.readouterr().err
