"""More acceptance cases, by their numbers, on one fleet of two replicas: failures that users of others report."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_operator.cli import kubectl
from tests.cluster import lab
from tests.cluster.fleet import ArtifactServer, Fleet, GatewayProcess, OperatorProcess
from tests.cluster.kubelet import TestKubelet
from tests.cluster.lab import eventually

pytestmark = pytest.mark.slow

KEY = "sk-test-key"
TOKENS = ("serving-token-of-the-tests", "admin-token-of-the-tests", KEY)


@pytest.fixture(scope="module")
def fleet(
    cluster: lab.Cluster, artifacts: ArtifactServer, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Fleet]:
    """Two replicas, two adapters with one copy each, one tenant."""
    folder = tmp_path_factory.mktemp("fleet")
    kubelet = TestKubelet(cluster, folder, {"SSL_CERT_FILE": str(artifacts.certificate)})
    operator = OperatorProcess(cluster, artifacts, folder / "operator.log")
    fleet = Fleet(cluster, kubelet, operator, artifacts, model)
    kubelet.start()
    operator.start()
    fleet.open()
    try:
        fleet.apply(fleet.base(replicas=2), fleet.adapter("one"), fleet.adapter("two"), *fleet.tenant(KEY))
        fleet.until_ready("one", "two")
        eventually("both replicas are Ready", lambda: len(fleet.document()["replicas"]) == 2, 60)
        yield fleet
    finally:
        fleet.close()
        operator.stop()
        kubelet.stop()


@pytest.fixture(scope="module")
def gateway(cluster: lab.Cluster, fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    gateway = GatewayProcess(cluster, tmp_path_factory.mktemp("gateway") / "gateway")
    gateway.start()
    eventually("the gateway serves", lambda: gateway.ready() and gateway.complete("one", KEY).status_code == 200, 60)
    yield gateway
    gateway.close()


def models(gateway: GatewayProcess) -> list[str]:
    headers = {"Authorization": f"Bearer {KEY}"}
    found = httpx.get(f"{gateway.url}/v1/models", headers=headers, trust_env=False).json()["data"]
    return sorted(model["id"] for model in found)


def stream(gateway: GatewayProcess, model: str, seen: threading.Event, lines: list[str]) -> None:
    """A long answer; `seen` is set at its first chunk."""
    body = {"model": model, "prompt": "Hello", "max_tokens": 100, "temperature": 0, "ignore_eos": True, "stream": True}
    headers = {"Authorization": f"Bearer {KEY}"}
    where = f"{gateway.url}/v1/completions"
    with httpx.stream("POST", where, json=body, headers=headers, timeout=60, trust_env=False) as response:
        for line in response.iter_lines():
            if line:
                lines.append(line)
                seen.set()


def served(fleet: Fleet) -> dict[str, float]:
    """Requests finished per pod, of all models: from the runtimes' own metrics."""
    counts = {}
    for pod in fleet.pods():
        url = f"http://{fleet.kubelet.address(pod)}:8000/metrics"
        headers = {"Authorization": f"Bearer {TOKENS[0]}"}
        text = httpx.get(url, headers=headers, trust_env=False).text
        found = re.findall(r"^vllm:request_success_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
        counts[pod] = sum(float(value) for value in found)
    return counts


def test_requests_go_only_to_the_replica_that_holds_their_adapter(fleet: Fleet, gateway: GatewayProcess) -> None:
    """[AC-19]"""
    (holder,) = fleet.placements("one")
    before = served(fleet)
    assert [gateway.complete("one", KEY).status_code for _ in range(8)] == [200] * 8
    after = served(fleet)

    assert {pod for pod in after if after[pod] != before[pod]} == {holder}


def test_unloading_one_adapter_and_retraining_another_disturb_no_stream(fleet: Fleet, gateway: GatewayProcess) -> None:
    """[AC-10, AC-14]"""
    url = fleet.artifacts.adapter("moving", seed=5)
    fleet.apply(fleet.adapter("moving", url), fleet.adapter("leaving"))
    fleet.until_ready("moving", "leaving")
    eventually("it answers", lambda: gateway.complete("moving", KEY).status_code == 200, 30)
    seen = threading.Event()
    streams: dict[str, list[str]] = {"moving": [], "one": [], "tiny": []}
    asking = [threading.Thread(target=stream, args=(gateway, m, seen, lines)) for m, lines in streams.items()]
    for thread in asking:
        thread.start()
    seen.wait(30)
    fleet.cluster.kubectl("delete", "loraadapter", "leaving", "-n", fleet.name)
    fleet.artifacts.adapter("moving", seed=6)
    for thread in asking:
        thread.join()

    for name, lines in streams.items():
        assert lines[-1] == "data: [DONE]", (name, lines[-2:])
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "length", name
    eventually("it is no longer listed", lambda: "leaving" not in models(gateway), 10)


def test_an_adapter_is_listed_once_it_is_ready_and_not_before(fleet: Fleet, gateway: GatewayProcess) -> None:
    """[AC-22]"""
    fleet.apply(fleet.adapter("absent", f"{fleet.artifacts.url}/absent"))
    eventually("it is refused", lambda: fleet.cluster.condition(
        "LoRAAdapter", fleet.name, "absent", "ArtifactVerified")[1] == "NotFound", 30)  # fmt: skip
    assert "absent" not in models(gateway)

    fleet.artifacts.adapter("absent")
    fleet.until_ready("absent")
    eventually("it is listed", lambda: "absent" in models(gateway), 10)


@pytest.mark.parametrize(("name", "spec", "reason", "words"), [
    ("wide", {"rank": 32}, "RankTooHigh", ("32", "16")),
    ("forged", {"sha256": "0" * 64}, "DigestMismatch", ("spec.source.sha256",)),
    ("merged", {"merge": "Always"}, "NotSupported", (".spec.merge",)),
])  # fmt: skip
def test_what_cannot_be_served_says_why_and_what_to_do(
    fleet: Fleet, gateway: GatewayProcess, name: str, spec: dict[str, Any], reason: str, words: tuple[str, ...]
) -> None:
    """[AC-15, AC-17]"""
    url = fleet.artifacts.adapter(name, rank=spec.pop("rank", 4))
    source = {"uri": url, **({"sha256": spec.pop("sha256")} if "sha256" in spec else {})}
    fleet.apply(fleet.adapter(name, url, source=source, **spec))

    def told() -> tuple[str, str, str]:
        return fleet.cluster.condition("LoRAAdapter", fleet.name, name, "Ready")

    eventually(f"{name} is refused", lambda: told()[1] not in ("", "Resolving", "Pending", "Loading"), 60)
    assert told()[1] == reason, told()
    assert all(word in told()[2] for word in words), told()
    assert name not in models(gateway)


def test_the_kubectl_plugin_tells_what_is_wrong_and_talks_as_a_tenants_client(
    fleet: Fleet, gateway: GatewayProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--kubeconfig", str(fleet.cluster.kubeconfig)]
    fleet.apply(fleet.adapter("lost", f"{fleet.artifacts.url}/lost"))
    eventually("it is refused", lambda: fleet.cluster.condition(
        "LoRAAdapter", fleet.name, "lost", "ArtifactVerified")[1] == "NotFound", 30)  # fmt: skip
    status = kubectl.main(["status", "-n", fleet.name, *config])
    told = capsys.readouterr().out
    said = kubectl.main([
        "chat", "one", "-t", fleet.name, "-m", "Hello", "--max-tokens", "5", "--gateway", gateway.url, *config,
    ])  # fmt: skip
    answer = capsys.readouterr()
    refused = kubectl.main(["chat", "nobody", "-t", fleet.name, "-m", "Hello", "--gateway", gateway.url, *config])

    assert status == 1
    assert f"LoRAAdapter {fleet.name}/lost: NotFound: " in told
    assert "basemodel/tiny" in told
    assert said == 0, answer.err
    assert answer.out.strip()
    assert refused == 1
    assert "HTTP 404" in capsys.readouterr().err


def test_no_secret_is_in_an_object_a_log_or_a_command_line(fleet: Fleet, gateway: GatewayProcess) -> None:
    """[AC-27]"""
    kinds = ("BaseModel", "LoRAAdapter", "Tenant", "Deployment", "Pod", "ConfigMap", "Event", "Service")
    told = {kind: str(fleet.cluster.list(kind)) for kind in kinds}
    told |= {"operator's log": fleet.operator.log(), "pods' logs": fleet.kubelet.logs(), "gateway's log": gateway.log()}
    told["command lines"] = " ".join(
        path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()
    )

    assert [(where, token) for where, text in told.items() for token in TOKENS if token in text] == []
