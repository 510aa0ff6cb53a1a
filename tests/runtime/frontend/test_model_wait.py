"""A real replica that is told where its model is: it answers before, says what it wants, and serves after."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_runtime.frontend.artifact_files import ArtifactFile, revision_of
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer
from tests.contract.replica_kit import two_ports

pytestmark = pytest.mark.slow

TOKEN = "admin-token"


@dataclass
class Replica:
    process: subprocess.Popen[bytes]
    serving: httpx.Client
    admin: httpx.Client

    def state(self) -> dict[str, Any]:
        return dict(self.admin.get("/admin/state").raise_for_status().json())

    def until(self, check: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(httpx.TransportError):
                if check():
                    return
            assert time.monotonic() < deadline, self.state()
            assert self.process.poll() is None
            time.sleep(0.05)

    def answers(self) -> bool:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 2}
        return self.serving.post("/v1/completions", json=body).status_code == 200


@contextlib.contextmanager
def running(cache: Path) -> Iterator[Replica]:
    serving, admin = two_ports()
    command = [
        sys.executable, "-m", "lorafleet_runtime", "serve", "--model-from-operator", "--served-name", "tiny",
        "--port", str(serving), "--admin-port", str(admin), "--dtype", "float32", "--memory", "8Mi",
        "--threads", "1", "--exit-with-parent",
    ]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "LORAFLEET_ADMIN_TOKEN": TOKEN}
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{serving}", trust_env=False, timeout=30) as client,
        httpx.Client(
            base_url=f"http://127.0.0.1:{admin}", trust_env=False, headers={"Authorization": f"Bearer {TOKEN}"}
        ) as operator,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process,
    ):
        try:
            yield Replica(process, client, operator)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_tokenizer(save_tiny_model(tmp_path_factory.mktemp("tiny"), tiny_config()))


def order(folder: Path) -> dict[str, Any]:
    files = []
    for path in sorted(folder.iterdir()):
        body = path.read_bytes()
        files.append(ArtifactFile(path.name, path.as_uri(), hashlib.sha256(body).hexdigest(), len(body)))
    described = [{"name": f.name, "url": f.url, "sha256": f.sha256, "size": f.size} for f in files]
    return {"revision": revision_of(files), "files": described}


def test_a_replica_waits_for_its_model_fetches_it_and_serves_and_knows_it_after_a_restart(
    model: Path, tmp_path: Path
) -> None:
    with running(tmp_path / "cache") as replica:
        replica.until(lambda: replica.state()["wants"] == "model")
        before = replica.state()
        assert before["phase"] == "Loading"
        assert replica.serving.get("/health").status_code == 200
        assert replica.serving.get("/ready").status_code == 503
        assert not replica.answers()
        assert replica.admin.put("/admin/adapters/acme.pirate", json={}).status_code == 503

        missing = order(model)
        missing["files"][0]["url"] = (tmp_path / "nowhere").as_uri()
        epoch = {"Lorafleet-Epoch": "7"}
        assert replica.admin.put("/admin/model", json=missing, headers=epoch).status_code == 202
        replica.until(lambda: "nowhere" in replica.state()["message"])
        assert replica.state()["wants"] == "model"
        assert replica.admin.put("/admin/model", json=order(model), headers=epoch).status_code == 202
        replica.until(replica.answers)
        after = replica.state()
        assert (after["wants"], after["phase"], after["epoch"]) == ("", "Ready", 7)
        assert after["incarnation"] == before["incarnation"]
    with running(tmp_path / "cache") as again:
        again.until(again.answers)


def test_an_order_that_can_be_no_model_or_is_no_operators_is_refused(model: Path, tmp_path: Path) -> None:
    with running(tmp_path / "cache") as replica:
        replica.until(lambda: replica.state()["wants"] == "model")
        good = order(model)
        assert replica.admin.put("/admin/model", json={**good, "revision": "sha256:" + "0" * 64}).status_code == 409
        only = [file for file in good["files"] if not file["name"].endswith(".safetensors")]
        refused = replica.admin.put("/admin/model", json={**good, "files": only})
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_model")
        stranger = {"Authorization": "Bearer x"}
        assert replica.admin.put("/admin/model", json=good, headers=stranger).status_code == 401
        assert replica.state()["wants"] == "model"


def test_a_replica_that_waits_ends_in_order_when_it_is_asked_to(tmp_path: Path) -> None:
    with running(tmp_path / "cache") as replica:
        replica.until(lambda: replica.state()["wants"] == "model")
        replica.process.send_signal(signal.SIGTERM)
        assert replica.process.wait(10) == 0
