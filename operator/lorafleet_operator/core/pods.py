"""A pod, as the API describes it, told as the facts that a replica needs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorafleet_operator.core.identity import Ref
from lorafleet_operator.core.manifests import ADAPTERS_GATE, BASE_MODEL_LABEL, CHEAPEST, DELETION_COST, SPEC_HASH

WAITING_FAILURES = (
    "CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError",
    "CreateContainerError", "RunContainerError",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PodFacts:
    """`failure` is why the pod does not come up, for people; empty while there is hope. `gate`: its adapters were
    there once; `cheapest`: it is the one to delete. `created` is RFC 3339."""

    name: str
    uid: str
    base: Ref
    spec_hash: str
    ip: str
    created: str
    leaving: bool
    running: bool
    failure: str
    restarts: int
    gate: bool
    cheapest: bool


def pod_facts(pod: Mapping[str, Any]) -> PodFacts | None:
    """None for a pod that is none of ours."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    annotations = metadata.get("annotations") or {}
    base = (metadata.get("labels") or {}).get(BASE_MODEL_LABEL)
    if not base:
        return None
    container: Mapping[str, Any] = next(
        (c for c in status.get("containerStatuses") or () if c.get("name") == "runtime"), {}
    )
    gates = {c.get("type"): c.get("status") for c in status.get("conditions") or ()}
    return PodFacts(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        base=Ref(metadata.get("namespace", ""), base),
        spec_hash=annotations.get(SPEC_HASH, ""),
        ip=status.get("podIP") or "",
        created=metadata.get("creationTimestamp") or "",
        leaving=bool(metadata.get("deletionTimestamp")) or status.get("phase") in ("Succeeded", "Failed"),
        running="running" in (container.get("state") or {}),
        failure=_failure(status, container),
        restarts=int(container.get("restartCount") or 0),
        gate=gates.get(ADAPTERS_GATE) == "True",
        cheapest=annotations.get(DELETION_COST) == CHEAPEST,
    )


def replica_names(pods: Iterable[PodFacts]) -> dict[str, PodFacts]:
    """Each pod under the name that its replica has: the pod's own; with the namespace in front where an older pod of
    another namespace has that name already. Two Deployments may draw the same suffix."""
    found: dict[str, PodFacts] = {}
    for pod in sorted(pods, key=lambda pod: (pod.created, pod.base.namespace, pod.name)):
        found[pod.name if pod.name not in found else f"{pod.base.namespace}.{pod.name}"] = pod
    return found


def _failure(status: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    waiting = (container.get("state") or {}).get("waiting") or {}
    if waiting.get("reason") in WAITING_FAILURES:
        ended = (container.get("lastState") or {}).get("terminated") or {}
        said = ended.get("message") or waiting.get("message") or ""
        code = f", its container ended with status {ended['exitCode']}" if "exitCode" in ended else ""
        return f"{waiting['reason']}{code}{': ' + said.strip() if said else ''}"
    if status.get("phase") == "Failed":
        return f"{status.get('reason') or 'Failed'}: {status.get('message') or 'the pod has failed'}"
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"{condition.get('reason')}: {condition.get('message')}"
    return ""
