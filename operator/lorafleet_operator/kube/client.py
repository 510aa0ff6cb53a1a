"""The Kubernetes API as the operator uses it: few verbs, each call bounded in time and counted.

The official client blocks, so calls run in a bounded thread pool; HTTP connections are pooled below it.
"""

from __future__ import annotations

import asyncio
import builtins
import json
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import urlencode

import kubernetes
from prometheus_client import Counter

from lorafleet_operator.errors import KubeConflict, KubeGone, KubeRefused, KubeUnreachable

T = TypeVar("T")
Body = Mapping[str, Any]

MANAGER = "lorafleet-operator"
SECONDS = 15.0
THREADS = 8
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"

CALLS = Counter("lorafleet_operator_api_calls", "Calls of the Kubernetes API", ("verb", "resource", "code"))

PLURALS = {
    "BaseModel": ("/apis/lorafleet.dev/v1alpha1", "basemodels"),
    "LoRAAdapter": ("/apis/lorafleet.dev/v1alpha1", "loraadapters"),
    "Tenant": ("/apis/lorafleet.dev/v1alpha1", "tenants"),
    "Deployment": ("/apis/apps/v1", "deployments"),
    "PodDisruptionBudget": ("/apis/policy/v1", "poddisruptionbudgets"),
    "NetworkPolicy": ("/apis/networking.k8s.io/v1", "networkpolicies"),
    "Lease": ("/apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("/api/v1", "pods"),
    "Namespace": ("/api/v1", "namespaces"),
    "Secret": ("/api/v1", "secrets"),
    "Service": ("/api/v1", "services"),
    "ServiceAccount": ("/api/v1", "serviceaccounts"),
    "ConfigMap": ("/api/v1", "configmaps"),
    "InferencePool": ("/apis/inference.networking.k8s.io/v1", "inferencepools"),
    "Event": ("/api/v1", "events"),
}


class KubeClient:
    """Raises KubeRefused (with the API's own message), KubeGone (404), KubeConflict (409) or KubeUnreachable."""

    def __init__(self, configuration: kubernetes.client.Configuration) -> None:
        configuration.connection_pool_maxsize = THREADS
        configuration.retries = False
        self._api = kubernetes.client.ApiClient(configuration)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="kubernetes")

    async def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind, in pages. The items carry no kind of their own, and nothing of who owns which field:
        that is most of an object, and ten thousand are read at once."""
        return await self.list_in(kind, "", selector)

    async def list_in(self, kind: str, namespace: str, selector: str = "") -> builtins.list[dict[str, Any]]:
        """As `list`, of one namespace."""
        return [item async for page in self.pages(kind, namespace, selector) for item in page]

    async def pages(
        self, kind: str, namespace: str = "", selector: str = ""
    ) -> AsyncIterator[builtins.list[dict[str, Any]]]:
        """As `list_in`, page by page: thousands of objects are never held at once."""
        token = ""
        while True:
            query = {"limit": "500", **({"labelSelector": selector} if selector else {})}
            if token:
                query["continue"] = token
            page = await self._call("LIST", kind, "GET", path(kind, namespace), query=query)
            yield [_without_owners(item) for item in page.get("items") or []]
            token = page.get("metadata", {}).get("continue") or ""
            if not token:
                return

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any]:
        return await self._call("GET", kind, "GET", path(kind, namespace, name))

    async def pod_text(self, namespace: str, name: str, port: int, where: str) -> str:
        """What a pod's HTTP port answers, through the API server."""
        called = f"{path('Pod', namespace, f'{name}:{port}')}/proxy/{where}"
        return (await self._bytes("PROXY", "Pod", "GET", called)).decode(errors="replace")

    async def apply(self, manifest: Body) -> dict[str, Any]:
        """Server-side apply: our fields are ours, everyone else's stay."""
        metadata = manifest["metadata"]
        where = path(manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("APPLY", manifest["kind"], "PATCH", where, query=query, body=manifest, content=APPLY)

    async def apply_status(self, kind: str, namespace: str, name: str, status: Body) -> dict[str, Any]:
        """The whole status, as ours. Raises KubeGone when the object has gone meanwhile."""
        api, _ = PLURALS[kind]
        metadata = {"name": name, **({"namespace": namespace} if namespace else {})}
        body = {"apiVersion": api.removeprefix("/apis/"), "kind": kind, "metadata": metadata, "status": status}
        where = path(kind, namespace, name) + "/status"
        query = {"fieldManager": f"{MANAGER}-status", "force": "true"}
        return await self._call("APPLY_STATUS", kind, "PATCH", where, query=query, body=body, content=APPLY)

    async def merge(self, kind: str, namespace: str, name: str, patch: Body, part: str = "") -> dict[str, Any]:
        where = path(kind, namespace, name) + (f"/{part}" if part else "")
        return await self._call("PATCH", kind, "PATCH", where, body=patch, content=MERGE)

    async def merge_pod_condition(self, namespace: str, name: str, condition: Body) -> dict[str, Any]:
        """Conditions are merged by type, so that the kubelet's own stay."""
        where = path("Pod", namespace, name) + "/status"
        body = {"status": {"conditions": [condition]}}
        content = "application/strategic-merge-patch+json"
        return await self._call("PATCH_STATUS", "Pod", "PATCH", where, body=body, content=content)

    async def create(self, manifest: Body) -> dict[str, Any]:
        where = path(manifest["kind"], manifest["metadata"].get("namespace", ""))
        return await self._call("CREATE", manifest["kind"], "POST", where, body=manifest)

    async def replace(self, manifest: Body) -> dict[str, Any]:
        """Raises KubeConflict when the resourceVersion in `manifest` is no longer the last."""
        metadata = manifest["metadata"]
        where = path(manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        return await self._call("UPDATE", manifest["kind"], "PUT", where, body=manifest)

    async def delete(self, kind: str, namespace: str, name: str) -> None:
        await self._call("DELETE", kind, "DELETE", path(kind, namespace, name))

    async def openapi(self, group_version: str) -> dict[str, Any]:
        """What the API server publishes about the kinds of a group; anyone who is known to it may read that."""
        return await self._call("GET", "OpenAPI", "GET", f"/openapi/v3/apis/{group_version}")

    async def served(self, group_version: str) -> frozenset[str]:
        """The resources of a group that the cluster knows; anyone who is known to it may ask."""
        try:
            found = await self._call("GET", "Discovery", "GET", f"/apis/{group_version}")
        except KubeGone:
            return frozenset()
        return frozenset(str(resource["name"]) for resource in found.get("resources") or ())

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._api.close()

    async def _call(self, verb: str, kind: str, method: str, where: str, **options: Any) -> dict[str, Any]:
        return dict(json.loads(await self._bytes(verb, kind, method, where, **options) or b"{}"))

    async def _bytes(
        self, verb: str, kind: str, method: str, where: str, *, query: Mapping[str, str] | None = None,
        body: Body | None = None, content: str = "application/json",
    ) -> bytes:  # fmt: skip
        def call() -> bytes:
            headers = {"Accept": "application/json", "Content-Type": content}
            self._api.update_params_for_auth(headers, [], ["BearerToken"], where, method, body)
            response = self._api.call_api(
                method, self._url(where, query or {}), headers, body=body, _request_timeout=SECONDS
            )
            data: bytes = response.read()
            if not 200 <= response.status < 300:
                raise _refusal(f"{verb} {where}", response.status, data)
            return data

        return await self._counted(verb, kind, where, call)

    def _url(self, where: str, query: Mapping[str, str]) -> str:
        return f"{self._api.configuration.host}{where}{'?' + urlencode(query) if query else ''}"

    async def _counted(self, verb: str, kind: str, where: str, call: Callable[[], T]) -> T:
        code = "error"
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._pool, call)
            code = "ok"
            return found
        except KubeRefused as error:
            code = str(error.status)
            raise
        except Exception as error:  # urllib3 has many names for a server that is away
            raise KubeUnreachable(f"{verb} {where}: {type(error).__name__}: {error}") from error
        finally:
            CALLS.labels(verb, kind, code).inc()


def _without_owners(item: dict[str, Any]) -> dict[str, Any]:
    item["metadata"].pop("managedFields", None)
    return item


def path(kind: str, namespace: str = "", name: str = "") -> str:
    """Of a kind in all namespaces, of a kind in one, or of one object."""
    api, plural = PLURALS[kind]
    scope = f"/namespaces/{namespace}" if namespace else ""
    return f"{api}{scope}/{plural}{'/' + name if name else ''}"


def _refusal(where: str, status: int, body: bytes) -> KubeRefused:
    try:
        message = json.loads(body).get("message") or f"HTTP {status}"
    except (ValueError, AttributeError):
        message = f"HTTP {status}: {body[:200]!r}"
    kind = {404: KubeGone, 409: KubeConflict}.get(status, KubeRefused)
    return kind(f"{where}: {message}", status=status)
