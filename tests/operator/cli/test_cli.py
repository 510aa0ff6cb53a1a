"""The command line: what newcomers read, what machines parse, and what is left behind when it is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from lorafleet_operator import __version__
from lorafleet_operator.cli.main import main
from lorafleet_operator.local.state_folder import StateFolder, write_json
from tests.operator import fleet_kit as kit

FLEET = """
apiVersion: lorafleet.dev/v1alpha1
kind: BaseModel
metadata: {name: tiny, namespace: models}
spec: {source: {uri: "file:model.gguf"}, allowedNamespaces: {from: All}}
---
apiVersion: lorafleet.dev/v1alpha1
kind: LoRAAdapter
metadata: {name: pirate, namespace: acme}
spec: {baseModelRef: {namespace: models, name: tiny}, source: {uri: "file:pirate"}}
---
apiVersion: lorafleet.dev/v1alpha1
kind: Tenant
metadata: {name: acme}
spec:
  namespaces: [acme]
  models: [{namespace: models, name: tiny}]
  apiKeys: [{secretRef: {namespace: acme, name: acme-key, key: key}}]
---
apiVersion: v1
kind: Secret
metadata: {name: acme-key, namespace: acme}
stringData: {key: sk-acme-demo}
"""


@dataclass(slots=True)
class Shop:
    """A folder with a fleet's YAML, and `lorafleet` run on it."""

    root: Path
    port: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def yaml(self) -> Path:
        return self.root / "fleet.yaml"

    def up(self) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "lorafleet_operator", "up", "-f", str(self.root), "--port", str(self.port)]
        with (self.root / "out").open("wb") as out, (self.root / "err").open("wb") as err:
            self.started.append(subprocess.Popen(argv, stdout=out, stderr=err))
        return self.started[-1]

    def wait_for(self, text: str, stream: str = "out") -> str:
        deadline = time.monotonic() + 15
        while text not in (said := (self.root / stream).read_text()):
            assert time.monotonic() < deadline, said + (self.root / "err").read_text()
            time.sleep(0.02)
        return said

    def children(self) -> list[int]:
        return kit.starts(self.root) + kit.starts(self.root, "gateway")


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    fake = " ".join(kit.FAKE_RUNTIME)
    for name, value in {
        "FAKE_RUNTIME_DIR": str(tmp_path), "LORAFLEET_STATE_DIR": str(tmp_path / "state"),
        "LORAFLEET_RUNTIME_COMMAND": fake, "LORAFLEET_GATEWAY_COMMAND": fake,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    kit.write_base(tmp_path)
    kit.write_adapter(tmp_path / "pirate")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shop = Shop(tmp_path, port)
    shop.yaml.write_text(FLEET)
    yield shop
    for process in shop.started:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.mark.slow
def test_up_tells_what_serves_and_ends_in_order(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    process = shop.up()
    said = shop.wait_for("curl ")
    second = main(["up", "-f", str(shop.root), "--port", str(shop.port + 1)])
    busy = capsys.readouterr().err
    listed = main(["get", "lad", "-n", "acme"])
    table = capsys.readouterr().out
    process.send_signal(signal.SIGTERM)
    code = process.wait(15)

    assert "pirate   LoRAAdapter   acme/pirate   ready   rank 8" in said
    assert "acme     1        pirate, tiny" in said
    assert f"curl http://127.0.0.1:{shop.port}/v1/chat/completions -H 'Authorization: Bearer sk-acme-demo'" in said
    assert (second, listed, code) == (1, 0, 0)
    assert f"(pid {process.pid}): stop it first" in busy
    assert table.splitlines()[1].split()[:5] == ["acme", "pirate", "tiny", "pirate", "1/1"]
    assert not any(kit.alive(pid) for pid in shop.children())


@pytest.mark.slow
def test_a_parent_killed_with_9_leaves_no_children(shop: Shop) -> None:
    process = shop.up()
    shop.wait_for("curl ")
    children = shop.children()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(kit.alive(pid) for pid in children):
        assert time.monotonic() < deadline, "an orphan lives"
        time.sleep(0.02)

    assert len(children) == 2
    assert StateFolder(shop.root / "state").owner() is None


@pytest.mark.slow
def test_a_file_that_breaks_while_serving_is_one_warning(shop: Shop) -> None:
    shop.up()
    shop.wait_for("curl ")
    shop.yaml.write_text("kind: [")
    shop.wait_for("is not YAML", "err")
    time.sleep(1.0)

    assert (shop.root / "err").read_text().count("is not YAML") == 1
    assert all(kit.alive(pid) for pid in shop.children())


def test_up_without_a_base_model_says_what_is_wrong(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.yaml.write_text(FLEET.replace("file:model.gguf", "model.gguf"))
    code = main(["up", "-f", str(shop.root), "--port", str(shop.port)])
    said = capsys.readouterr().err

    assert code == 1
    assert "there is no BaseModel to serve" in said
    assert "fleet.yaml: BaseModel models/tiny: .spec.source.uri" in said


def test_up_on_a_taken_port_says_how_to_choose_another(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", shop.port))
        other.listen()
        code = main(["up", "-f", str(shop.root), "--port", str(shop.port)])

    assert code == 1
    assert f"port {shop.port} on 127.0.0.1 is in use: stop what listens there, or" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["up", "plan", "demo"])
def test_a_path_that_does_not_exist_is_a_wrong_question(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "-f", "/no/such/folder"]) == 2
    assert "/no/such/folder: there is no such file or folder" in capsys.readouterr().err


def test_a_plan_against_nothing_says_every_action_with_its_reason(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["plan", "-f", str(shop.root)])

    assert code == 0
    assert capsys.readouterr().out.splitlines() == [
        "planned against no fleet: none runs with this state folder",
        "start replica tiny-0: 0 of 1 replicas exist",
    ]
    assert shop.children() == []


def test_a_plan_with_problems_prints_each_and_fails(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.yaml.write_text(FLEET.replace("file:pirate", "file:absent").replace("name: tiny}]", "name: tini}]"))
    code = main(["plan", "-f", str(shop.root)])
    said = capsys.readouterr().out

    assert code == 1
    assert "problem: LoRAAdapter acme/pirate: file:absent: " in said
    assert "problem: Tenant acme: .spec.models[0]: there is no BaseModel models/tini" in said


def test_get_without_a_fleet_says_how_to_start_one(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["get", "all"]) == 1
    assert "start one with lorafleet up -f DIR" in capsys.readouterr().err


def published(root: Path) -> None:
    (root / "state").mkdir()
    adapter = {
        "apiVersion": "lorafleet.dev/v1alpha1", "kind": "LoRAAdapter",
        "metadata": {"name": "pirate", "namespace": "acme", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"baseModelRef": {"name": "tiny"}, "servedName": "pirate"},
        "status": {"ready": "1/1", "servedName": "pirate", "shortRevision": "abc", "conditions": [
            {"type": "Ready", "status": "True", "reason": "Ready", "message": "one copy serves"}]},
    }  # fmt: skip
    tenant = {"kind": "Tenant", "metadata": {"name": "acme"}, "spec": {"weight": 2}}
    write_json(root / "state" / "status.json", {"version": 1, "objects": [tenant, adapter]})


@pytest.mark.parametrize(("output", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_get_prints_one_object_as_machines_want_it(
    shop: Shop, capsys: pytest.CaptureFixture[str], output: str, parse: object
) -> None:
    published(shop.root)
    code = main(["get", "lad", "pirate", "-o", output])
    document = parse(capsys.readouterr().out) if callable(parse) else None

    assert code == 0
    assert isinstance(document, dict)
    assert (document["kind"], document["status"]["ready"]) == ("LoRAAdapter", "1/1")


def test_get_prints_the_columns_of_kubectl(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    published(shop.root)
    main(["get", "lorafleet", "-o", "wide"])
    said = capsys.readouterr()

    assert said.out.splitlines()[0].split() == [
        "NAMESPACE", "NAME", "BASE", "SERVES", "READY", "REVISION", "STATUS", "AGE", "REPLICAS", "MESSAGE",
    ]  # fmt: skip
    assert said.out.splitlines()[1].split()[:5] == ["acme", "loraadapter/pirate", "tiny", "pirate", "1/1"]
    assert said.out.splitlines()[4].split() == ["tenant/acme", "2"]
    assert "the fleet does not run" in said.err


def test_get_of_an_unknown_kind_or_name_says_what_there_is(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    published(shop.root)

    assert main(["get", "pods"]) == 2
    assert "basemodels, loraadapters, tenants" in capsys.readouterr().err
    assert main(["get", "lad", "nobody"]) == 1
    assert "there is no lad 'nobody'" in capsys.readouterr().err


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"lorafleet {__version__}"


@pytest.mark.parametrize("command", [[], ["up"], ["get"], ["plan"], ["demo"], ["top"]])
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])

    assert ended.value.code == 0
    assert "usage: lorafleet" in capsys.readouterr().out
