"""From a document to an object, or to what is wrong with it. Knows YAML's values, not YAML's files.

The rules and defaults are the CRDs' own: one machine without a cluster refuses what a cluster would refuse.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from lorafleet_operator.core.basemodel import read_base_model
from lorafleet_operator.core.fields import Fields, Sink, checked_text, describe, suggestion
from lorafleet_operator.core.names import (
    DNS_LABEL,
    DNS_LABEL_SAYS,
    read_name,
    read_namespace,
    read_secret_key,
    read_served_name,
    read_source,
)
from lorafleet_operator.core.objects import (
    Adapter,
    BaseModel,
    Namespace,
    ObjectKey,
    Problem,
    Problems,
    Quota,
    Ref,
    Secret,
    SecretKeyRef,
    Tenant,
)

GROUP_VERSION = "lorafleet.dev/v1alpha1"
API_VERSIONS = {"BaseModel": GROUP_VERSION, "LoRAAdapter": GROUP_VERSION, "Tenant": GROUP_VERSION,
                "Secret": "v1", "Namespace": "v1"}  # fmt: skip
CLUSTER_SCOPED = ("Tenant", "Namespace")
NAME_LENGTHS = {"BaseModel": 52, "LoRAAdapter": 128, "Tenant": 63}
METADATA = (
    "labels", "annotations", "generation", "uid", "resourceVersion", "creationTimestamp", "managedFields",
    "finalizers", "ownerReferences", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName", "selfLink",
)  # fmt: skip

Object = BaseModel | Adapter | Tenant | Secret | Namespace


def read(document: object, where: str = "", base_dir: str = "") -> Object | Problems:
    """The object in one document, or everything that is wrong with it.

    `where` names the file, for messages; `base_dir` is its folder, where relative `file:` sources start.
    Secret values never appear in a message. An explicit null counts as an absent field.
    """
    if not isinstance(document, Mapping):
        return Problems((Problem(where, "", f"must be a Kubernetes object, not {describe(document)}"),))
    kind = document.get("kind")
    wrong_kind = _wrong_kind(kind, document.get("apiVersion"))
    sink = Sink(_where(where, kind, document.get("metadata")))
    if wrong_kind or not isinstance(kind, str):
        sink.add(*wrong_kind)
        return Problems(tuple(sink.problems))
    root = Fields(document, "", sink)
    for name in ("apiVersion", "kind", "status"):
        root.take(name)
    key, generation, created = _metadata(root, kind)
    found = _read_kind(root, key, generation, created, base_dir)
    root.close()
    if sink.problems:
        known = key if key.name else None
        return Problems(tuple(sink.problems), known, generation)
    return found


def key_of(found: Object) -> ObjectKey:
    """The identity of an object of any kind."""
    if isinstance(found, Tenant):
        return ObjectKey("Tenant", "", found.name)
    if isinstance(found, Namespace):
        return ObjectKey("Namespace", "", found.name)
    kind = "LoRAAdapter" if isinstance(found, Adapter) else type(found).__name__
    return ObjectKey(kind, found.ref.namespace, found.ref.name)


def fields_of(kind: str) -> frozenset[str]:
    """The paths below `.spec` that are read of a kind; those inside list items are left out."""
    sink = Sink(kind)
    _read_kind(Fields({}, "", sink), ObjectKey(kind, "", ""), 1, "", "")
    return frozenset(path for path in sink.known if path.startswith(".spec."))


def _read_kind(root: Fields, key: ObjectKey, generation: int, created: str, base_dir: str) -> Object:
    ref = Ref(key.namespace, key.name)
    if key.kind == "Secret":
        return Secret(ref, _secret_data(root))
    if key.kind == "Namespace":
        root.take("spec")
        return Namespace(key.name, root.section("metadata").pairs("labels", 256))
    spec = root.section("spec", required=True)
    if key.kind == "BaseModel":
        return read_base_model(spec, ref, generation=generation, created=created, base_dir=base_dir)
    if key.kind == "LoRAAdapter":
        return _adapter(spec, ref, generation, created, base_dir)
    return _tenant(spec, key.name, generation, created)


def _wrong_kind(kind: object, api_version: object) -> tuple[str, str] | tuple[()]:
    if not isinstance(kind, str) or not isinstance(api_version, str):
        missing = ".kind" if not isinstance(kind, str) else ".apiVersion"
        return missing, "is required and must be text"
    if kind not in API_VERSIONS:
        return ".kind", f"unknown kind {kind!r}{suggestion(kind, API_VERSIONS)}"
    if api_version != API_VERSIONS[kind]:
        return ".apiVersion", f"must be {API_VERSIONS[kind]} for a {kind}, not {api_version!r}"
    return ()


def _where(where: str, kind: object, metadata: object) -> str:
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    namespace = metadata.get("namespace") if isinstance(metadata, Mapping) else None
    scope = "" if kind in CLUSTER_SCOPED else f"{namespace or 'default'}/"
    text = f"{kind} {scope}{name or '(no name)'}" if isinstance(kind, str) else "a document"
    return f"{where}: {text}" if where else text


def _metadata(root: Fields, kind: str) -> tuple[ObjectKey, int, str]:
    fields = root.section("metadata", required=True)
    name = read_name(fields, required=root.has("metadata"), most=NAME_LENGTHS.get(kind, 253))
    if kind in CLUSTER_SCOPED:
        namespace = ""
        if fields.take("namespace") is not None:
            fields.wrong("namespace", f"a {kind} belongs to the whole cluster: remove its namespace")
    else:
        namespace = read_namespace(fields, "default")
    for other in METADATA:
        fields.take(other)
    fields.close()
    generation = fields.take("generation")
    created = str(fields.take("creationTimestamp") or "")
    return ObjectKey(kind, namespace, name), generation if isinstance(generation, int) else 1, created


def _adapter(spec: Fields, ref: Ref, generation: int, created: str, base_dir: str) -> Adapter:
    base = spec.section("baseModelRef", required=True)
    named = spec.has("baseModelRef")
    copies = spec.section("copies")
    least = copies.integer("min", 1, 64, 1) or 1
    most = copies.integer("max", 1, 64)
    if most is not None and most < least:
        copies.wrong("", f"min ({least}) must not exceed max ({most})")
    adapter = Adapter(
        ref=ref,
        base=Ref(read_namespace(base, ref.namespace), read_name(base, required=named, most=52)),
        served_name=read_served_name(spec, ref.name),
        source=read_source(spec, ref.namespace, base_dir),
        copies_min=least,
        copies_max=max(most or 1, least),
        priority=spec.integer("priority", -1000000, 1000000, 0) or 0,
        pinned=spec.boolean("pinned", False),
        merge=spec.choice("merge", ("Auto", "Never", "Always"), "Auto"),  # type: ignore[arg-type]  # choice checks
        generation=generation,
        created=created,
    )
    for fields in (base, copies, spec):
        fields.close()
    return adapter


def _tenant(spec: Fields, name: str, generation: int, created: str) -> Tenant:
    namespaces = tuple(_namespaces(spec))
    keys = tuple(_api_key(item) for item in spec.sections("apiKeys", 16))
    models = tuple(_model(item) for item in spec.sections("models", 64))
    for field_name, values in (("namespaces", namespaces), ("apiKeys", keys), ("models", models)):
        if len(set(values)) < len(values):
            spec.wrong(field_name, "an entry appears twice: remove one")
    tenant = Tenant(
        name=name,
        namespaces=namespaces,
        api_keys=keys,
        weight=spec.integer("weight", 1, 1000, 1) or 1,
        quota=_quota(spec.section("quota")),
        models=models,
        generation=generation,
        created=created,
    )
    spec.close()
    return tenant


def _namespaces(spec: Fields) -> list[str]:
    names = []
    for path, item in spec.items("namespaces", 64):
        names.append(checked_text(item, path, spec.sink, 63, DNS_LABEL, DNS_LABEL_SAYS))
    return names


def _api_key(item: Fields) -> SecretKeyRef:
    ref = item.section("secretRef", required=True)
    named = item.has("secretRef")
    key = SecretKeyRef(read_namespace(ref, required=named), read_name(ref, required=named), read_secret_key(ref, "key"))
    ref.close()
    item.close()
    return key


def _model(item: Fields) -> Ref:
    ref = Ref(read_namespace(item, required=True), read_name(item, most=52))
    item.close()
    return ref


def _quota(fields: Fields) -> Quota:
    quota = Quota(
        requests_per_minute=fields.integer("requestsPerMinute", 1, 1000000000),
        tokens_per_minute=fields.integer("tokensPerMinute", 1, 1000000000000),
        max_concurrent_requests=fields.integer("maxConcurrentRequests", 1, 1000000),
        max_adapters=fields.integer("maxAdapters", 0, 1000000),
        max_adapter_bytes=fields.quantity("maxAdapterBytes"),
    )
    fields.close()
    return quota


def _secret_data(root: Fields) -> dict[str, bytes]:
    """`stringData` wins over `data`, as in the Kubernetes API."""
    for name in ("type", "immutable"):
        root.take(name)
    data: dict[str, bytes] = {}
    for name in ("data", "stringData"):
        values: Any = root.take(name)
        if values is not None and not isinstance(values, Mapping):
            root.wrong(name, "must be a mapping from key to text")
            continue
        for key, value in (values or {}).items():
            if not isinstance(value, str):
                root.wrong(f"{name}.{key}", "must be text: put it in quotes")
                continue
            try:
                plain = name == "stringData"
                data[str(key)] = value.encode() if plain else base64.b64decode(value, validate=True)
            except binascii.Error:
                root.wrong(f"{name}.{key}", "must be base64: encode it, or put plain text into stringData")
    return data
