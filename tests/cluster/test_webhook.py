"""`kubectl apply` is told at once what conditions would tell later: a real API server asks the real operator."""

from __future__ import annotations

import base64
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.cluster import lab
from tests.cluster.fleet import ArtifactServer, Fleet, OperatorProcess
from tests.cluster.lab import SYSTEM, Cluster, eventually

pytestmark = pytest.mark.slow


class Asked:
    """An operator with a webhook, and the chart's configuration that names it by its address on loopback."""

    def __init__(self, cluster: Cluster, artifacts: ArtifactServer, folder: Path, name: str) -> None:
        folder.mkdir()
        self._cluster = cluster
        self.port = lab.free_ports(1)
        made, key = lab.certificate(folder)
        self._authority = made.read_bytes()
        made.rename(folder / "tls.crt")
        key.rename(folder / "tls.key")
        options = ("--webhook-port", str(self.port), "--webhook-cert-dir", str(folder))
        self.operator = OperatorProcess(cluster, artifacts, folder / "log", name, *options)
        self.context = lab.ca_context(folder / "tls.crt")

    def configure(self) -> None:
        rendered = self._cluster.chart("--set=webhook.enabled=true", "--show-only=templates/operator/webhook.yaml")
        configuration = next(o for o in rendered if o["kind"] == "ValidatingWebhookConfiguration")
        (hook,) = configuration["webhooks"]
        hook["timeoutSeconds"] = 10  # a busy machine
        bundle = base64.b64encode(self._authority).decode()
        hook["clientConfig"] = {"url": f"https://localhost:{self.port}/validate", "caBundle": bundle}
        self._cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(configuration))

    def serves(self) -> bool:
        try:
            url = f"https://localhost:{self.port}/ready"
            return httpx.get(url, verify=self.context, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False


@pytest.fixture
def asked(cluster: Cluster, artifacts: ArtifactServer, tmp_path: Path) -> Iterator[Asked]:
    asked = Asked(cluster, artifacts, tmp_path / "webhook", "operator-0")
    asked.operator.start()
    eventually("the webhook serves", asked.serves, 60)
    asked.configure()
    yield asked
    cluster.kubectl("delete", "validatingwebhookconfiguration", "--all")
    asked.operator.stop()


@pytest.fixture
def operator(asked: Asked) -> OperatorProcess:
    return asked.operator


def told(fleet: Fleet, *manifests: dict[str, Any], options: tuple[str, ...] = ()) -> str:
    """What `kubectl apply` prints, warnings and errors included."""
    text = yaml.safe_dump_all(manifests)
    arguments = ("apply", "--server-side", "--force-conflicts", "-f", "-", *options)
    return fleet.cluster.kubectl(*arguments, stdin=text, check=False)


def is_asked(fleet: Fleet) -> bool:
    """API servers learn of the webhook a little after it was configured."""
    probe = fleet.adapter("probe", "https://localhost/x", merge="Always")
    return "denied the request" in told(fleet, probe, options=("--dry-run=server",))


def test_what_contradicts_another_object_is_refused_in_the_words_of_conditions(fleet: Fleet) -> None:
    eventually("the API server asks", lambda: is_asked(fleet), 30)
    url = "https://localhost/x"
    fleet.apply(fleet.base(replicas=0), fleet.adapter("one", url), *fleet.tenant())
    refused = told(fleet, fleet.adapter("two", url, servedName="one"))
    stranger = fleet.adapter("three", url, baseModelRef={"namespace": fleet.name, "name": "tiny"})
    stranger["metadata"]["namespace"] = "default"
    outside = told(fleet, stranger)
    rival = fleet.tenant()[1]
    rival["metadata"]["name"] = "rival"
    same_key = told(fleet, {**rival, "spec": {**rival["spec"], "namespaces": []}})
    taken = told(fleet, {**rival, "spec": {**rival["spec"], "apiKeys": []}})

    assert 'admission webhook "validate.lorafleet.dev" denied the request' in refused
    where = f"LoRAAdapter {fleet.name}/two: .spec.servedName"
    assert f"{where}: 'one' is already served by LoRAAdapter {fleet.name}/one" in refused, refused
    assert "takes no adapters from namespace default" in outside, outside
    assert f"namespace {fleet.name} already belongs to Tenant {fleet.name}" in taken, taken
    assert f"is also Tenant {fleet.name}'s (.spec.apiKeys[0]): a key names one tenant" in same_key, same_key
    assert fleet.cluster.get("LoRAAdapter", fleet.name, "two") is None
    assert fleet.cluster.get("LoRAAdapter", "default", "three") is None
    assert fleet.cluster.get("Tenant", "", "rival") is None


def test_the_order_of_documents_does_not_matter(fleet: Fleet) -> None:
    eventually("the API server asks", lambda: is_asked(fleet), 30)
    early = told(fleet, fleet.adapter("one", "https://localhost/x"))
    late = told(fleet, fleet.base(replicas=0), *fleet.tenant(), fleet.adapter("two", "https://localhost/x"))

    where = f"Warning: LoRAAdapter {fleet.name}/one: .spec.baseModelRef"
    assert f"{where}: there is no BaseModel {fleet.name}/tiny" in early, early
    assert "serverside-applied" in early
    assert late.count("serverside-applied") == 4
    assert "Warning" not in late, late


def test_without_an_operator_objects_are_stored_and_those_that_conflict_may_be_edited_and_deleted(
    fleet: Fleet, asked: Asked
) -> None:
    eventually("the API server asks", lambda: is_asked(fleet), 30)
    url = "https://localhost/x"
    fleet.apply(fleet.base(replicas=0), fleet.adapter("one", url))
    asked.operator.stop(signal.SIGKILL)
    unseen = told(fleet, fleet.adapter("two", url, servedName="one"))
    assert "serverside-applied" in unseen, unseen
    asked.operator.start()
    eventually("the webhook serves again", asked.serves, 60)
    eventually("the API server asks again", lambda: is_asked(fleet), 30)
    fleet.cluster.kubectl("label", "loraadapter", "two", "-n", fleet.name, "team=a")
    edited = told(fleet, fleet.adapter("two", url, servedName="one", priority=3))
    worse = told(fleet, fleet.adapter("two", url, servedName="one", merge="Always"))

    assert "serverside-applied" in edited, edited
    assert "denied the request" in worse
    assert ".spec.merge" in worse
    assert "servedName" not in worse
    fleet.cluster.kubectl("delete", "loraadapter", "two", "-n", fleet.name, "--timeout=10s")


def test_an_operator_that_waits_for_the_lease_answers_too(
    fleet: Fleet, cluster: Cluster, asked: Asked, artifacts: ArtifactServer, tmp_path: Path
) -> None:
    def holder() -> str:
        lease = cluster.get("Lease", SYSTEM, "lorafleet-operator")
        return str(lease["spec"]["holderIdentity"]) if lease else ""

    eventually("the first one acts", lambda: holder().startswith("operator-0"), 30)
    standby = Asked(cluster, artifacts, tmp_path / "standby", "operator-1")
    standby.operator.start()
    try:
        eventually("the second one serves", standby.serves, 60)
        standby.configure()
        eventually("the second one is asked", lambda: is_asked(fleet) and refusals(standby), 30)
        assert holder().startswith("operator-0")
    finally:
        standby.operator.stop()


def refusals(asked: Asked) -> list[str]:
    """The counters of what this operator refused; none before its first refusal."""
    text = httpx.get(f"http://127.0.0.1:{asked.operator.metrics_port}/metrics", trust_env=False).text
    return [line for line in text.splitlines() if "reviews_total" in line and "refused" in line]
