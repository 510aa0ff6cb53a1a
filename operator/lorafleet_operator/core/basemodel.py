"""BaseModel: from a document's `spec` to the object. Defaults and rules equal the CRD's."""

from __future__ import annotations

from typing import Any, Literal, cast

from lorafleet_operator.core.fairness import read_fairness
from lorafleet_operator.core.fields import Fields
from lorafleet_operator.core.names import DNS_LABEL, DNS_LABEL_SAYS, read_served_name, read_source
from lorafleet_operator.core.objects import AllowedNamespaces, BaseModel, Engine, Lora, Ref

RESOURCE = r"[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?"


def read_base_model(spec: Fields, ref: Ref, *, generation: int, created: str, base_dir: str) -> BaseModel:
    """The object that `spec` describes; mistakes go to its sink."""
    base = BaseModel(
        ref=ref,
        served_name=read_served_name(spec, ref.name),
        source=read_source(spec, ref.namespace, base_dir),
        replicas=spec.integer("replicas", 0, 256, 1) or 0,
        engine=_engine(spec.section("engine")),
        lora=_lora(spec.section("lora")),
        fairness=read_fairness(spec.section("fairness")),
        migration=_migration(spec.section("migration")),
        runtime=_runtime(spec.section("runtime")),
        allowed_namespaces=_allowed_namespaces(spec.section("allowedNamespaces")),
        generation=generation,
        created=created,
    )
    spec.close()
    return base


def _engine(fields: Fields) -> Engine:
    default = Engine()
    engine = Engine(
        dtype=cast(Any, fields.choice("dtype", ("auto", "float32", "bfloat16", "float16"), default.dtype)),
        kv_dtype=cast(Any, fields.choice("kvDtype", ("auto", "fp8"), default.kv_dtype)),
        max_model_len=fields.integer("maxModelLen", 16, 1048576) or default.max_model_len,
        max_num_seqs=fields.integer("maxNumSeqs", 1, 4096) or default.max_num_seqs,
        max_batched_tokens=fields.integer("maxBatchedTokens", 1, 131072) or default.max_batched_tokens,
        memory_bytes=fields.quantity("memory"),
        memory_fraction=fields.number("memoryFraction", 0.01, 1),
        tensor_parallel=fields.integer("tensorParallel", 1, 64) or default.tensor_parallel,
        prefix_caching=fields.boolean("prefixCaching", default.prefix_caching),
        speculative_tokens=fields.integer("speculativeTokens", 0, 16) or default.speculative_tokens,
        adapter_dtype=cast(Any, fields.choice("adapterDtype", ("auto", "fp8"), default.adapter_dtype)),
    )
    if fields.has("memory") and fields.has("memoryFraction"):
        fields.wrong("", "memory and memoryFraction exclude each other: remove one")
    if engine.adapter_dtype == "fp8" and engine.tensor_parallel > 1:
        why = "several ranks run on CPUs, whose operations read no fp8"
        fields.wrong("adapterDtype", f"fp8 needs tensorParallel 1: {why}")
    if engine.max_batched_tokens < engine.max_num_seqs:
        fields.wrong("", "maxBatchedTokens must be at least maxNumSeqs: a step decodes one token of each")
    fields.close()
    return engine


def _lora(fields: Fields) -> Lora:
    rank = fields.integer("maxRank", 1, 1024, Lora().max_rank)
    merge = cast(Literal["Auto", "Never"], fields.choice("merge", ("Auto", "Never"), "Auto"))
    lora = Lora(rank or 0, merge, fields.quantity("hostMemory"))
    fields.close()
    return lora


def _migration(fields: Fields) -> dict[str, Any]:
    migration: dict[str, Any] = {
        "enabled": fields.boolean("enabled", False),
        "hi": fields.number("hi", 0, 1, 0.85),
        "lo": fields.number("lo", 0, 1, 0.65),
        "dwellSeconds": fields.integer("dwellSeconds", 0, 86400, 60),
        "cooldownSeconds": fields.integer("cooldownSeconds", 0, 86400, 120),
    }
    if migration["lo"] >= migration["hi"]:
        fields.wrong("", "lo must be below hi: between them nothing moves")
    fields.close()
    return migration


