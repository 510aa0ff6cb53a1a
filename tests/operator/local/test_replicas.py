"""One replica and the calls to it, against a runtime made for faults, in real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorafleet_operator.adapter_calls import AdapterCalls
from lorafleet_operator.backoff import Backoff
from lorafleet_operator.core.objects import Ref
from lorafleet_operator.local.replicas import Launch, LocalReplica
from tests.operator import fleet_kit as kit

PIRATE = Ref("acme", "pirate")


@dataclass(slots=True)
class Bench:
    """One replica on a test's folder."""

    folder: Path
    replica: LocalReplica
    calls: AdapterCalls

    def tell(self, what: str, text: str = "") -> None:
        (self.folder / f"tiny.{what}").write_text(text)

    async def start(self) -> None:
        await self.replica.start(kit.start_action(self.folder), {})

    async def ready(self) -> None:
        await self.start()
        await kit.until(lambda: self.replica.state == "Ready")

    def load(self, fake: str = "") -> None:
        artifact = kit.resolved_adapter(kit.write_adapter(self.folder / "pirate", fake=fake))
        self.calls.load(self.replica, PIRATE, artifact, pinned=False)

    async def settled(self) -> None:
        await kit.until(lambda: self.calls.on_their_way == 0)

    def states(self) -> list[tuple[str, str]]:
        return [(r.state, r.reason) for r in self.calls.residents(self.replica)]


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setenv("FAKE_RUNTIME_DIR", str(tmp_path))
    calls = AdapterCalls(lambda: None, Backoff(1.0, 8.0))
    launch = Launch(
        kit.FAKE_RUNTIME, tmp_path / "logs", "serving-token", "admin-token",
        poll_seconds=0.02, hung_seconds=1.0, stop_seconds=2.0, backoff=Backoff(0.1, 10.0),
    )  # fmt: skip
    replica = LocalReplica("tiny-0", launch, changed=lambda: None, reported=calls.reported)
    yield Bench(tmp_path, replica, calls)
    await calls.close()
    await replica.stop(0.1)


async def test_a_replica_becomes_ready_and_stops_in_order(bench: Bench) -> None:
    await bench.ready()
    view, pid = bench.replica.view(), kit.starts(bench.folder)[0]
    await bench.replica.stop(1.0)

    assert (view.state, view.failures, view.pages_total) == ("Ready", 0, 100)
    assert view.incarnation
    assert view.url != view.admin_url
    assert bench.replica.state == "Gone"
    assert not kit.alive(pid)


async def test_no_token_is_visible_in_the_command_line(bench: Bench) -> None:
    await bench.ready()
    argv = Path(f"/proc/{kit.starts(bench.folder)[0]}/cmdline").read_text()

    assert "--served-name\0tiny\0" in argv
    assert "serving-token" not in argv
    assert "admin-token" not in argv


async def test_loading_is_reported_with_its_progress(bench: Bench) -> None:
    bench.tell("slow", "0.8")
    await bench.start()
    await kit.until(lambda: 0 < bench.replica.view().progress < 1)

    assert bench.replica.state == "Starting"
    assert bench.replica.message == "reading weights"


async def test_a_process_that_ends_at_once_is_said_why_and_backs_off_longer_each_time(bench: Bench) -> None:
    bench.tell("crash")
    waits = []
    for failures in (1, 2, 3):
        await bench.start()
        await kit.until(lambda: bench.replica.state == "Failed" and not bench.replica.running)
        view = bench.replica.view()
        waits.append(view.retry_at - time.monotonic())

        assert view.failures == failures
        assert "ended with status 3: told to crash (log: " in view.message

    assert 0 < waits[0] <= 0.1 < waits[2] <= 0.4


async def test_a_crash_right_after_ready_still_counts_as_a_failure_in_a_row(bench: Bench) -> None:
    for failures in (1, 2):
        await bench.ready()
        os.kill(kit.starts(bench.folder)[-1], signal.SIGKILL)
        await kit.until(lambda: bench.replica.state == "Failed")

        assert bench.replica.failures == failures
        assert "was ended by signal 9" in bench.replica.message


async def test_a_process_that_no_longer_answers_is_ended(bench: Bench) -> None:
    await bench.ready()
    bench.tell("hang")
    await kit.until(lambda: bench.replica.state == "Failed")

    assert "no answer for " in bench.replica.message
    assert not kit.alive(kit.starts(bench.folder)[0])


async def test_a_runtime_that_says_failed_is_ended_and_quoted(bench: Bench) -> None:
    bench.tell("broken")
    await bench.start()
    await kit.until(lambda: bench.replica.state == "Failed")

    assert "the weights are not a model" in bench.replica.message
    await kit.until(lambda: not bench.replica.running)


