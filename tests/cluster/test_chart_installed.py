"""The chart on a real API server: what it renders is taken as it is, and a release comes, changes and goes at once."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.lab import CHART, SYSTEM, Cluster

pytestmark = pytest.mark.slow

HIGHLY_AVAILABLE = (
    "operator.replicas=2", "gateway.replicas=3", "gateway.autoscaling.enabled=true", "networkPolicy.enabled=true",
    "webhook.enabled=true", "rbac.tenantSecretNamespaces={default}", "gateway.service.type=LoadBalancer",
    "gateway.topologySpreadConstraints[0].maxSkew=1",
    "gateway.topologySpreadConstraints[0].topologyKey=kubernetes.io/hostname",
    "gateway.topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
    "gateway.topologySpreadConstraints[0].labelSelector.matchLabels.app\\.kubernetes\\.io/component=gateway",
    "global.imagePullSecrets={mirror}", "commonLabels.team=serving",
)  # fmt: skip
NOWHERE = ("operator.nodeSelector.nowhere=yes", "gateway.nodeSelector.nowhere=yes", "crds.install=false")
"""No pods of the release are started, and definitions that are there already are left as they are."""


@pytest.fixture
def restricted(cluster: Cluster) -> Iterator[Cluster]:
    """The release's namespace warns of and refuses what the restricted Pod Security Standard does not allow."""
    modes = [f"pod-security.kubernetes.io/{mode}" for mode in ("enforce", "warn")]
    cluster.kubectl("label", "namespace", SYSTEM, *(f"{mode}=restricted" for mode in modes))
    yield cluster
    cluster.kubectl("label", "namespace", SYSTEM, *(f"{mode}-" for mode in modes))


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    name = f"release-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def helm(cluster: Cluster, *arguments: str) -> str:
    done = subprocess.run(
        [str(cluster.bin / "helm"), *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, "KUBECONFIG": str(cluster.kubeconfig)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def taken(cluster: Cluster, objects: list[dict[str, Any]]) -> str:
    """What kubectl prints when the API server checks these objects and stores none."""
    arguments = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f", "-")
    return cluster.kubectl(*arguments, stdin=yaml.safe_dump_all(objects), check=False)


@pytest.mark.parametrize("values", [(), HIGHLY_AVAILABLE], ids=["default", "highly available"])
def test_the_api_server_takes_every_object_and_finds_every_pod_restricted(
    restricted: Cluster, values: tuple[str, ...]
) -> None:
    objects = restricted.chart(*(f"--set={value}" for value in values))
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "spec": o["spec"]["template"]["spec"],
         "metadata": {"name": o["metadata"]["name"], "namespace": SYSTEM}}
        for o in objects if o["kind"] == "Deployment"
    ]  # fmt: skip
    said = taken(restricted, [*objects, *pods])
    privileged = pods[0] | {"spec": pods[0]["spec"] | {"hostNetwork": True}}

    assert said.count("(server dry run)") == len(objects) + len(pods), said
    assert not [line for line in said.splitlines() if "(server dry run)" not in line], said
    assert "violates PodSecurity" in taken(restricted, [privileged])


def test_a_certificate_and_tokens_are_kept_over_upgrades_and_a_release_goes_within_seconds(
    cluster: Cluster, namespace: str
) -> None:
    options = (*(f"--set={value}" for value in NOWHERE), "--set=webhook.enabled=true", "-n", namespace)
    helm(cluster, "install", "mine", str(CHART), *options)
    kept = {name: secret(cluster, namespace, f"mine-lorafleet-{name}") for name in ("webhook", "tokens")}
    helm(cluster, "upgrade", "mine", str(CHART), *options, "--set=webhook.timeoutSeconds=5")
    (hook,) = webhooks(cluster, f"mine-lorafleet-{namespace}")

    assert {name: secret(cluster, namespace, f"mine-lorafleet-{name}") for name in kept} == kept
    assert hook["timeoutSeconds"] == 5
    assert hook["clientConfig"]["caBundle"] == kept["webhook"]["ca.crt"]
    begun = time.monotonic()
    helm(cluster, "uninstall", "mine", "-n", namespace, "--timeout=30s")
    cluster.kubectl("delete", "namespace", namespace, "--timeout=60s")
    assert time.monotonic() - begun < 60
    assert webhooks(cluster, f"mine-lorafleet-{namespace}") == []


def secret(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    found = cluster.get("Secret", namespace, name)
    assert found is not None
    return dict(found["data"])


def webhooks(cluster: Cluster, name: str) -> list[dict[str, Any]]:
    where = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    items = cluster.api.get(where).raise_for_status().json()["items"]
    return [hook for item in items if item["metadata"]["name"] == name for hook in item["webhooks"]]
