"""BaseModel -> the objects that run it in a cluster. Pure: equal inputs give equal manifests.

Nothing of an adapter is in them, so the hundredth adapter restarts no pod. Every object is owned by its BaseModel: its
deletion is the garbage collector's work, and needs no operator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lorafleet_operator.core.objects import BaseModel
from lorafleet_operator.core.runtime_arguments import ADMIN_PORT, SERVING_PORT, arguments

Manifest = dict[str, Any]

GROUP = "lorafleet.dev"
API_VERSION = f"{GROUP}/v1alpha1"
BASE_MODEL_LABEL = f"{GROUP}/base-model"
SPEC_HASH = f"{GROUP}/spec-hash"
ADAPTERS_GATE = f"{GROUP}/adapters"
"""Readiness gate: True once the pod holds the adapters that belong on it. A rolling update waits for it, so that a new
pod is loaded before an old one leaves."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
CHEAPEST = "-1000"
"""Of the pods beyond a smaller number, a Deployment deletes the cheapest first."""
DRAIN_SECONDS = 30
ENDPOINT_SECONDS = 5
"""Between a pod's deletion and its SIGTERM: gateways learn that it drains before it refuses anything."""
USER = 10001


@dataclass(frozen=True, slots=True)
class Images:
    """What pods run when a BaseModel does not say. `command` replaces the image's own entry point."""

    runtime: str
    pull_policy: str = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Peers:
    """Who may call runtimes: gateways and operator of this Helm release in `namespace`; from namespaces with these
    labels scrapers of metrics, and gateways that send to InferencePools."""

    namespace: str
    release: str
    scrapers: Mapping[str, str] = field(default_factory=dict)
    pool_gateways: Mapping[str, str] = field(default_factory=dict)


def workload(
    base: BaseModel, *, uid: str, spec_hash: str, replicas: int, images: Images, tokens: Mapping[str, str],
    peers: Peers | None = None,
) -> list[Manifest]:  # fmt: skip
    """Everything that `base` needs in its namespace, in order of application: what pods refer to comes first.

    `tokens` are the serving and the admin token, by the name of their environment variable. Without `peers`, whoever
    reaches a pod may call it (and needs a token).
    """
    manifests = [_service_account(base, uid), _tokens(base, uid, tokens), _service(base, uid)]
    if replicas > 1:  # with one replica it would block every node's drain
        manifests.append(_disruption_budget(base, uid))
    if peers is not None:
        manifests.append(_network_policy(base, uid, peers))
    return [*manifests, _deployment(base, uid, spec_hash, replicas, images)]


def workload_name(base_name: str) -> str:
    """What the objects that run a base model are called."""
    return f"{base_name}-runtime"


def selector(base_name: str) -> dict[str, str]:
    """What tells the pods of one base model from all others. Never changes: a Deployment's selector cannot."""
    return {"app.kubernetes.io/name": "lorafleet-runtime", BASE_MODEL_LABEL: base_name}


