"""In a cluster: keeps the fleet folder equal to the ConfigMaps and the Secret that the operator publishes.

Two watches over plain HTTP, no Kubernetes library. What was mirrored stays when the API server or the operator is away,
and in a volume of the pod it outlives this process: a gateway that restarts then knows its fleet at once.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import os
import random
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import structlog

from lorafleet_gateway.errors import ConfigError
from lorafleet_gateway.fleet import TENANTS

log = structlog.get_logger("lorafleet_gateway.mirror")

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
FIELD = "document.json.gz"
SELECTORS = {
    "configmaps": {"labelSelector": "lorafleet.dev/fleet=true"},
    "secrets": {"fieldSelector": "metadata.name=lorafleet-tenants"},
}
WATCH_SECONDS = 300
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0


@dataclass(frozen=True, slots=True)
class ApiAccess:
    """Where the API server is, and the files that say who we are; the token is read anew for every call."""

    url: str
    token_file: Path
    ca_file: Path
    namespace: str


def access(namespace: str, env: Mapping[str, str]) -> ApiAccess:
    """From the environment of a pod; `LORAFLEET_KUBE_API` and `LORAFLEET_KUBE_ACCOUNT` (a folder) override it.

    Raises ConfigError outside a cluster."""
    host, port = env.get("KUBERNETES_SERVICE_HOST", ""), env.get("KUBERNETES_SERVICE_PORT", "443")
    url = env.get("LORAFLEET_KUBE_API") or (f"https://{f'[{host}]' if ':' in host else host}:{port}" if host else "")
    account = Path(env.get("LORAFLEET_KUBE_ACCOUNT") or ACCOUNT)
    if not url or not (account / "token").exists():
        raise ConfigError("--cluster-namespace: this is no pod with a ServiceAccount token; use --fleet alone")
    return ApiAccess(url, account / "token", account / "ca.crt", namespace)


class Mirror:
    """Writes each document to a file of `folder`, and removes the files of documents that are gone. `changed` is called
    after each write."""

    def __init__(self, access: ApiAccess, folder: Path) -> None:
        self.changed: Callable[[], None] = lambda: None
        self._access = access
        self._folder = folder
        self._files: dict[str, str] = {}  # object name -> file name
        self.listed = False
        """Every fleet document that there was at one moment has been written."""

    async def run(self) -> None:
        """Follow both kinds until cancelled."""
        context = ssl.create_default_context(cafile=str(self._access.ca_file))
        timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=WATCH_SECONDS + 30)
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=4 << 20) as http:
            await asyncio.gather(*(self._follow(http, resource) for resource in SELECTORS))

    async def _follow(self, http: aiohttp.ClientSession, resource: str) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                version = await self._list(http, resource)
                pause = FIRST_PAUSE
                while version:
                    version = await self._watch(http, resource, version)
            except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
                log.warning("the API server is away; the last documents stay", resource=resource, why=str(error))
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _list(self, http: aiohttp.ClientSession, resource: str) -> str:
        async with http.get(self._url(resource), params=SELECTORS[resource], headers=self._headers()) as response:
            response.raise_for_status()
            body = await response.json()
        kept = {self._put(item) for item in body["items"]}
        tenants = resource == "secrets"
        for path in self._folder.glob("*.json"):
            if (path.name == TENANTS) == tenants and path.name not in kept:
                path.unlink(missing_ok=True)
        self.listed = self.listed or not tenants
        return str(body["metadata"]["resourceVersion"])

    async def _watch(self, http: aiohttp.ClientSession, resource: str, version: str) -> str:
        """Take events from `version` on; the version to go on from, "" when only a new list helps."""
        query = {**SELECTORS[resource], "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
                 "timeoutSeconds": str(WATCH_SECONDS)}  # fmt: skip
        async with http.get(self._url(resource), params=query, headers=self._headers()) as response:
            response.raise_for_status()
            async for line in response.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return ""
                item = event["object"]
                version = item["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._drop(item)
                elif event["type"] != "BOOKMARK":
                    self._put(item)
        return version

    def _put(self, item: Mapping[str, Any]) -> str:
        """Write the object's document; the file's name, "" when there is no document in it."""
        data = (item.get("binaryData") or item.get("data") or {}).get(FIELD)
        try:
            text = gzip.decompress(base64.b64decode(data or ""))
            document = json.loads(text)
            base = document.get("baseModel")
            name = f"{base['namespace']}.{base['name']}.json" if base else TENANTS
        except (ValueError, OSError, EOFError, KeyError, AttributeError) as error:
            log.error("an object without a document", object=item["metadata"]["name"], why=str(error))
            return ""
        if "/" in name:
            return ""
        temporary = self._folder / f".{name}.new"
        temporary.touch(mode=0o600)
        temporary.write_bytes(text)
        os.replace(temporary, self._folder / name)
        self._files[item["metadata"]["name"]] = name
        self.changed()
        return name

    def _drop(self, item: Mapping[str, Any]) -> None:
        name = self._files.pop(item["metadata"]["name"], "")
        if name:
            (self._folder / name).unlink(missing_ok=True)

    def _url(self, resource: str) -> str:
        return f"{self._access.url}/api/v1/namespaces/{self._access.namespace}/{resource}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._access.token_file.read_text().strip()}"}