async def test_a_command_that_does_not_exist_is_a_failure_with_its_reason(bench: Bench, tmp_path: Path) -> None:
    launch = Launch(("no-such-program",), tmp_path, "", "")
    replica = LocalReplica("tiny-0", launch, changed=lambda: None)
    await replica.start(kit.start_action(tmp_path), {})

    assert replica.state == "Failed"
    assert replica.message == "cannot start no-such-program: No such file or directory"


async def test_an_adapter_is_loading_from_the_moment_it_is_asked_for(bench: Bench) -> None:
    await bench.ready()
    bench.load()

    assert bench.states() == [("Loading", "")]

    await kit.until(lambda: bench.states() == [("Ready", "")])


async def test_a_failed_load_is_not_tried_again_before_its_time(bench: Bench) -> None:
    await bench.ready()
    bench.load("NoRoom")
    await kit.until(lambda: bench.states() == [("Failed", "NoRoom")])
    revision = bench.calls.residents(bench.replica)[0].revision

    assert bench.calls.retry_at({PIRATE: revision}).keys() == {(PIRATE, "tiny-0")}
    assert bench.calls.retry_at({PIRATE: "sha256:another"}) == {}


async def test_each_further_failure_waits_longer_and_success_forgets_them(bench: Bench) -> None:
    await bench.ready()
    waits = []
    for _ in range(3):
        asked = time.monotonic()
        bench.load("NoRoom")
        await bench.settled()
        revision = bench.calls.residents(bench.replica)[0].revision
        waits.append(bench.calls.retry_at({PIRATE: revision})[PIRATE, "tiny-0"] - asked)
    bench.load("")
    await kit.until(lambda: bench.states() == [("Ready", "")])

    assert waits[0] <= 1.5 < waits[2]
    assert bench.calls.retry_at({PIRATE: bench.calls.residents(bench.replica)[0].revision}) == {}


async def test_what_can_never_load_waits_long(bench: Bench) -> None:
    await bench.ready()
    bench.load("RankTooHigh")
    await kit.until(lambda: bench.states() == [("Failed", "RankTooHigh")])
    (retry_at,) = bench.calls.retry_at({PIRATE: bench.calls.residents(bench.replica)[0].revision}).values()

    assert retry_at - time.monotonic() > 20


async def test_a_call_that_fails_without_an_answer_shows_as_failed(bench: Bench) -> None:
    await bench.ready()
    assert bench.replica.client is not None
    bench.replica.client.epoch = 5
    bench.load()
    await bench.settled()
    bench.replica.client.epoch = 4
    (bench.folder / "pirate" / "adapter_model.safetensors").write_bytes(b"other weights")
    artifact = kit.resolved_adapter(bench.folder / "pirate")
    bench.calls.load(bench.replica, PIRATE, artifact, pinned=False)
    await kit.until(lambda: ("Failed", "StaleEpoch") in bench.states())

    assert ("Ready", "") in bench.states()


async def test_a_new_process_owes_nothing_to_the_old_one(bench: Bench) -> None:
    await bench.ready()
    bench.load("RankTooHigh")
    await kit.until(lambda: bench.states() == [("Failed", "RankTooHigh")])
    revision = bench.calls.residents(bench.replica)[0].revision
    os.kill(kit.starts(bench.folder)[0], signal.SIGKILL)
    await kit.until(lambda: bench.replica.state == "Failed")

    assert bench.states() == []
    assert bench.calls.retry_at({PIRATE: revision}) == {}


async def test_a_replica_that_starts_another_engine_is_starting_and_owes_nothing_to_the_old_one(bench: Bench) -> None:
    await bench.ready()
    bench.load("RankTooHigh")
    await kit.until(lambda: bench.states() == [("Failed", "RankTooHigh")])
    revision, before = bench.calls.residents(bench.replica)[0].revision, bench.replica.incarnation
    bench.tell("engine", "another")
    await kit.until(lambda: bench.replica.state == "Starting")
    starting = bench.replica.view()
    (bench.folder / "tiny.engine").unlink()
    await kit.until(lambda: bench.replica.state == "Ready")

    assert before != starting.incarnation == bench.replica.incarnation == "another"
    assert (starting.message, starting.failures) == ("the engine died; it is started again", 0)
    assert bench.calls.retry_at({PIRATE: revision}) == {}
    assert len(kit.starts(bench.folder)) == 1


async def test_an_unload_ends_with_nothing_resident(bench: Bench) -> None:
    await bench.ready()
    bench.load()
    await bench.settled()
    bench.calls.unload(bench.replica, PIRATE.wire_id)
    await kit.until(lambda: bench.states() == [])
