from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.fairness.counters import Table
from lorafleet_runtime.errors import EngineDead
from lorafleet_runtime.frontend.engine_api import Broadcast, Stream
from lorafleet_runtime.frontend.engine_client import EngineClient
from lorafleet_runtime.frontend.engine_process import Patience
from lorafleet_runtime.frontend.restarts import Restarts
from lorafleet_runtime.frontend.scripted_engine import ScriptedEngine
from lorafleet_runtime.protocol import (
    AddRequest,
    Delta,
    EngineState,
    LoadAdapter,
    MergeCounters,
    Sampling,
    Sharing,
    TenantRow,
    UnloadAdapter,
)

# A process that speaks the protocol and has no model: it echoes prompts, forwards what it was told as its state's
# message, and misbehaves on request.
ECHO = """
import os, sys, threading, time, zmq
from lorafleet_runtime.protocol import *

endpoint = sys.argv[sys.argv.index("--endpoint") + 1]
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
context = zmq.Context()
inbox, outbox = context.socket(zmq.PULL), context.socket(zmq.PUSH)
time.sleep(float(os.environ.get("SLOW_START", "0")))
inbox.connect(endpoint + ".in")
outbox.connect(endpoint + ".out")
born = os.environ.get("BORN")  # a file that counts starts; past the first, a start may fail
lives = 1
if born:
    open(born, "a").write("x")
    lives = os.path.getsize(born)
if lives > int(os.environ.get("GOOD_LIVES", "99")):
    outbox.send(encode(EngineState("Failed", message="no memory left")))
    context.destroy(linger=500)
    sys.exit(1)
outbox.send(encode(EngineState("Loading", message="reading weights")))
time.sleep(0.2 * (lives > 1))  # else both states come at once
outbox.send(encode(Alive(float(os.environ.get("BUSY", "0")))))
outbox.send(encode(EngineState("Ready", message="up")))

def beat():
    socket = context.socket(zmq.PUSH)
    socket.connect(endpoint + ".out")
    while True:
        socket.send(encode(Alive(0.0)))
        time.sleep(0.05)

threading.Thread(target=beat, daemon=True).start()
while True:
    message = decode_to_engine(inbox.recv())
    match message:
        case Shutdown():
            outbox.send(encode(EngineState("Ready", message="bye")))
            context.destroy(linger=500)
            sys.exit(0)
        case AddRequest(prompt_token_ids=[666]):
            time.sleep(0.2)  # what was sent before leaves the socket
            os._exit(7)
        case AddRequest(prompt_token_ids=[0]):
            outbox.send(encode(Deltas([Delta(message.request_id, [0])])))
        case AddRequest():
            ids = message.prompt_token_ids
            deltas = [Delta(message.request_id, [t], "stop" if i == len(ids) - 1 else None) for i, t in enumerate(ids)]
            for delta in deltas:
                outbox.send(encode(Deltas([delta])))
        case _:
            outbox.send(encode(EngineState("Ready", message=repr(message))))
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "echo_engine.py"
    script.write_text(ECHO)
    return [sys.executable, str(script)]


@pytest.fixture
async def client(command: list[str], tmp_path: Path) -> AsyncIterator[EngineClient]:
    client = EngineClient(EngineConfig(str(tmp_path), "tiny"), command=command)
    await client.start()
    yield client
    await client.stop()


def ask(name: str, *prompt: int) -> AddRequest:
    return AddRequest(name, list(prompt), Sampling(max_tokens=1))


async def read_all(stream: Stream, count: int) -> list[Delta]:
    deltas: list[Delta] = []
    async with asyncio.timeout(10):
        while len(deltas) < count:
            deltas += await stream.next()
    return deltas


async def until(client: EngineClient, condition: Callable[[EngineState], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition(client.state):
            await client.wait_newer(client.version)


async def test_requests_get_their_own_deltas_in_order(client: EngineClient) -> None:
    streams = [client.open([ask(f"r{i}", i, i + 1, i + 2)]) for i in range(1, 50)]
    results = [await read_all(stream, 3) for stream in streams]

    for i, deltas in enumerate(results, start=1):
        assert [delta.token_ids for delta in deltas] == [[i], [i + 1], [i + 2]]
        assert {delta.request_id for delta in deltas} == {f"r{i}"}


async def test_what_is_sent_before_the_engine_is_up_arrives(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW_START", "0.5")
    client = EngineClient(EngineConfig(str(tmp_path), "tiny"), command=command)
    await client.start()
    stream = client.open([ask("early", 5)])

    assert [delta.token_ids for delta in await read_all(stream, 1)] == [[5]]
    await client.stop()


async def test_orders_reach_the_engine_and_states_come_back(client: EngineClient) -> None:
    client.load_adapter(LoadAdapter("acme.a", "sha256:0", "/folder", True))
    await until(client, lambda state: "acme.a" in state.message)

    assert client.state.message == repr(LoadAdapter("acme.a", "sha256:0", "/folder", True))
    client.unload_adapter(UnloadAdapter("acme.a"))
    await until(client, lambda state: state.message == repr(UnloadAdapter("acme.a")))


async def test_closing_a_stream_aborts_what_still_runs(client: EngineClient) -> None:
    stream = client.open([ask("open", 0), ask("done", 3)])
    await read_all(stream, 2)
    stream.close()
    stream.close()
    await until(client, lambda state: "AbortRequest" in state.message)

    assert client.state.message == "AbortRequest(request_id='open')"


async def test_when_the_engine_dies_everything_open_fails_at_once(client: EngineClient) -> None:
    waiting = client.open([ask("open", 0)])
    assert await read_all(waiting, 1)
    client.open([ask("poison", 666)])

    async with asyncio.timeout(5):
        with pytest.raises(EngineDead, match="code 7"):
            await waiting.next()
        await client.died.wait()
    assert (client.state.phase, "code 7" in client.state.message) == ("Failed", True)
    with pytest.raises(EngineDead):
        client.open([ask("late", 1)])


async def test_a_killed_engine_is_noticed(client: EngineClient) -> None:
    await until(client, lambda state: state.message == "up")
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)

    await asyncio.wait_for(client.died.wait(), 5)
    assert client.state.phase == "Failed"


async def test_what_came_before_the_death_can_still_be_read(client: EngineClient) -> None:
    stream = client.open([ask("open", 0)])
    await until(client, lambda state: state.message == "up")
    client.open([ask("poison", 666)])
    await asyncio.wait_for(client.died.wait(), 5)

    assert [delta.token_ids for delta in await stream.next()] == [[0]]
    with pytest.raises(EngineDead):
        await stream.next()


@pytest.fixture
async def lasting(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EngineClient]:
    """A client that starts its engine again twice within a minute, and takes half a second of silence for a hang."""
    monkeypatch.setenv("BORN", str(tmp_path / "born"))
    restarts, patience = Restarts((0.0, 0.1), 60.0), Patience(silent_seconds=0.5)
    config = EngineConfig(str(tmp_path), "tiny", incarnation="first")
    client = EngineClient(config, "console", command, restarts, patience)
    await client.start()
    yield client
    await client.stop()


async def next_life(client: EngineClient, pid: int | None) -> list[EngineState]:
    """The states until another process is up."""
    states = []
    async with asyncio.timeout(20):
        while client.pid == pid or client.state.phase != "Ready":
            states.append(client.state)
            await client.wait_newer(client.version)
    return states


async def test_an_engine_that_dies_is_started_again_and_says_why_meanwhile(lasting: EngineClient) -> None:
    await until(lasting, lambda state: state.message == "up")
    waiting, pid = lasting.open([ask("open", 0)]), lasting.pid
    await read_all(waiting, 1)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="SIGKILL"):
        await waiting.next()
    with pytest.raises(EngineDead, match="SIGKILL"):
        lasting.open([ask("early", 1)])
    states = await next_life(lasting, pid)

    assert states[0].message == "the engine process was ended by SIGKILL; it is started again"
    assert states[-1].message == "reading weights (started again: the engine process was ended by SIGKILL)"
    assert {state.phase for state in states} == {"Loading"}
    assert [delta.token_ids for delta in await read_all(lasting.open([ask("late", 5)]), 1)] == [[5]]
    assert not lasting.died.is_set()


async def test_each_engine_has_its_own_incarnation_and_learns_what_all_have_given(lasting: EngineClient) -> None:
    await until(lasting, lambda state: state.message == "up")
    lasting.board.took(Sharing("VTC", table=Table({"first": {"acme": 7}}), tenants=[TenantRow("acme", 1.0, service=7)]))
    assert lasting.pid is not None
    os.kill(lasting.pid, signal.SIGKILL)
    await until(lasting, lambda state: "MergeCounters" in state.message)

    assert lasting.board.incarnation not in ("", "first")
    assert lasting.state.message == repr(MergeCounters(Table({"first": {"acme": 7}})))
    assert lasting.board.counter("acme") == 7
    assert lasting.board.rows == {}  # what this engine itself has given


async def test_orders_while_there_is_no_engine_reach_the_next(lasting: EngineClient) -> None:
    await until(lasting, lambda state: state.message == "up")
    assert lasting.pid is not None
    os.kill(lasting.pid, signal.SIGKILL)
    await until(lasting, lambda state: state.phase == "Loading")
    lasting.unload_adapter(UnloadAdapter("acme.a"))

    await until(lasting, lambda state: state.message == repr(UnloadAdapter("acme.a")))


@pytest.mark.parametrize(("good_lives", "reason"), [("99", "code 7"), ("1", "no memory left")])
async def test_an_engine_that_keeps_dying_is_given_up_and_the_last_reason_is_told(
    lasting: EngineClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, good_lives: str, reason: str
) -> None:
    monkeypatch.setenv("GOOD_LIVES", good_lives)
    async with asyncio.timeout(30):
        while not lasting.died.is_set():
            if lasting.state.phase == "Ready":
                lasting.open([ask(f"poison {lasting.version}", 666)])
            await lasting.wait_newer(lasting.version)

    assert (tmp_path / "born").read_text() == "xxx"
    assert (lasting.state.phase, reason in lasting.state.message) == ("Failed", True)


async def test_an_engine_that_never_was_ready_is_not_tried_again(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOD_LIVES", "0")
    client = EngineClient(EngineConfig(str(tmp_path), "tiny"), command=command, restarts=Restarts())
    await client.start()
    await asyncio.wait_for(client.died.wait(), 20)

    assert client.state == EngineState("Failed", message="no memory left")
    await client.stop()


async def test_an_engine_that_is_stopped_is_killed_and_started_again(lasting: EngineClient) -> None:
    await until(lasting, lambda state: state.message == "up")
    waiting, pid = lasting.open([ask("open", 0)]), lasting.pid
    await read_all(waiting, 1)
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        with pytest.raises(EngineDead, match=r"gave no sign of life for .* s, and was killed"):
            await waiting.next()
    await next_life(lasting, pid)

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_step_without_an_end_is_ended(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUSY", "601")
    client = EngineClient(EngineConfig(str(tmp_path), "tiny"), command=command)
    await client.start()
    await asyncio.wait_for(client.died.wait(), 20)

    assert client.state.message == "a step of the engine has lasted 601 s, and was killed"
    await client.stop()


async def test_a_stop_between_two_engines_starts_none(command: list[str], tmp_path: Path) -> None:
    client = EngineClient(EngineConfig(str(tmp_path), "tiny"), "console", command, Restarts((60.0,)))
    await client.start()
    await until(client, lambda state: state.message == "up")
    first = client.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await until(client, lambda state: state.phase == "Loading")
    folder = client.folder
    await asyncio.wait_for(client.stop(), 5)

    assert (client.pid, client.died.is_set(), folder.exists()) == (None, True, False)


async def test_stop_is_orderly_and_leaves_no_files(command: list[str], tmp_path: Path) -> None:
    client = EngineClient(EngineConfig(str(tmp_path), "tiny"), command=command)
    await client.start()
    await until(client, lambda state: state.message == "up")
    pid = client.pid
    await client.stop()

    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not client.folder.exists()


def test_an_engine_ends_with_its_killed_parent(command: list[str], tmp_path: Path) -> None:
    code = (
        "import asyncio, os, signal\n"
        "from lorafleet_runtime.config import EngineConfig\n"
        "from lorafleet_runtime.frontend.engine_client import EngineClient\n"
        "async def main():\n"
        f"    client = EngineClient(EngineConfig({str(tmp_path)!r}, 'tiny'), command={command!r})\n"
        "    await client.start()\n"
        "    while client.state.message != 'up':\n"
        "        await client.wait_newer(client.version)\n"
        "    print(client.pid, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    # The pipe that carries its output is held by the engine too: reading it to the end proves that it is gone.
    assert int(output.stdout) > 0


async def test_a_slow_reader_gets_everything_at_once() -> None:
    engine = ScriptedEngine(lambda request: [1, 2, 3])
    stream = engine.open([AddRequest("r", [9], Sampling(max_tokens=3))])
    await asyncio.sleep(0.02)

    assert [delta.token_ids for delta in await stream.next()] == [[1], [2], [3]]


async def test_waiters_wake_at_a_newer_state_only() -> None:
    states = Broadcast(EngineState("Loading"))
    task = asyncio.create_task(states.wait_newer(states.version))
    await asyncio.sleep(0)
    assert not task.done()
    states.replace(EngineState("Ready"))

    await asyncio.wait_for(task, 1)
    await states.wait_newer(0)
