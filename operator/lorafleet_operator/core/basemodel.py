"""BaseModel: from a document's `spec` to the object. Defaults and rules equal the CRD's."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, cast

from lorafleet_operator.core.fields import Fields
from lorafleet_operator.core.names import DNS_LABEL, DNS_LABEL_SAYS, read_served_name, read_source
from lorafleet_operator.core.objects import AllowedNamespaces, BaseModel, Engine, Lora, Ref

POLICIES = ("VTC", "FCFS", "LCF", "RPM", "DRR", "DLPM")
COSTS = ("Linear", "Quadratic", "Piecewise", "Profiled")
QUADRATIC_ONLY = ("product", "outputSquared", "constant")
TABLES = ("inputTable", "outputTable")
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
        fairness=_fairness(spec.section("fairness")),
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
        max_model_len=fields.integer("maxModelLen", 16, 1048576) or default.max_model_len,
        max_num_seqs=fields.integer("maxNumSeqs", 1, 4096) or default.max_num_seqs,
        max_batched_tokens=fields.integer("maxBatchedTokens", 1, 131072) or default.max_batched_tokens,
        memory_bytes=fields.quantity("memory"),
        memory_fraction=fields.number("memoryFraction", 0.01, 1),
        tensor_parallel=fields.integer("tensorParallel", 1, 64) or default.tensor_parallel,
        prefix_caching=fields.boolean("prefixCaching", default.prefix_caching),
    )
    if fields.has("memory") and fields.has("memoryFraction"):
        fields.wrong("", "memory and memoryFraction exclude each other: remove one")
    if engine.max_batched_tokens < engine.max_num_seqs:
        fields.wrong("", "maxBatchedTokens must be at least maxNumSeqs: a step decodes one token of each")
    fields.close()
    return engine


def _lora(fields: Fields) -> Lora:
    rank = fields.integer("maxRank", 1, 1024, Lora().max_rank)
    lora = Lora(rank or 0, cast(Literal["Auto", "Never"], fields.choice("merge", ("Auto", "Never"), "Auto")))
    fields.close()
    return lora


def _fairness(fields: Fields) -> dict[str, Any]:
    policy = fields.choice("policy", POLICIES, "VTC")
    fairness: dict[str, Any] = {"policy": policy, "cost": _cost(fields.section("cost"))}
    abort = fields.section("earlyAbort")
    seconds = abort.number("ttftSeconds", 0.01, 3600)
    if fields.has("earlyAbort") and not abort.has("ttftSeconds"):
        abort.wrong("ttftSeconds", "is required")
    abort.close()
    fields.close()
    return fairness if seconds is None else {**fairness, "earlyAbort": {"ttftSeconds": seconds}}


def _cost(fields: Fields) -> dict[str, Any]:
    kind = fields.choice("kind", COSTS, "Linear")
    weights = {name: fields.number(name, 0, 1e6) for name in ("input", "output", *QUADRATIC_ONLY)}
    tables = {name: _table(fields, name) for name in TABLES}
    if kind not in ("Linear", "Quadratic") and (fields.has("input") or fields.has("output")):
        fields.wrong("", "input and output belong to the kinds Linear and Quadratic")
    if kind != "Quadratic" and any(fields.has(name) for name in QUADRATIC_ONLY):
        fields.wrong("", "product, outputSquared and constant belong to the kind Quadratic")
    if any(fields.has(name) != (kind == "Piecewise") for name in TABLES):
        fields.wrong("", "inputTable and outputTable belong to the kind Piecewise, which needs both")
    fields.close()
    written = {name: value for name, value in {**weights, **tables}.items() if value not in (None, [])}
    linear = {"input": 1, "output": 2} if kind in ("Linear", "Quadratic") else {}
    return {"kind": kind, **linear, **written}


def _table(fields: Fields, name: str) -> list[dict[str, float]]:
    points = []
    for item in fields.sections(name, 32):
        tokens, cost = item.integer("tokens", 0, 1048576), item.number("cost", 0, 1e9)
        for key in ("tokens", "cost"):
            if not item.has(key):
                item.wrong(key, "is required")
        item.close()
        points.append({"tokens": float(tokens or 0), "cost": float(cost or 0)})
    if fields.has(name) and not points:
        fields.wrong(name, "must hold at least one point")
    points.sort(key=lambda point: point["tokens"])
    if any(a["tokens"] == b["tokens"] or a["cost"] > b["cost"] for a, b in pairwise(points)):
        fields.wrong(name, "each point must have tokens of its own, and cost must not fall as tokens rise")
    return points


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
