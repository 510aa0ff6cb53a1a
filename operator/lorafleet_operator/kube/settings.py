"""The settings of the operator in a cluster, from the command line and the environment, checked once."""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafleet_operator.core.inference_pools import EndpointPicker
from lorafleet_operator.core.manifests import Images, Peers
from lorafleet_operator.errors import UsageError
from lorafleet_operator.logs import LogFormat

TOKENS = ("LORAFLEET_SERVING_TOKEN", "LORAFLEET_ADMIN_TOKEN")
SHORTEST_TOKEN = 16
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
TOKEN_FILE = NAMESPACE_FILE.with_name("token")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Where the webhook listens, and the folder of its tls.crt and tls.key."""

    port: int
    certificates: Path


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What `lorafleet operator` runs with. Intervals are seconds; `namespaces` empty: the whole cluster.

    `owner` is the reference to this pod's ServiceAccount: what the operator makes at home goes with the release."""

    namespace: str
    identity: str
    images: Images
    tokens: Mapping[str, str]
    namespaces: tuple[str, ...] = ()
    peers: Peers | None = None
    pools: bool = False
    picker: EndpointPicker | None = None
    owner: Mapping[str, Any] | None = None
    metrics_port: int = 9090
    health_port: int = 8081
    webhook: WebhookSettings | None = None
    log_format: LogFormat = "json"
    resync_seconds: float = 15.0
    relist_seconds: float = 300.0
    source_seconds: float = 15.0
    secret_seconds: float = 15.0
    gather_seconds: float = 0.05
    usage_seconds: float = 60.0


def cluster_settings(
    *, namespace: str = "", namespaces: tuple[str, ...] = (), image: str, pull_policy: str = "IfNotPresent",
    release: str = "", scrapers: Mapping[str, str] | None = None, pool_gateways: Mapping[str, str] | None = None,
    pools: bool = False, picker: EndpointPicker | None = None, metrics_port: int = 9090, health_port: int = 8081,
    webhook_port: int | None = None, webhook_certificates: str | None = None,
    log_format: LogFormat = "json", env: Mapping[str, str] = os.environ,
) -> ClusterSettings:  # fmt: skip
    """Settings from options and environment. Raises UsageError for what cannot be followed."""
    tokens = {name: env.get(name, "") for name in TOKENS}
    for name, token in tokens.items():
        if len(token) < SHORTEST_TOKEN:
            raise UsageError(f"{name} must hold at least {SHORTEST_TOKEN} characters: runtimes are called with it")
    if tokens[TOKENS[0]] == tokens[TOKENS[1]]:
        raise UsageError(f"{TOKENS[0]} and {TOKENS[1]} must differ: a gateway must not be able to load adapters")
    extra = {n.removeprefix("LORAFLEET_POD_ENV_"): v for n, v in env.items() if n.startswith("LORAFLEET_POD_ENV_")}
    command = tuple(shlex.split(env.get("LORAFLEET_POD_COMMAND", "")))
    home = namespace or _own_namespace(env)
    return ClusterSettings(
        namespace=home,
        identity=f"{env.get('POD_NAME') or socket.gethostname()}_{os.getpid()}",
        images=Images(image, pull_policy, command=command, environment=extra),
        tokens=tokens,
        namespaces=namespaces,
        peers=Peers(home, release, scrapers or {}, pool_gateways or {}) if release else None,
        pools=pools,
        picker=_picker(pools, picker),
        owner=account_of(TOKEN_FILE.read_text(), home) if TOKEN_FILE.exists() else None,
        metrics_port=metrics_port,
        health_port=health_port,
        webhook=_webhook(webhook_port, webhook_certificates),
        log_format=log_format,
    )


def _picker(pools: bool, picker: EndpointPicker | None) -> EndpointPicker | None:
    if picker is None:
        return None
    if not pools:
        raise UsageError("--endpoint-picker is of InferencePools: give --inference-pools too, or neither")
    if not 0 < picker.port < 65536:
        raise UsageError(f"--endpoint-picker-port {picker.port}: a TCP port lies between 1 and 65535")
    return picker


def _webhook(port: int | None, folder: str | None) -> WebhookSettings | None:
    if (port is None) != (folder is None):
        raise UsageError("--webhook-port and --webhook-cert-dir belong together: give both, or neither")
    if port is None or folder is None:
        return None
    if not 0 < port < 65536:
        raise UsageError(f"--webhook-port {port}: a TCP port lies between 1 and 65535")
    return WebhookSettings(port, Path(folder))


def _own_namespace(env: Mapping[str, str]) -> str:
    if env.get("POD_NAMESPACE"):
        return env["POD_NAMESPACE"]
    if NAMESPACE_FILE.exists():
        return NAMESPACE_FILE.read_text().strip()
    raise UsageError("which namespace is the operator's? Give --namespace, or set POD_NAMESPACE")


def account_of(token: str, namespace: str) -> dict[str, Any] | None:
    """The owner reference of the ServiceAccount that a pod's token is of; None when the token does not say which, or it
    is of another namespace. The API server gave us the token, so nobody checks its signature here."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
        account = claims["serviceaccount"]
        found = {"apiVersion": "v1", "kind": "ServiceAccount", "name": account["name"], "uid": account["uid"]}
    except (ValueError, LookupError, TypeError):
        return None
    return found if claims.get("namespace") == namespace else None
