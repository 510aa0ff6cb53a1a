"""Chart, images and the quickstart's fleet on a real node, from `helm install` to `helm uninstall`, in order."""

from __future__ import annotations

import json
import re
import time

import pytest

from tests.cluster.lab import eventually
from tests.cluster.node.client import Client
from tests.cluster.node.node import MODELS, ROOT, SYSTEM, VERSION, Node, is_ready

pytestmark = [pytest.mark.node, pytest.mark.slow]

RUNTIMES = "app.kubernetes.io/name=lorafleet-runtime"
OURS = "app.kubernetes.io/part-of=lorafleet"
STORY_TOKENS = 250


def test_the_readmes_commands_go_from_helm_install_to_a_streamed_answer(node: Node) -> None:
    section = (ROOT / "README.md").read_text().split("## In a cluster\n")[1]
    found = re.search(r"```\w*\n(.*?)```", section, re.DOTALL)
    assert found
    told = node.run("bash", "-euo", "pipefail", "-c", f"trap 'kill $(jobs -p)' EXIT\n{found[1]}", seconds=600)
    chunks = [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]
    assert told.rstrip().endswith("data: [DONE]"), told
    assert {chunk["model"] for chunk in chunks} == {"pirate"}
    assert len(chunks) > 5, "an answer comes in pieces"


def test_all_pods_meet_the_restricted_standard(node: Node) -> None:
    for namespace in (SYSTEM, MODELS):
        label = ["label", "--overwrite", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted"]
        # The API server checks the pods that run already, and warns of each that it would refuse.
        assert "Warning" not in node.kubectl(*label, "pod-security.kubernetes.io/enforce-version=latest", check=False)


def test_a_client_streams_an_adapters_answer_by_the_services_name(client: Client) -> None:
    told = client.stream("pirate", 24).finished()
    assert len(told) > 24


def test_an_adapter_comes_over_https_from_a_server_of_the_organisations_own_authority(
    node: Node, client: Client
) -> None:
    serve_adapters(node)
    spec = {
        "baseModelRef": {"namespace": MODELS, "name": "smollm2"},
        "source": {"uri": "https://artifacts.artifacts.svc/haiku"}, "copies": {"min": 2, "max": 2},
    }  # fmt: skip
    metadata = {"name": "haiku", "namespace": "acme"}
    node.apply({"apiVersion": "lorafleet.dev/v1alpha1", "kind": "LoRAAdapter", "metadata": metadata, "spec": spec})
    node.kubectl("wait", "-n", "acme", "loraadapter/haiku", "--for=condition=Ready", "--timeout=90s")
    assert client.stream("haiku", 8).finished()


def test_a_rolling_update_of_the_base_model_fails_no_request(node: Node, client: Client) -> None:
    before = node.ready(MODELS, RUNTIMES, 2)
    with client.load("pirate", "smollm2-135m"):
        # float32, so that the answers of the tests that follow compare.
        patch = json.dumps({"spec": {"engine": {"maxNumSeqs": 16, "dtype": "float32"}}})
        node.kubectl("patch", "basemodel", "smollm2", "-n", MODELS, "--type=merge", "-p", patch)
        eventually("both pods are new", lambda: renewed(node, set(before)), 300)
    status = json.loads(node.kubectl("get", "loraadapter", "pirate", "-n", "acme", "-o", "json"))["status"]
    assert {placement["state"] for placement in status["placements"]} == {"Ready"}


@pytest.mark.parametrize("how", ["deleted by force", "killed"])
def test_a_stream_goes_on_when_its_pod_is(node: Node, client: Client, how: str) -> None:
    undisturbed = client.stream("pirate", STORY_TOKENS).finished()
    answer = client.stream("pirate", STORY_TOKENS)
    eventually("the stream runs", lambda: len(answer.pieces) > 20, 60)
    pod = serving(node)
    if how == "killed":
        kill(node, pod)
    else:
        node.kubectl("delete", "pod", "-n", MODELS, pod, "--force", "--grace-period=0")
    at = len(answer.pieces)
    assert answer.finished() == undisturbed
    assert at < len(answer.pieces) - 20, "the stream had ended before its pod did"
    node.ready(MODELS, RUNTIMES, 2)


def test_draining_the_node_fails_no_request(node: Node, client: Client) -> None:
    before = {**node.pods(MODELS, RUNTIMES), **node.pods(SYSTEM, OURS)}
    name = node.kubectl("get", "nodes", "-o", "name").strip()
    with client.load("pirate", "smollm2-135m"):
        draining = node.spawn(
            "kubectl", "drain", name, "--delete-emptydir-data", "--pod-selector", OURS, "--timeout=300s"
        )
        cordoned = ("get", name, "-o", "jsonpath={.spec.unschedulable}")
        eventually("the node is cordoned", lambda: node.kubectl(*cordoned) == "true", 30)
        node.kubectl("uncordon", name)  # there is no other node for their successors; evictions go on
        told, _ = draining.communicate(timeout=300)
        assert draining.returncode == 0, told
        after = {**node.ready(MODELS, RUNTIMES, 2), **node.ready(SYSTEM, OURS, 3)}
    assert not set(before) & set(after), "a pod was not drained"


def test_helm_upgrade_fails_no_request_and_touches_no_runtime(node: Node, client: Client) -> None:
    before = {name: pod["metadata"]["uid"] for name, pod in node.ready(MODELS, RUNTIMES, 2).items()}
    upgrade = ["upgrade", "lorafleet", "charts/lorafleet", "-n", SYSTEM, "--wait", "--timeout=120s"]
    with client.load("pirate", "smollm2-135m"):
        values = "gateway.replicas=3,webhook.enabled=true,commonLabels.team=search"
        node.run("helm", *upgrade, "--set", values, seconds=150)
        node.ready(SYSTEM, "app.kubernetes.io/component=gateway", 3)
    after = {name: pod["metadata"]["uid"] for name, pod in node.ready(MODELS, RUNTIMES, 2).items()}
    assert before == after


def test_the_api_server_asks_the_operators_pod_before_it_stores(node: Node) -> None:
    spec = {
        "baseModelRef": {"namespace": MODELS, "name": "smollm2"}, "servedName": "pirate",
        "source": {"uri": "pvc://quickstart/adapters/pirate"},
    }  # fmt: skip
    metadata = {"name": "second", "namespace": "acme"}
    adapter = {"apiVersion": "lorafleet.dev/v1alpha1", "kind": "LoRAAdapter", "metadata": metadata, "spec": spec}
    told = node.kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(adapter), check=False)
    assert "validate.lorafleet.dev" in told
    assert "already served by LoRAAdapter acme/pirate" in told


