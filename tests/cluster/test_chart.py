"""The chart: what it renders is safe by default, and what it does not know it refuses."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import lab

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "lorafleet"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def helm() -> Path:
    if why := lab.lacking():
        pytest.skip(why)
    return lab.build("clients") / "helm"


def render(helm: Path, *options: str) -> list[dict[str, Any]]:
    command = [str(helm), "template", "lorafleet", str(CHART), "-n", "lorafleet-system", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    templates = [o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"]
    return [*templates, *(o["spec"] for o in objects if o["kind"] == "Pod")]


def test_the_charts_crds_are_those_of_the_project() -> None:
    ours = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")} == ours


def test_crds_are_kept_unless_asked_otherwise(helm: Path) -> None:
    for options, kept in (((), 3), (("--set", "crds.keep=false"), 0)):
        crds = [o for o in render(helm, *options) if o["kind"] == "CustomResourceDefinition"]
        assert len(crds) == 3
        annotated = [o["metadata"].get("annotations", {}).get("helm.sh/resource-policy") for o in crds]
        assert annotated.count("keep") == kept


def test_every_pod_meets_the_restricted_standard_and_no_image_is_latest(helm: Path) -> None:
    for pod in pods(render(helm)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            assert "requests" in container["resources"]
            assert ":" in container["image"]
            assert not container["image"].endswith(":latest")


def test_a_digest_wins_over_a_tag_and_one_registry_serves_all_images(helm: Path) -> None:
    digest = "sha256:" + "a" * 64
    rendered = render(
        helm, "--set", "global.imageRegistry=mirror.example.com", "--set", f"gateway.image.digest={digest}"
    )
    images = {c["image"] for pod in pods(rendered) for c in pod["containers"]}
    assert images == {"mirror.example.com/lorafleet/operator:0.1.0", f"mirror.example.com/lorafleet/gateway@{digest}"}


def test_a_disruption_budget_never_blocks_the_only_replica(helm: Path) -> None:
    def budgets(*options: str) -> int:
        return sum(o["kind"] == "PodDisruptionBudget" for o in render(helm, *options))

    assert budgets("--set", "gateway.replicas=1") == 0
    assert budgets("--set", "gateway.replicas=2", "--set", "operator.replicas=2") == 2


def test_nobody_may_run_commands_in_pods_or_change_definitions_and_secrets_are_read_where_named(helm: Path) -> None:
    roles = [o for o in render(helm, "--set", "rbac.tenantSecretNamespaces={acme}") if o["kind"].endswith("Role")]
    rules = [(role["metadata"]["name"], role["kind"], rule) for role in roles for rule in role["rules"]]
    assert not [
        r for _, _, r in rules if "pods/exec" in r["resources"] or "customresourcedefinitions" in r["resources"]
    ]
    assert not [r for _, _, r in rules if "*" in r["verbs"] or "*" in r["resources"]]
    reads = [name for name, kind, r in rules if "secrets" in r["resources"] and "get" in r["verbs"] and kind != "Role"]
    assert reads == []


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("operatr.replicas=2", "operatr"),
        ("gateway.image.tag=latest", "tag"),
        ("gateway.service.type=Ingress", "type"),
        ("metrics.podMonitor.enabled=true", "monitoring.coreos.com/v1"),
    ],
)
def test_what_the_chart_does_not_know_is_refused_by_its_name(helm: Path, option: str, says: str) -> None:
    done = subprocess.run(
        [str(helm), "template", "x", str(CHART), "--set", option], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert says in done.stderr
