"""The objects of the cluster that the operator looks at, by identity. Fed by watches; each is read once per change.

Not a kopf index: filling one is quadratic in the number of objects. Knows no API client and no plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafleet_operator.core import api
from lorafleet_operator.core.documents import collect
from lorafleet_operator.core.objects import Desired, ObjectKey, Problem, Problems, Ref, Secret, SetAside

Raw = Mapping[str, Any]

DECLARED = ("BaseModel", "LoRAAdapter", "Tenant", "Namespace", "Secret")
RUNNING = ("Pod", "Deployment")


class Store:
    """`put` and `drop` say whether the change matters: metadata that nobody here reads wakes nobody."""

    def __init__(self) -> None:
        self.raw: dict[ObjectKey, Raw] = {}
        self.complete = False
        self._found: dict[ObjectKey, api.Object] = {}
        self._aside: dict[ObjectKey, SetAside] = {}
        self._problems: dict[ObjectKey, tuple[Problem, ...]] = {}
        self._desired: Desired | None = None

    def put(self, kind: str, document: Raw) -> bool:
        """Take an object as the API has it now; an older form than the known one is no news. One that is being deleted
        counts as gone, except a pod: it drains."""
        key = _key(kind, document)
        before = self.raw.get(key)
        if before is not None and _older(document, before):
            return False
        if kind not in RUNNING and document["metadata"].get("deletionTimestamp"):
            return self.drop(kind, document)
        self.raw[key] = document = _slim(document, before)
        if kind in RUNNING:
            return before is None or _pod_facts(before) != _pod_facts(document)
        if before is not None and _declared(before) == _declared(document):
            return False
        self._read(key, kind, document)
        return True

    def update(self, kind: str, document: Raw) -> None:
        """Take what a write of ours returned, unless the object has gone meanwhile."""
        if _key(kind, document) in self.raw:
            self.put(kind, document)

    def drop(self, kind: str, document: Raw) -> bool:
        key = _key(kind, document)
        known = self.raw.pop(key, None) is not None
        for table in (self._found, self._aside, self._problems):
            table.pop(key, None)
        self._desired = None
        return known

    def desired(self) -> Desired:
        """What is declared; what cannot be read now keeps its last good form."""
        if self._desired is None or self._desired.complete != self.complete:
            problems = tuple(p for found in self._problems.values() for p in found)
            self._desired = collect(self._found, self._aside, problems, self.complete)
        return self._desired

    def secret(self, ref: Ref) -> Secret | None:
        """The Secret of that name as it is known now. Any thread may ask."""
        found = self._found.get(ObjectKey("Secret", ref.namespace, ref.name))
        return found if isinstance(found, Secret) else None

    def pods(self) -> list[Raw]:
        return [raw for key, raw in self.raw.items() if key.kind == "Pod"]

    def uid(self, key: ObjectKey) -> str:
        raw = self.raw.get(key)
        return str(raw["metadata"].get("uid", "")) if raw else ""

    def statuses(self) -> dict[ObjectKey, Raw]:
        """The statuses that the API holds now."""
        return {key: raw.get("status") or {} for key, raw in self.raw.items() if key.kind in DECLARED[:3]}

    def _read(self, key: ObjectKey, kind: str, document: Raw) -> None:
        read = api.read({**document, "apiVersion": api.API_VERSIONS[kind], "kind": kind})
        self._desired = None
        if isinstance(read, Problems):
            self._problems[key] = read.problems
            self._aside[key] = SetAside(read.problems, False, read.generation)
            return
        self._found[key] = read
        self._aside.pop(key, None)
        self._problems.pop(key, None)


def _key(kind: str, document: Raw) -> ObjectKey:
    metadata = document["metadata"]
    return ObjectKey(kind, metadata.get("namespace") or "", metadata["name"])


def _slim(document: Raw, before: Raw | None) -> Raw:
    """Without who owns which field, which is most of an object; and with the parts of its former form that are equal,
    so that nothing is held twice."""
    metadata = {name: value for name, value in document["metadata"].items() if name != "managedFields"}
    known = before or {}
    same = {part: known[part] for part in ("spec", "status") if part in known and known[part] == document.get(part)}
    return {**document, "metadata": metadata, **same}


def _older(document: Raw, before: Raw) -> bool:
    """etcd's versions are numbers, and a new object of an old name has a higher one. Without numbers: not older."""
    new, old = (d["metadata"].get("resourceVersion") or "" for d in (document, before))
    return new.isdigit() and old.isdigit() and int(new) < int(old)


def _declared(document: Raw) -> tuple[Any, ...]:
    metadata = document["metadata"]
    return document.get("spec"), document.get("data"), metadata.get("labels"), metadata.get("uid")


def _pod_facts(document: Raw) -> tuple[Any, ...]:
    metadata = document["metadata"]
    return metadata.get("uid"), metadata.get("deletionTimestamp"), metadata.get("generation"), document.get("status")