def owned(api_version: str, kind: str, base: BaseModel, uid: str, name: str) -> Manifest:
    """An object of a base model's, without its content: gone when the base model is."""
    labels = {
        **selector(base.ref.name),
        "app.kubernetes.io/instance": base.ref.name,
        "app.kubernetes.io/component": "runtime",
        "app.kubernetes.io/part-of": "lorafleet",
        "app.kubernetes.io/managed-by": "lorafleet",
    }
    owner = {
        "apiVersion": API_VERSION, "kind": "BaseModel", "name": base.ref.name, "uid": uid,
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    metadata = {"name": name, "namespace": base.ref.namespace, "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata}


def _service_account(base: BaseModel, uid: str) -> Manifest:
    account = owned("v1", "ServiceAccount", base, uid, workload_name(base.ref.name))
    return {**account, "automountServiceAccountToken": False}


def _tokens(base: BaseModel, uid: str, tokens: Mapping[str, str]) -> Manifest:
    secret = owned("v1", "Secret", base, uid, f"{workload_name(base.ref.name)}-tokens")
    return {**secret, "type": "Opaque", "stringData": dict(tokens)}


def _service(base: BaseModel, uid: str) -> Manifest:
    """Headless: gateways talk to pods; this gives them names, and monitors something to select."""
    ports = [
        {"name": "http", "port": SERVING_PORT, "targetPort": "http", "appProtocol": "http"},
        {"name": "admin", "port": ADMIN_PORT, "targetPort": "admin", "appProtocol": "http"},
    ]
    spec = {"clusterIP": "None", "selector": selector(base.ref.name), "ports": ports}
    return {**owned("v1", "Service", base, uid, workload_name(base.ref.name)), "spec": spec}


def _disruption_budget(base: BaseModel, uid: str) -> Manifest:
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": selector(base.ref.name)}}
    return {**owned("policy/v1", "PodDisruptionBudget", base, uid, workload_name(base.ref.name)), "spec": spec}


def _network_policy(base: BaseModel, uid: str, peers: Peers) -> Manifest:
    """The serving port is for gateways and scrapers, the admin port for the operator."""

    def part(component: str) -> Manifest:
        labels = {"app.kubernetes.io/instance": peers.release, "app.kubernetes.io/component": component}
        home = {"matchLabels": {"kubernetes.io/metadata.name": peers.namespace}}
        return {"namespaceSelector": home, "podSelector": {"matchLabels": labels}}

    callers = [part("gateway")]
    elsewhere = [dict(labels) for labels in (peers.scrapers, peers.pool_gateways) if labels]
    callers += [{"namespaceSelector": {"matchLabels": labels}} for labels in elsewhere]
    spec = {
        "podSelector": {"matchLabels": selector(base.ref.name)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": callers, "ports": [{"port": "http"}]},
            {"from": [part("operator")], "ports": [{"port": "admin"}]},
        ],
    }
    return {**owned("networking.k8s.io/v1", "NetworkPolicy", base, uid, workload_name(base.ref.name)), "spec": spec}


def _deployment(base: BaseModel, uid: str, spec_hash: str, replicas: int, images: Images) -> Manifest:
    deployment = owned("apps/v1", "Deployment", base, uid, workload_name(base.ref.name))
    replace = base.runtime.get("updateStrategy") == "Replace"
    rolling = {"maxSurge": 0, "maxUnavailable": 1} if replace else {"maxSurge": 1, "maxUnavailable": 0}
    deployment["spec"] = {
        "replicas": replicas,
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": 1800,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
        "selector": {"matchLabels": selector(base.ref.name)},
        "template": {
            "metadata": {"labels": deployment["metadata"]["labels"], "annotations": {SPEC_HASH: spec_hash}},
            "spec": _pod(base, images),
        },
    }
    return deployment


def _pod(base: BaseModel, images: Images) -> Manifest:
    runtime = base.runtime
    drain = int(runtime.get("drainSeconds", DRAIN_SECONDS))
    volumes = runtime.get("artifactVolumes", ())
    pod: Manifest = {
        "serviceAccountName": workload_name(base.ref.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": ENDPOINT_SECONDS + drain + 10,
        "readinessGates": [{"conditionType": ADAPTERS_GATE}],
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(base, images, drain)],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
            *(_claim(volume["name"], volume["claimName"]) for volume in volumes),
        ],
    }  # fmt: skip
    for name in ("nodeSelector", "tolerations", "runtimeClassName"):
        if runtime.get(name):
            pod[name] = runtime[name]
    if images.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in images.pull_secrets]
    return pod


def _claim(name: str, claim: str) -> Manifest:
    return {"name": f"artifacts-{name}", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}


def _container(base: BaseModel, images: Images, drain: int) -> Manifest:
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "shm", "mountPath": "/dev/shm"}]
    for volume in base.runtime.get("artifactVolumes", ()):
        name = volume["name"]
        mounts.append({"name": f"artifacts-{name}", "mountPath": f"/artifacts/{name}", "readOnly": True})
    container: Manifest = {
        "name": "runtime",
        "image": base.runtime.get("image") or images.runtime,
        "imagePullPolicy": images.pull_policy,
        "args": arguments(base, drain),
        "env": [
            {"name": "XDG_CACHE_HOME", "value": "/tmp/cache"},
            *({"name": name, "value": value} for name, value in sorted(images.environment.items())),
        ],
        "envFrom": [{"secretRef": {"name": f"{workload_name(base.ref.name)}-tokens"}}],
        "ports": [
            {"name": "http", "containerPort": SERVING_PORT},
            {"name": "admin", "containerPort": ADMIN_PORT},
        ],
        # A large model takes long to load: the process answers /health meanwhile, and /ready when it has.
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2, "failureThreshold": 90},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 2, "timeoutSeconds": 2},
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        "lifecycle": {"preStop": {"sleep": {"seconds": ENDPOINT_SECONDS}}},
        "resources": base.runtime.get("resources", {}),
        "securityContext": {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }  # fmt: skip
    if images.command:
        container["command"] = list(images.command)
    return container
