"""`lorafleet operator`: the operator in a cluster."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal

import kubernetes
import structlog
from prometheus_client import start_http_server

from lorafleet_operator import handlers, logs
from lorafleet_operator.core.inference_pools import EndpointPicker
from lorafleet_operator.errors import UsageError
from lorafleet_operator.kube.client import KubeClient
from lorafleet_operator.kube.settings import NAMESPACE_FILE, ClusterSettings, cluster_settings


def run(options: argparse.Namespace) -> int:
    """Act until SIGTERM. Raises LorafleetError."""
    settings = cluster_settings(
        namespace=options.namespace or "", namespaces=tuple(options.watch_namespace), image=options.runtime_image,
        pull_policy=options.image_pull_policy, release=options.network_policy_release,
        scrapers=dict(options.metrics_namespace_label), pool_gateways=dict(options.pool_gateway_namespace_label),
        pools=options.inference_pools, picker=_picker(options), metrics_port=options.metrics_port,
        health_port=options.health_port, webhook_port=options.webhook_port,
        webhook_certificates=options.webhook_cert_dir, log_format=options.log_format,
    )  # fmt: skip
    logs.configure(settings.log_format)
    client = KubeClient(configuration(options.kubeconfig))
    server, _ = start_http_server(settings.metrics_port)
    try:
        asyncio.run(_run(settings, client))
    finally:
        server.shutdown()
        client.close()
    return 0


def _picker(options: argparse.Namespace) -> EndpointPicker | None:
    if not options.endpoint_picker:
        return None
    return EndpointPicker(options.endpoint_picker, options.endpoint_picker_port, options.endpoint_picker_failure_mode)


def configuration(kubeconfig: str | None) -> kubernetes.client.Configuration:
    """How to reach the API: a kubeconfig, or the pod's own ServiceAccount."""
    found = kubernetes.client.Configuration()
    try:
        if kubeconfig is None and not os.environ.get("KUBECONFIG") and NAMESPACE_FILE.exists():
            kubernetes.config.load_incluster_config(client_configuration=found)
        else:
            kubernetes.config.load_kube_config(kubeconfig, client_configuration=found)
    except (kubernetes.config.ConfigException, OSError) as error:
        raise UsageError(f"no way to reach a cluster: {error}") from error
    return found


async def _run(settings: ClusterSettings, client: KubeClient) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    structlog.get_logger("operator").info("operator starts", identity=settings.identity, namespace=settings.namespace)
    await handlers.run(settings, client, stop)
