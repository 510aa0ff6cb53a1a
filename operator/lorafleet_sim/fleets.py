"""Short ways to write fleets, for simulations and tests: objects with everything defaulted but what matters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lorafleet_operator.core.actions import LoadAdapter, Plan, StartReplica, StopReplica, UnloadAdapter
from lorafleet_operator.core.objects import (
    Adapter,
    Artifact,
    BaseModel,
    Desired,
    Observed,
    Ref,
    Replica,
    Resident,
    Secret,
    SecretKeyRef,
    Source,
    Tenant,
    Unresolved,
)
from lorafleet_operator.core.rollout import spec_hash
from lorafleet_sim.world import artifact_of

BASE = Ref("models", "smollm2")


def base_model(replicas: int = 1, ref: Ref = BASE, uri: str = "package://weights/base.gguf", **more: Any) -> BaseModel:
    """A base model that takes adapters from everywhere."""
    return BaseModel(ref, more.pop("served_name", f"{ref.name}-135m"), Source(uri), replicas, **more)


def adapter(name: str = "pirate", namespace: str = "acme", base: Ref = BASE, uri: str = "", **more: Any) -> Adapter:
    """An adapter whose content is named by its URI."""
    source = Source(uri or f"file:adapters/{namespace}/{name}")
    return Adapter(Ref(namespace, name), base, more.pop("served_name", name), source, **more)


def tenant(name: str = "acme", namespaces: Iterable[str] = ("acme",), **more: Any) -> Tenant:
    """A tenant with one key, `Secret NAME/NAME-key`."""
    keys = more.pop("api_keys", (SecretKeyRef(name, f"{name}-key", "key"),))
    return Tenant(name, tuple(namespaces), keys, **more)


def secret(name: str = "acme", value: bytes = b"sk-acme") -> Secret:
    """The Secret that `tenant(name)` names."""
    return Secret(Ref(name, f"{name}-key"), {"key": value})


def desired(*objects: BaseModel | Adapter | Tenant | Secret, **more: Any) -> Desired:
    """These objects, and nothing else."""
    return Desired(
        base_models={o.ref: o for o in objects if isinstance(o, BaseModel)},
        adapters={o.ref: o for o in objects if isinstance(o, Adapter)},
        tenants={o.name: o for o in objects if isinstance(o, Tenant)},
        secrets={o.ref: o for o in objects if isinstance(o, Secret)},
        **more,
    )


def found(owner: BaseModel | Adapter) -> Artifact:
    """The artifact at its source."""
    return artifact_of(owner.source.uri, 48 * 1024)


def replica(base: BaseModel, index: int = 0, *residents: Resident, **more: Any) -> Replica:
    """A Ready replica with the base model's present settings."""
    settings = {
        "state": "Ready", "spec_hash": spec_hash(base, found(base)), "incarnation": f"process-{index}",
        "url": f"http://127.0.0.1:{41001 + index}", "pages_total": 4096, "pages_free": 4096, **more,
    }  # fmt: skip
    return Replica(f"{base.ref.name}-{index}", base.ref, index, residents=residents, **settings)


def resident(owner: Adapter, state: Any = "Ready", reason: str = "", revision: str = "", message: str = "") -> Resident:
    """The adapter's wanted revision, or another, on a replica."""
    ready: dict[str, int] = {"rank": 8, "pages": 12, "bytes": 49152} if state == "Ready" else {}
    return Resident(owner.ref, revision or found(owner).revision, state, reason, message, **ready)


def observed(wanted: Desired, *replicas: Replica, **more: Any) -> Observed:
    """These replicas, and every source resolved."""
    artifacts: dict[Ref, Artifact | Unresolved] = {r: found(a) for r, a in wanted.adapters.items()}
    bases: dict[Ref, Artifact | Unresolved] = {r: found(b) for r, b in wanted.base_models.items()}
    artifacts |= more.pop("artifacts", {})
    bases |= more.pop("base_artifacts", {})
    return Observed({r.name: r for r in replicas}, artifacts, bases, **more)


def brief(decided: Plan) -> list[str]:
    """A plan in short: +start, -stop, >load and <unload, each with its replica and adapter."""
    lines: list[str] = []
    for action in decided.actions:
        match action:
            case StartReplica():
                lines.append(f"+{action.replica}")
            case StopReplica():
                lines.append(f"-{action.replica}")
            case LoadAdapter():
                lines.append(f">{action.replica} {action.adapter.wire_id}")
            case UnloadAdapter():
                lines.append(f"<{action.replica} {action.adapter_id}")
    return lines