def _allowed_namespaces(fields: Fields) -> AllowedNamespaces:
    from_ = fields.choice("from", ("Same", "All", "Selector"), "Same")
    selector = fields.section("selector")
    labels = selector.pairs("matchLabels", 16)
    if fields.has("selector") and not labels:
        selector.wrong("matchLabels", "must hold at least one label: an empty selector allows nobody")
    if (from_ == "Selector") != fields.has("selector"):
        fields.wrong("", "selector belongs to from: Selector, which needs one")
    selector.close()
    fields.close()
    return AllowedNamespaces(cast(Literal["Same", "All", "Selector"], from_), labels)


def _runtime(fields: Fields) -> dict[str, Any]:
    runtime: dict[str, Any] = {
        "image": fields.text("image", most=512, pattern=r"[^\s]+", expected="an image, without spaces"),
        "runtimeClassName": _label(fields, "runtimeClassName"),
        "resources": _resources(fields.section("resources")),
        "nodeSelector": fields.pairs("nodeSelector", 32),
        "tolerations": [_toleration(item) for item in fields.sections("tolerations", 32)],
        "artifactVolumes": _volumes(fields),
        "updateStrategy": fields.choice("updateStrategy", ("Surge", "Replace"), "Surge"),
        "drainSeconds": fields.integer("drainSeconds", 0, 3600, 30),
    }
    fields.close()
    return {name: value for name, value in runtime.items() if value not in (None, [], {})}


def _label(fields: Fields, name: str, *, required: bool = False) -> str | None:
    return fields.text(name, required=required, most=63, pattern=DNS_LABEL, expected=DNS_LABEL_SAYS)


def _volumes(fields: Fields) -> list[dict[str, Any]]:
    volumes = []
    for item in fields.sections("artifactVolumes", 16):
        name, claim = _label(item, "name", required=True), _label(item, "claimName", required=True)
        item.close()
        volumes.append({"name": name, "claimName": claim})
    names = [volume["name"] for volume in volumes]
    if len(set(names)) < len(names):
        fields.wrong("artifactVolumes", "two volumes have the same name")
    return volumes


def _resources(fields: Fields) -> dict[str, Any]:
    resources = {name: _quantities(fields, name) for name in ("requests", "limits")}
    fields.close()
    return {name: value for name, value in resources.items() if value}


def _quantities(fields: Fields, name: str) -> dict[str, Any]:
    quantities = fields.section(name)
    value = fields.take(name)
    names = list(value) if isinstance(value, dict) else []
    if len(names) > 16:
        fields.wrong(name, f"has {len(names)} entries; at most 16 are allowed")
    read: dict[str, Any] = {}
    for key in names:
        if isinstance(value[key], int) and not isinstance(value[key], bool) and value[key] >= 0:
            read[key] = value[key]
        else:
            read[key] = quantities.text(key, most=32, pattern=RESOURCE, expected="a quantity, as 500m or 24Gi")
    return read


def _toleration(fields: Fields) -> dict[str, Any]:
    toleration = {
        "key": fields.text("key", most=316),
        "operator": fields.choice("operator", ("Exists", "Equal"), "Equal"),
        "value": fields.text("value", most=63),
        "effect": fields.choice("effect", ("NoSchedule", "PreferNoSchedule", "NoExecute"), ""),
        "tolerationSeconds": fields.integer("tolerationSeconds", 0, 2147483647),
    }
    if toleration["operator"] == "Exists" and fields.has("value"):
        fields.wrong("", "operator Exists takes no value")
    fields.close()
    return {name: value for name, value in toleration.items() if value not in (None, "")}
