"""A fleet on this machine, with real child processes and a runtime made for faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lorafleet_operator.core.objects import Ref
from tests.operator import fleet_kit as kit
from tests.operator.yard import FLEET, Yard, lora


@pytest.fixture
async def yard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Yard]:
    monkeypatch.setenv("FAKE_RUNTIME_DIR", str(tmp_path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    yard = Yard(tmp_path, port)
    yield yard
    with contextlib.suppress(AttributeError):  # a test that never brought it up
        await yard.down()


async def test_a_fleet_comes_up_and_is_published(yard: Yard) -> None:
    yard.write(replicas=2)
    yard.adapter("pirate", extra=", copies: {min: 2, max: 2}")
    yard.up()
    await yard.serving("pirate")
    await kit.until(lambda: len(yard.document()["adapters"][0]["placements"]) == 2)
    tenants = yard.root / "state" / "fleet" / "tenants.json"

    assert [r["state"] for r in yard.document()["replicas"]] == ["Ready", "Ready"]
    assert len({r["url"] for r in yard.document()["replicas"]}) == 2
    assert stat.S_IMODE(tenants.stat().st_mode) == 0o600
    assert "sk-acme-demo" not in tenants.read_text() + (yard.root / "state" / "status.json").read_text()
    await kit.until(lambda: yard.status("LoRAAdapter", "pirate")["Ready"]["status"] == "True")


async def test_the_end_is_in_order_and_leaves_no_process(yard: Yard) -> None:
    yard.write(replicas=2)
    yard.up()
    await yard.serving()
    await kit.until(lambda: len(kit.starts(yard.root)) == 2)
    pids = kit.starts(yard.root) + kit.starts(yard.root, "gateway")
    await yard.down()

    assert len(pids) == 3
    assert not any(kit.alive(pid) for pid in pids)
    assert yard.document()["replicas"] == []


async def test_an_edit_takes_effect_within_two_seconds_and_restarts_nothing(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.up()
    await yard.serving("pirate")
    yard.adapter("haiku")
    await kit.until(lambda: yard.ready_adapters() == ["haiku", "pirate"], seconds=2.0)
    (yard.root / "pirate.yaml").unlink()
    await kit.until(lambda: yard.ready_adapters() == ["haiku"], seconds=2.0)

    assert len(kit.starts(yard.root)) == 1


async def test_a_retrained_adapter_is_loaded_as_a_new_revision(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.up()
    await yard.serving("pirate")
    before = yard.document()["adapters"][0]["placements"][0]["revision"]
    kit.write_adapter(yard.root / "pirate", weights=b"better weights")
    await kit.until(lambda: yard.document()["adapters"][0]["placements"][0]["revision"] != before)
    await yard.serving("pirate")

    assert len(kit.starts(yard.root)) == 1


async def test_broken_yaml_keeps_serving(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.up()
    await yard.serving("pirate")
    (yard.root / "pirate.yaml").write_text("kind: [")
    (yard.root / "fleet.yaml").write_text(FLEET.replace("REPLICAS", "many").replace("EXTRA", ""))
    await kit.until(lambda: len(yard.world.folder.desired.problems) == 2)
    yard.adapter("haiku")
    await kit.until(lambda: yard.ready_adapters() == ["haiku", "pirate"])

    assert len(kit.starts(yard.root)) == 1


async def test_a_killed_runtime_is_started_again_with_its_adapters(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.up()
    await yard.serving("pirate")
    incarnation = yard.document()["replicas"][0]["incarnation"]
    os.kill(kit.starts(yard.root)[0], signal.SIGKILL)
    await kit.until(lambda: yard.document()["replicas"][0]["incarnation"] not in ("", incarnation))
    await yard.serving("pirate")

    assert len(kit.starts(yard.root)) == 2


async def test_a_crash_loop_backs_off_and_says_why(yard: Yard) -> None:
    (yard.root / "tiny.crash").touch()
    yard.write()
    yard.up()
    await kit.until(lambda: len(kit.starts(yard.root)) == 2)
    replica = yard.world.replicas["tiny-0"]
    await kit.until(lambda: replica.failures == 2)

    assert replica.retry_at - yard.world.now() > 0.3
    await kit.until(lambda: "told to crash" in yard.status("BaseModel", "tiny")["Ready"]["message"])

    (yard.root / "tiny.crash").unlink()
    await kit.until(lambda: replica.state == "Ready")


async def test_a_killed_gateway_is_started_again(yard: Yard) -> None:
    yard.write()
    yard.up()
    await yard.serving()
    os.kill(kit.starts(yard.root, "gateway")[0], signal.SIGKILL)
    await kit.until(lambda: len(kit.starts(yard.root, "gateway")) == 2)
    await yard.serving()


async def test_one_bad_adapter_does_not_keep_the_others_from_serving(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.adapter("bad", fake="InvalidAdapter")
    (yard.root / "absent.yaml").write_text(lora("absent"))
    yard.up()
    await yard.serving("pirate")

    await kit.until(lambda: yard.status("LoRAAdapter", "bad")["Ready"]["reason"] == "InvalidAdapter")
    assert "does not exist" in yard.status("LoRAAdapter", "absent")["Ready"]["message"]


async def test_a_base_model_that_is_gone_has_no_process_and_no_document(yard: Yard) -> None:
    yard.write()
    yard.up()
    await yard.serving()
    (yard.root / "fleet.yaml").write_text("# nothing")
    await kit.until(lambda: not yard.document() and not yard.world.replicas)

    assert not kit.alive(kit.starts(yard.root)[0])


async def test_a_setting_that_a_process_cannot_change_replaces_it_without_a_gap(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.up()
    await yard.serving("pirate")
    first = kit.starts(yard.root)[0]
    yard.write(extra=", engine: {maxNumSeqs: 8, tensorParallel: 2}")
    gaps = 0
    while kit.alive(first):
        gaps += yard.ready_adapters() != ["pirate"]
        await asyncio.sleep(0.02)
    await yard.serving("pirate")

    assert gaps == 0
    last = (yard.root / "tiny.starts").read_text().splitlines()[-1]
    assert "--max-num-seqs 8 " in last and "--tensor-parallel 2 " in last


async def test_what_one_machine_cannot_do_is_refused_by_its_field(yard: Yard) -> None:
    yard.write(extra=", engine: {memoryFraction: 0.5}")
    yard.up()
    await kit.until(lambda: (yard.root / "state" / "status.json").exists())
    await kit.until(lambda: yard.status("BaseModel", "tiny")["Ready"]["reason"] == "NotSupported")

    assert ".spec.engine.memoryFraction" in yard.status("BaseModel", "tiny")["Ready"]["message"]
    assert kit.starts(yard.root) == []


async def test_nothing_is_written_while_nothing_changes(yard: Yard) -> None:
    yard.write()
    yard.adapter("pirate")
    yard.up()
    await yard.serving("pirate")
    await kit.until(lambda: yard.status("LoRAAdapter", "pirate")["Ready"]["status"] == "True")
    await asyncio.sleep(0.3)
    writes = yard.world.publisher.writes
    await asyncio.sleep(0.8)  # more than one resync

    assert yard.world.publisher.writes == writes


async def test_generations_grow_across_a_restart_of_the_fleet(yard: Yard) -> None:
    yard.write()
    yard.up()
    await yard.serving()
    await yard.down()
    before = yard.document()["generation"]
    yard.stop = asyncio.Event()
    yard.up()
    await yard.serving()

    assert yard.document()["generation"] > before


async def test_a_hung_runtime_does_not_hold_up_its_neighbour(yard: Yard) -> None:
    yard.write()
    other = FLEET.split("---")[0].replace("REPLICAS", "1").replace("EXTRA", "").replace("name: tiny", "name: other")
    (yard.root / "other.yaml").write_text(other)
    yard.up()
    await yard.serving()
    await kit.until(lambda: [r["state"] for r in yard.document("models.other")["replicas"]] == ["Ready"])
    (yard.root / "other.hang").touch()
    yard.adapter("pirate")
    await kit.until(lambda: yard.ready_adapters() == ["pirate"], seconds=2.0)
    (yard.root / "other.hang").unlink()

    assert yard.world.last[0].adapters.keys() == {Ref("acme", "pirate")}


async def test_a_tenant_says_what_it_has_received_and_nothing_is_written_while_it_rests(yard: Yard) -> None:
    def usage() -> dict[str, Any]:
        return dict(yard.whole_status("Tenant", "acme").get("usage", {}))

    yard.write(replicas=2)
    yard.up()
    await kit.until(lambda: len(yard.replicas_up()) == 2 and yard.world.usage.known.as_of)
    assert usage() == {}
    share = {"name": "acme", "weight": 1, "service": 3_000_000, "promptTokens": 7, "counter": 6_000_000, "waiting": 1}
    (yard.root / "tiny.tenants").write_text(json.dumps([share]))
    await kit.until(lambda: usage().get("waiting") == 2)
    writes = yard.world.publisher.writes
    await asyncio.sleep(0.5)

    assert (usage()["service"], usage()["promptTokens"], usage()["models"][0]["counter"]) == (6, 14, 6)
    assert yard.world.publisher.writes == writes
    os.kill(kit.starts(yard.root)[0], signal.SIGKILL)
    await kit.until(lambda: usage()["service"] == 9)
