"""Writes what a fleet says of itself: the gateway's documents, and `status.json` for `lorafleet get` and `plan`.

Nothing is written when nothing changed. Knows no process and no plan's reasons; all content comes from the core.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorafleet_operator.core.actions import Plan
from lorafleet_operator.core.api import API_VERSIONS
from lorafleet_operator.core.fleet import differs, fleet_documents, tenants_document
from lorafleet_operator.core.objects import Desired, ObjectKey, Observed
from lorafleet_operator.core.status import KINDS, Status, statuses
from lorafleet_operator.folder import Folder
from lorafleet_operator.local import observed_json
from lorafleet_operator.local.state_folder import StateFolder, read_json, write_json
from lorafleet_operator.timestamps import timestamp

TENANTS = "tenants.json"


class Publisher:
    """The last published documents and statuses. A generation goes on from what the folder already holds."""

    def __init__(self, state: StateFolder, folder: Folder, gateway_url: str) -> None:
        self.statuses: dict[ObjectKey, Status] = {}
        self._state = state
        self._folder = folder
        self._gateway_url = gateway_url
        self._published: dict[str, Any] = {}
        self._last_status: Any = None
        self._created: dict[ObjectKey, str] = {}
        self.writes = 0

    def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Bring the folder up to date. Raises OSError when it cannot be written."""
        self._publish_fleet(desired, observed)
        now_iso = timestamp()
        self.statuses = statuses(desired, observed, plan, self.statuses, now_iso)
        document = {
            "version": 1,
            "gateway": self._gateway_url,
            "objects": self._objects(desired, now_iso),
            "problems": [str(problem) for problem in desired.problems],
            "observed": observed_json.to_json(observed),
        }
        if _settled(document) != _settled(self._last_status):
            self._write(self._state.status, document)
            self._last_status = document

    def _publish_fleet(self, desired: Desired, observed: Observed) -> None:
        wanted = {TENANTS}
        documents = fleet_documents(desired, observed, lambda base: self._generation(f"{base.ref.wire_id}.json"))
        for ref, document in documents.items():
            wanted.add(f"{ref.wire_id}.json")
            self._replace(f"{ref.wire_id}.json", document)
        self._replace(TENANTS, tenants_document(desired, self._generation(TENANTS)))
        for path in self._state.fleet.glob("*.json"):
            if path.name not in wanted and desired.complete:
                path.unlink(missing_ok=True)
                self._published.pop(path.name, None)

    def _generation(self, name: str) -> int:
        if name not in self._published:
            self._published[name] = read_json(self._state.fleet / name)
        published = self._published[name]
        generation = published.get("generation") if isinstance(published, dict) else None
        return generation + 1 if isinstance(generation, int) else 1

    def _replace(self, name: str, document: dict[str, Any]) -> None:
        published = self._published.get(name)
        if differs(document, published if isinstance(published, dict) else None):
            self._write(self._state.fleet / name, document)
            self._published[name] = document

    def _write(self, path: Path, document: Any) -> None:
        write_json(path, document)
        self.writes += 1

    def _objects(self, desired: Desired, now_iso: str) -> list[dict[str, Any]]:
        """Every declared object with its status. Secrets are none of them."""
        found = []
        for document in self._folder.documents():
            key = _identity(document)
            if key is None or key.kind not in KINDS:
                continue
            created = self._created.setdefault(key, now_iso)
            metadata = {**document["metadata"], "creationTimestamp": created}
            if key.namespace:
                metadata["namespace"] = key.namespace
            spec = _with_defaults(key, document.get("spec") or {}, desired)
            status = self.statuses.get(key, {})
            head = {"apiVersion": API_VERSIONS[key.kind], "kind": key.kind, "metadata": metadata}
            found.append({**head, "spec": spec, "status": status})
        return found


def _settled(document: Any) -> Any:
    """The part whose change is worth a write: not the load, which changes with every step of an engine."""
    if document is None:
        return None
    volatile = {"running": 0, "waiting": 0, "pages_free": 0, "progress": 0.0}
    replicas = [
        {
            **replica,
            **volatile,
            "residents": [{**resident, "running": 0, "waiting": 0} for resident in replica["residents"]],
        }
        for replica in document["observed"]["replicas"]
    ]
    return {**document, "observed": {**document["observed"], "replicas": replicas}}


def _identity(document: Any) -> ObjectKey | None:
    """The key of a raw document; None when it does not even have one."""
    if not isinstance(document, Mapping) or not isinstance(document.get("metadata"), Mapping):
        return None
    kind, metadata = document.get("kind"), document["metadata"]
    name = metadata.get("name")
    if not isinstance(kind, str) or not isinstance(name, str):
        return None
    namespace = "" if kind == "Tenant" else metadata.get("namespace") or "default"
    return ObjectKey(kind, str(namespace), name)


def _with_defaults(key: ObjectKey, spec: Any, desired: Desired) -> Any:
    """The spec with the default that a column shows; one that cannot be read is shown as it was written."""
    tenant = desired.tenants.get(key.name) if key.kind == "Tenant" else None
    return {"weight": tenant.weight, **spec} if tenant and isinstance(spec, Mapping) else spec
