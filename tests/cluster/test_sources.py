"""Adapters from every kind of source, end to end: the operator finds and links them, a real runtime fetches them.

The servers are real where there is one: SeaweedFS, a registry with a token server; the hub is its protocol.
"""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from tests.cluster.fleet import CONFIG, ArtifactServer, Fleet, OperatorProcess
from tests.cluster.kubelet import TestKubelet
from tests.cluster.lab import Cluster, eventually
from tests.operator.artifact_sources import fake_hub, registry, s3_server
from tests.operator.artifact_sources.fake_hub import SIGNATURE, TOKEN, Hub
from tests.operator.artifact_sources.registry import PASSWORD, USER, Registries
from tests.operator.artifact_sources.s3_server import OWNER, READER, S3Server

pytestmark = pytest.mark.slow

WEIGHTS = {"name": "weights", "claimName": "weights"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if why := s3_server.lacking():
        pytest.skip(why)
    with s3_server.running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="module")
def registries(tmp_path_factory: pytest.TempPathFactory, artifacts: ArtifactServer) -> Iterator[Registries]:
    """With the certificate that operator and runtimes of this tier trust."""
    if why := registry.lacking():
        pytest.skip(why)
    pair = artifacts.certificate, artifacts.certificate.with_suffix(".key")
    with registry.running(tmp_path_factory.mktemp("registry"), pair) as registries:
        yield registries


@pytest.fixture
def hub() -> Iterator[Hub]:
    with fake_hub.running() as hub:
        yield hub


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """What the test kubelet's pods have at /artifacts."""
    return tmp_path / "artifacts"


@pytest.fixture
def kubelet(cluster: Cluster, artifacts: ArtifactServer, tmp_path: Path, volumes: Path) -> Iterator[TestKubelet]:
    environment = {"SSL_CERT_FILE": str(artifacts.certificate), "LORAFLEET_ARTIFACTS": str(volumes)}
    kubelet = TestKubelet(cluster, tmp_path, environment)
    kubelet.start()
    yield kubelet
    kubelet.stop()


def content(folder: Path, seed: int) -> dict[str, bytes]:
    """The files of an adapter that loads."""
    save_adapter(folder, random_adapter(CONFIG, 4, ("q_proj", "v_proj"), seed))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def secret(fleet: Fleet, name: str, values: dict[str, str], kind: str = "Opaque") -> dict[str, Any]:
    metadata = {"name": name, "namespace": fleet.name}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "stringData": values}


def adapter(fleet: Fleet, name: str, uri: str, secret_name: str = "") -> dict[str, Any]:
    source = {"uri": uri, **({"secretRef": {"name": secret_name}} if secret_name else {})}
    return fleet.adapter(name, uri, source=source)


def verified(fleet: Fleet, name: str) -> tuple[str, str, str]:
    return fleet.cluster.condition("LoRAAdapter", fleet.name, name, "ArtifactVerified")


def test_adapters_of_a_bucket_a_registry_and_the_hub_are_served_and_no_credential_shows(
    fleet: Fleet, s3: S3Server, registries: Registries, hub: Hub, operator: OperatorProcess, tmp_path: Path
) -> None:
    for name, body in content(tmp_path / "one", 1).items():
        s3.put(f"team/one/{name}", body)
    registries.push("team/two", "v1", content(tmp_path / "two", 2))
    hub.put("acme/three", content(tmp_path / "three", 3))
    hub.private.add("acme/three")
    login = json.dumps({"auths": {registries.tokened: {"username": USER, "password": PASSWORD}}})
    fleet.apply(
        fleet.base(),
        secret(fleet, "bucket", s3.secret()),
        secret(fleet, "registry", {".dockerconfigjson": login}, "kubernetes.io/dockerconfigjson"),
        secret(fleet, "hub", {"token": TOKEN, "HF_ENDPOINT": hub.url}),
        adapter(fleet, "one", "s3://adapters/team/one", "bucket"),
        adapter(fleet, "two", f"oci://{registries.tokened}/team/two:v1", "registry"),
        adapter(fleet, "three", "hf://acme/three", "hub"),
    )
    fleet.until_ready("one", "two", "three")
    kinds = ("loraadapters", "basemodels", "events", "configmaps", "pods", "deployments")
    shown = fleet.cluster.kubectl("get", ",".join(kinds), "-A", "-o", "yaml") + operator.log() + fleet.kubelet.logs()
    for credential in (READER[1], PASSWORD, TOKEN, SIGNATURE, "X-Amz-Signature", *registries.tokens.given):
        assert credential not in shown
    assert "s3://adapters/team/one" in shown