def test_helm_test_passes(node: Node) -> None:
    assert "Succeeded" in node.run("helm", "test", "lorafleet", "-n", SYSTEM)


def test_helm_uninstall_leaves_nothing_but_the_definitions_and_what_serves(node: Node, client: Client) -> None:
    begun = time.monotonic()
    node.run("helm", "uninstall", "lorafleet", "-n", SYSTEM, "--wait", "--timeout=90s")
    assert time.monotonic() - begun < 90
    kinds = (
        "pods,deployments,services,secrets,configmaps,leases,serviceaccounts,roles,rolebindings,poddisruptionbudgets"
    )
    kept = {"configmap/kube-root-ca.crt", "serviceaccount/default"}

    def left() -> set[str]:
        return set(node.kubectl("get", kinds, "-n", SYSTEM, "-o", "name").split()) - kept

    eventually("the release's namespace is empty", lambda: not left(), 90)
    cluster = node.kubectl(
        "get", "clusterroles,clusterrolebindings,validatingwebhookconfigurations", "-l", OURS, "-o", "name"
    ).split()
    assert cluster == []
    assert len(node.pods(MODELS, RUNTIMES)) == 2, "base models outlive the operator"


def test_without_an_operator_objects_and_namespaces_are_deleted_at_once(node: Node) -> None:
    for file in ("examples/quickstart/tenants.yaml", "examples/cluster/fleet.yaml", "examples/cluster/files.yaml"):
        node.kubectl("delete", "-f", file, "--ignore-not-found", "--timeout=100s")
    names = node.kubectl("get", "namespaces", "-o", "name").split()
    assert not {f"namespace/{name}" for name in (MODELS, "acme", "globex")} & set(names)


def serve_adapters(node: Node) -> None:
    """The quickstart's adapters behind https: a pod, a Service, and a certificate of the node's own authority."""
    server = (
        "import functools, http.server, ssl\n"
        "handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory='/files/adapters')\n"
        "server = http.server.ThreadingHTTPServer(('', 8443), handler)\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "context.load_cert_chain('/tls/tls.crt', '/tls/tls.key')\n"
        "server.socket = context.wrap_socket(server.socket, server_side=True)\n"
        "server.serve_forever()\n"
    )
    node.namespace("artifacts")
    pki = node.lab / "node" / "pki"
    files = (f"--cert={pki}/artifacts.crt", f"--key={pki}/artifacts.key")
    node.kubectl("create", "secret", "tls", "tls", "-n", "artifacts", *files)
    container = {
        "name": "server", "image": f"lorafleet/quickstart:{VERSION}", "command": ["python", "-c", server],
        "ports": [{"name": "https", "containerPort": 8443}], "volumeMounts": [{"name": "tls", "mountPath": "/tls"}],
        "readinessProbe": {"tcpSocket": {"port": "https"}, "periodSeconds": 1},
    }  # fmt: skip
    spec = {"containers": [container], "volumes": [{"name": "tls", "secret": {"secretName": "tls"}}],
            "terminationGracePeriodSeconds": 1}  # fmt: skip
    head = {"namespace": "artifacts", "name": "artifacts", "labels": {"app": "artifacts"}}
    ports = [{"port": 443, "targetPort": "https"}]
    node.apply(
        {"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": head,
         "spec": {"selector": {"app": "artifacts"}, "ports": ports}},
    )  # fmt: skip
    node.ready("artifacts", "app=artifacts", 1, 60)


def serving(node: Node) -> str:
    """The pod that answers a request at this moment, as the replicas themselves say."""
    fields = [
        "get",
        "secret",
        "lorafleet-tokens",
        "-n",
        SYSTEM,
        "-o",
        "go-template={{.data.LORAFLEET_ADMIN_TOKEN | base64decode}}",
    ]
    header = f"Authorization: Bearer {node.kubectl(*fields)}"

    def busy() -> list[str]:
        found = []
        for name, pod in node.pods(MODELS, RUNTIMES).items():
            state = node.run("curl", "-sf", "-H", header, f"http://{pod['status']['podIP']}:8001/admin/state")
            found += [name] if json.loads(state)["load"]["running"] else []
        return found

    return eventually("a replica is busy", busy, 20)[0]


def kill(node: Node, pod: str) -> None:
    """`kill -9` of the container's first process: nobody is told, and the pod stays."""
    identity = node.pods(MODELS)[pod]["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    node.run("ctr", "-n", "k8s.io", "task", "kill", "--signal", "SIGKILL", identity)


def renewed(node: Node, before: set[str]) -> bool:
    pods = node.list("pods", MODELS, RUNTIMES)  # those that still leave are among them
    return len(pods) == 2 and all(map(is_ready, pods)) and not before & {pod["metadata"]["name"] for pod in pods}
