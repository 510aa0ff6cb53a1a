"""The tiny fleet's folder: a random model of two layers, three random adapters of two tenants; starts in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.model.tiny_tokenizer import save_tiny_tokenizer
from tests.e2e.fleet_kit import Fleet, wait_until

CONFIG = tiny_config("llama")
CONTEXT = 512
MAX_RANK = 32
KEYS = {"acme": "sk-acme-tiny", "globex": "sk-globex-tiny"}
BASE = "tiny"
# Two tenants have an adapter that clients call by one name.
ADAPTERS = {("acme", "alpha"): "alpha", ("acme", "helper"): "helper", ("globex", "helper"): "helper"}
MODELS = {"acme": (BASE, "alpha", "helper"), "globex": (BASE, "helper")}
GROUP = "lorafleet.dev/v1alpha1"
EVERY_TARGET = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base_model(**spec: Any) -> dict[str, Any]:
    """The BaseModel `models/tiny`; `spec` replaces fields."""
    fields = {
        "source": {"uri": "file:model"}, "replicas": 1, "allowedNamespaces": {"from": "All"},
        "engine": {"dtype": "float32", "maxModelLen": CONTEXT, "maxNumSeqs": 16, "memory": "64Mi"},
        "lora": {"maxRank": MAX_RANK},
    }  # fmt: skip
    return document("BaseModel", "tiny", "models", {**fields, **spec})


def adapter(namespace: str, name: str, served_name: str = "", **spec: Any) -> dict[str, Any]:
    """A LoRAAdapter whose files lie in `adapters/NAMESPACE-NAME`; `spec` replaces fields."""
    fields = {
        "baseModelRef": {"namespace": "models", "name": "tiny"},
        "servedName": served_name or name,
        "source": {"uri": f"file:adapters/{namespace}-{name}"},
    }
    return document("LoRAAdapter", name, namespace, {**fields, **spec})


def document(kind: str, name: str, namespace: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace} if namespace else {"name": name}
    return {"apiVersion": GROUP, "kind": kind, "metadata": metadata, "spec": dict(spec)}


def tenants() -> list[dict[str, Any]]:
    """Both tenants and their keys."""
    found: list[dict[str, Any]] = []
    for name, key in KEYS.items():
        ref = {"namespace": name, "name": f"{name}-key", "key": "key"}
        spec = {
            "namespaces": [name], "models": [{"namespace": "models", "name": "tiny"}],
            "apiKeys": [{"secretRef": ref}],
        }  # fmt: skip
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": f"{name}-key", "namespace": name}}
        found += [document("Tenant", name, "", spec), {**secret, "stringData": {"key": key}}]
    return found


def text(*documents: Mapping[str, Any]) -> str:
    return yaml.safe_dump_all(documents, sort_keys=False)


def weights(folder: Path, namespace: str, name: str, **options: Any) -> Path:
    """A random adapter's files, where `adapter` looks for them; options as `random_adapter`'s."""
    return save_adapter(folder / "adapters" / f"{namespace}-{name}", random_adapter(CONFIG, **options))


def write(folder: Path) -> Path:
    """The whole fleet; each adapter has a YAML file of its own."""
    save_tiny_tokenizer(save_tiny_model(folder / "model", CONFIG, seed=4))
    (folder / "base.yaml").write_text(text(base_model()))
    (folder / "tenants.yaml").write_text(text(*tenants()))
    weights(folder, "acme", "alpha", rank=4, seed=1)
    weights(folder, "acme", "helper", rank=16, targets=EVERY_TARGET, seed=2, rslora=True, strength=0.5)
    weights(folder, "globex", "helper", rank=8, targets=("q_proj", "o_proj", "down_proj"), seed=3)
    for (namespace, name), served in ADAPTERS.items():
        (folder / f"{namespace}-{name}.yaml").write_text(text(adapter(namespace, name, served)))
    return folder


def wait_until_settled(fleet: Fleet) -> None:
    """Return when the fleet is what its files declare, whatever an earlier test did to it."""

    def settled() -> bool:
        found = fleet.document()
        ready = {row["id"] for row in found.get("adapters", ()) if row["state"] == "Ready"}
        return len(fleet.replicas()) == 1 and ready == {f"{namespace}.{name}" for namespace, name in ADAPTERS}

    wait_until(settled, 60, "a settled fleet")