def test_a_secret_that_is_missing_wrong_or_rotated_is_told_and_put_right_without_a_restart(
    fleet: Fleet, s3: S3Server, tmp_path: Path
) -> None:
    for name, body in content(tmp_path / "first", 1).items():
        s3.put(f"rotated/{name}", body)
    fleet.apply(fleet.base(), adapter(fleet, "one", "s3://adapters/rotated", "bucket"))
    eventually("the Secret is missed", lambda: verified(fleet, "one")[1] == "SecretNotFound", 60)
    fleet.apply(secret(fleet, "bucket", s3.secret((READER[0], "a-typo-in-the-secret-key"))))
    eventually("the keys are refused", lambda: verified(fleet, "one")[1] == "AccessDenied", 60)
    fleet.apply(secret(fleet, "bucket", s3.secret()))
    fleet.until_ready("one")
    (pod,) = fleet.pods()
    before = fleet.status("one")["revision"]

    for name, body in content(tmp_path / "second", 2).items():
        s3.put(f"rotated/{name}", body)
    fleet.apply(secret(fleet, "bucket", s3.secret(OWNER)))
    eventually("the new keys read the new revision", lambda: fleet.status("one")["revision"] != before, 60)
    fleet.until_ready("one")
    fleet.cluster.kubectl("delete", "secret", "bucket", "-n", fleet.name)
    eventually("its end is told", lambda: verified(fleet, "one")[1] == "SecretNotFound", 60)
    assert fleet.ready("one")  # what is loaded serves on
    assert fleet.pods() == [pod]


def test_pods_are_told_where_their_base_model_is_and_need_nobody_to_start_again(
    fleet: Fleet, s3: S3Server, operator: OperatorProcess
) -> None:
    for path in fleet.model.iterdir():
        s3.put(f"base/{path.name}", path.read_bytes())
    source = {"uri": "s3://adapters/base", "secretRef": {"name": "bucket"}}
    fleet.apply(fleet.base(source=source), fleet.adapter("one"), *fleet.tenant())

    def told() -> str:
        return fleet.cluster.condition("BaseModel", fleet.name, "tiny", "Ready")[1]

    eventually("its Secret is missed", lambda: told() == "SecretNotFound", 60)
    fleet.apply(secret(fleet, "bucket", s3.secret()))
    fleet.until_ready("one")
    (pod,) = fleet.pods()
    before = fleet.status("one")["placements"][0]["uid"]
    operator.stop(signal.SIGKILL)
    fleet.kubelet.kill(pod)
    eventually("the container serves again, told by nobody", lambda: serves(fleet, pod), 60)
    operator.start()

    def loaded_again() -> bool:
        placements = fleet.status("one").get("placements") or [{}]
        return bool(placements[0].get("state") == "Ready" and placements[0]["uid"] != before)

    eventually("the adapter is back", loaded_again, 60)
    shown = operator.log() + fleet.kubelet.logs() + fleet.cluster.kubectl("get", "pods,basemodels", "-A", "-o", "yaml")
    for credential in (READER[1], "X-Amz-Signature"):
        assert credential not in shown


def serves(fleet: Fleet, pod: str) -> bool:
    """Does the pod's runtime say that it is ready, in a process that runs now?"""
    try:
        url = f"http://{fleet.kubelet.address(pod)}:8000/ready"
        return bool(httpx.get(url, trust_env=False).status_code == 200)
    except httpx.HTTPError:
        return False


@contextlib.contextmanager
def claimed(fleet: Fleet, folder: Path) -> Iterator[None]:
    """A volume of this folder, bound to the claim `weights`."""
    claim = {"accessModes": ["ReadOnlyMany"], "storageClassName": "", "resources": {"requests": {"storage": "1Gi"}}}
    volume = {
        "accessModes": ["ReadOnlyMany"], "storageClassName": "", "capacity": {"storage": "1Gi"},
        "hostPath": {"path": str(folder)}, "claimRef": {"name": "weights", "namespace": fleet.name},
    }  # fmt: skip
    name = {"name": f"{fleet.name}-weights"}
    fleet.apply(
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": name, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": claim,
         "metadata": {"name": "weights", "namespace": fleet.name}},
    )  # fmt: skip
    yield
    fleet.cluster.kubectl("delete", "persistentvolume", name["name"], "--wait=false")


def test_an_adapter_on_a_volume_of_its_base_model_is_found_by_a_replica_and_follows_its_files(
    fleet: Fleet, volumes: Path
) -> None:
    content(volumes / "weights" / "one", 1)
    with claimed(fleet, volumes / "weights"):
        fleet.apply(
            fleet.base(runtime={"drainSeconds": 1, "artifactVolumes": [WEIGHTS]}),
            adapter(fleet, "one", "pvc://weights/one"),
            adapter(fleet, "same", "file:/artifacts/weights/one"),
            adapter(fleet, "nowhere", "pvc://weights/nowhere"),
            adapter(fleet, "outside", "file:/etc"),
        )
        fleet.until_ready("one", "same")
        before = fleet.status("one")["revision"]
        assert fleet.status("same")["revision"] == before
        eventually("what is not there is told", lambda: verified(fleet, "nowhere")[1] == "NotFound", 30)
        assert "pvc://VOLUME/PATH" in verified(fleet, "outside")[2]
        content(volumes / "weights" / "one", 2)
        eventually("its new files are found", lambda: fleet.status("one")["revision"] != before, 60)
        fleet.until_ready("one")
