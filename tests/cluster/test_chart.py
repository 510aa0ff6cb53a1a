"""The chart: what it renders is safe by default, and what it does not know it refuses."""

from __future__ import annotations

import json
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


WEBHOOK = ("--set", "webhook.enabled=true")
CERT_MANAGER = ("--set", "webhook.certManager.enabled=true", "-a", "cert-manager.io/v1")


def named(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The webhook's object of a kind."""
    (found,) = [o for o in objects if o["kind"] == kind and "gateway" not in o["metadata"]["name"]
                and not o["metadata"]["name"].endswith(("metrics", "tokens"))]  # fmt: skip
    return found


def test_pools_are_made_with_the_picker_that_is_named_and_only_when_asked_for(helm: Path) -> None:
    def arguments(*options: str) -> list[str]:
        rendered = render(helm, *options)
        (operator,) = [o for o in rendered if o["kind"] == "Deployment" and o["metadata"]["name"].endswith("operator")]
        found = [str(a) for a in operator["spec"]["template"]["spec"]["containers"][0]["args"]]
        return [a for a in found if "pool" in a or "picker" in a]

    picker = ("--set-json", 'inferencePool.endpointPicker.name="{name}-epp"')
    enabled = ("--set", "inferencePool.enabled=true")
    assert arguments(*picker) == []
    assert arguments(*enabled) == ["--inference-pools"]
    assert arguments(*enabled, *picker) == [
        "--inference-pools", "--endpoint-picker={name}-epp", "--endpoint-picker-port=9002",
        "--endpoint-picker-failure-mode=FailClose",
    ]  # fmt: skip
    assert arguments(*enabled, "--set-string", "inferencePool.gatewayNamespaceLabels.team=edge") == [
        "--inference-pools", "--pool-gateway-namespace-label=team=edge",
    ]  # fmt: skip


def test_the_webhook_is_off_unless_asked_for(helm: Path) -> None:
    assert not [o for o in render(helm) if "webhook" in str(o).lower()]


def test_the_webhook_asks_every_operator_and_lets_everything_through_while_none_answers(helm: Path) -> None:
    objects = render(helm, *WEBHOOK, "--set", "operator.replicas=2", "--set", "networkPolicy.enabled=true")
    (hook,) = named(objects, "ValidatingWebhookConfiguration")["webhooks"]
    service, secret, operator = (named(objects, kind) for kind in ("Service", "Secret", "Deployment"))
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    policy = named(objects, "NetworkPolicy")

    assert (hook["failurePolicy"], hook["timeoutSeconds"]) == ("Ignore", 2)
    assert (hook["sideEffects"], hook["matchPolicy"]) == ("None", "Equivalent")
    (left_out,) = hook["namespaceSelector"]["matchExpressions"]
    assert left_out["values"] == ["kube-system", "lorafleet-system"]
    assert hook["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]
    assert hook["clientConfig"]["service"]["name"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= operator["spec"]["template"]["metadata"]["labels"].items()
    assert {"name": "webhook", "containerPort": 9443} in container["ports"]
    assert "--webhook-port=9443" in container["args"]
    assert {"ports": [{"port": "webhook"}]} in policy["spec"]["ingress"]


def test_cert_manager_makes_the_certificate_if_asked_with_an_issuer_of_yours_or_its_own(helm: Path) -> None:
    objects = render(helm, *WEBHOOK, *CERT_MANAGER)
    certificate, issuer = named(objects, "Certificate"), named(objects, "Issuer")
    configuration = named(objects, "ValidatingWebhookConfiguration")
    theirs = render(helm, *WEBHOOK, *CERT_MANAGER, "--set", "webhook.certManager.issuerRef.name=ca",
                    "--set", "webhook.certManager.issuerRef.kind=ClusterIssuer")  # fmt: skip

    assert certificate["spec"]["issuerRef"]["name"] == issuer["metadata"]["name"]
    assert "lorafleet-webhook.lorafleet-system.svc" in certificate["spec"]["dnsNames"]
    name, made = certificate["metadata"]["name"], certificate["spec"]["secretName"]
    assert configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"] == f"lorafleet-system/{name}"
    assert "caBundle" not in configuration["webhooks"][0]["clientConfig"]
    assert not [o for o in objects if o["kind"] == "Secret" and o["metadata"]["name"] == made]
    assert not [o for o in theirs if o["kind"] == "Issuer"]
    assert named(theirs, "Certificate")["spec"]["issuerRef"] == {
        "group": "cert-manager.io", "kind": "ClusterIssuer", "name": "ca",
    }  # fmt: skip


def test_only_the_webhook_of_watched_namespaces_is_asked(helm: Path) -> None:
    objects = render(helm, *WEBHOOK, "--set", "watchNamespaces={acme,globex}")
    (hook,) = named(objects, "ValidatingWebhookConfiguration")["webhooks"]

    assert hook["namespaceSelector"]["matchExpressions"][1] == {
        "key": "kubernetes.io/metadata.name", "operator": "In", "values": ["acme", "globex"],
    }  # fmt: skip


def test_nothing_has_to_be_waited_for_when_the_release_goes(helm: Path) -> None:
    """No object has a finalizer, so there is nothing that a pre-delete hook could do but hang."""
    objects = render(helm, *WEBHOOK, "--set", "networkPolicy.enabled=true", "--set", "gateway.autoscaling.enabled=true")
    hooks = {o["metadata"].get("annotations", {}).get("helm.sh/hook") for o in objects}

    assert hooks == {None, "test"}
    assert not [o for o in objects if o["metadata"].get("finalizers")]


def test_dashboards_come_as_they_are_where_grafana_looks_for_them_and_only_when_asked_for(helm: Path) -> None:
    def labelled(*options: str) -> list[dict[str, Any]]:
        return [o for o in render(helm, *options) if "grafana_dashboard" in o["metadata"].get("labels", {})]

    (found,) = labelled("--set", "metrics.dashboards.enabled=true")
    files = {f"lorafleet-{path.name}": path.read_text() for path in (CHART / "files" / "dashboards").glob("*.json")}

    assert labelled() == []
    assert (found["kind"], found["metadata"]["labels"]["grafana_dashboard"]) == ("ConfigMap", "1")
    assert {name: json.loads(text) for name, text in found["data"].items()} == {
        name: json.loads(text) for name, text in files.items()
    }


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("operatr.replicas=2", "operatr"),
        ("gateway.image.tag=latest", "tag"),
        ("gateway.service.type=Ingress", "type"),
        ("metrics.podMonitor.enabled=true", "monitoring.coreos.com/v1"),
        ("webhook.failurePolicy=Maybe", "failurePolicy"),
        ("metrics.dashboards.enabled=yes", "enabled"),
        ("metrics.dashboard.enabled=true", "dashboard"),
        ("webhook.enabled=true,webhook.certManager.enabled=true", "cert-manager.io/v1"),
    ],
)
def test_what_the_chart_does_not_know_is_refused_by_its_name(helm: Path, option: str, says: str) -> None:
    done = subprocess.run(
        [str(helm), "template", "x", str(CHART), "--set", option], capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert says in done.stderr
