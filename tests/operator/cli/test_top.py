"""`top`, against real HTTP servers on this machine, and against pods as a cluster's API lists them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from lorafleet_operator.cli import live_table
from lorafleet_operator.cli.cluster_top import expositions
from lorafleet_operator.cli.kubectl import parser as kubectl_parser
from lorafleet_operator.cli.main import main, parser
from lorafleet_operator.core.objects import Observed
from lorafleet_operator.errors import KubeUnreachable
from lorafleet_operator.local import observed_json
from lorafleet_operator.local.state_folder import StateFolder, write_json
from lorafleet_sim.fleets import base_model, replica
from tests.operator.cli.fairness_text import exposition

WHOLE = {"floor": 10.0, "spread": 4.0, "bound": 90.0, "jain": 0.5}


class Server(ThreadingHTTPServer):
    """A replica's serving port; every look at it finds 100 more tokens."""

    daemon_threads = True
    looks = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.looks += 1
        text = exposition(WHOLE, acme={"service": 30, "output": 100 * self.server.looks}, bolt={"service": 10})
        self.send_response(200 if self.path == "/metrics" else 404)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class names it
        return


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StateFolder]:
    """A fleet that runs: two replicas answer, one does not."""
    monkeypatch.setattr(live_table, "FIRST_SECONDS", 0.2)
    monkeypatch.setenv("LORAFLEET_STATE_DIR", str(tmp_path))
    state, base = StateFolder(tmp_path), base_model(replicas=3)
    with ExitStack() as stack:
        stack.enter_context(state.hold())
        urls = []
        for _ in range(2):
            server = stack.enter_context(Server(("127.0.0.1", 0), Handler))
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            stack.callback(server.shutdown)
            urls.append(server.url)
        seen = {f"r{i}": replica(base, i, url=url) for i, url in enumerate([*urls, "http://127.0.0.1:1"])}
        write_json(state.status, {"version": 1, "objects": [], "observed": observed_json.to_json(Observed(seen))})
        yield state


def test_tenants_of_the_fleet_on_this_machine(fleet: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "tenants", "--once"]) == 0
    head, _, acme, bolt = capsys.readouterr().out.splitlines()

    assert head == "models/smollm2  2 of 3 replicas answer  floor 10  spread 4  bound 90  Jain 0.50"
    assert acme.split()[:4] == ["acme", "1", "60", "75%"]
    assert bolt.split()[:4] == ["bolt", "1", "20", "25%"]
    assert float(acme.split()[8]) > 100


def test_replicas_of_the_fleet_on_this_machine(fleet: StateFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]

    assert [line[2] for line in lines[1:]] == ["smollm2-0", "smollm2-1", "smollm2-2"]
    assert lines[3][3:] == ["-"] * 7


@pytest.mark.parametrize("option", [("-n", "elsewhere"), ("-b", "other")])
def test_other_base_models_are_left_out_if_asked(
    fleet: StateFolder, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "tenants", "--once", *option]) == 0
    assert capsys.readouterr().out.strip() == "no replica is there to ask"


def test_without_a_fleet_it_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--state-dir", str(tmp_path)]) == 1
    assert "start one with lorafleet up -f DIR" in capsys.readouterr().err


def test_both_commands_take_the_same_options() -> None:
    asked = ["top", "tenants", "-n", "models", "-b", "tiny", "--once", "--every", "3"]
    one, other = parser().parse_args(asked), kubectl_parser().parse_args(asked)

    assert (one.what, one.namespace, one.base_model, one.once, one.every) == ("tenants", "models", "tiny", True, 3.0)
    assert vars(one).keys() - {"state_dir"} == vars(other).keys() - {"kubeconfig"}


class Api:
    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    async def list_in(self, kind: str, namespace: str, selector: str) -> list[dict[str, Any]]:
        self.asked.append((kind, namespace, selector))
        return [
            {"metadata": {"namespace": "models", "name": name, "labels": {"lorafleet.dev/base-model": "tiny"}}}
            for name in ("tiny-b", "tiny-a")
        ]

    async def pod_text(self, namespace: str, name: str, port: int, where: str) -> str:
        if name == "tiny-b":
            raise KubeUnreachable("away")
        return f"{namespace}/{name}:{port}/{where}"


async def test_pods_are_read_through_the_api_server_and_those_away_are_there_without_numbers() -> None:
    api = Api()
    found = await expositions(api, "models", "tiny")  # type: ignore[arg-type]  # two methods of the client are used

    assert [(each.base, each.replica, each.text) for each in found] == [
        ("tiny", "tiny-a", "models/tiny-a:8000/metrics"), ("tiny", "tiny-b", ""),
    ]  # fmt: skip
    assert api.asked == [("Pod", "models", "lorafleet.dev/base-model=tiny")]
