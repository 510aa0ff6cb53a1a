"""The rules between an adapter and the rest: its base model, its tenant's names, its tenant's quota."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lorafleet_operator.core.findings import Finding, by_age
from lorafleet_operator.core.objects import Adapter, BaseModel, Desired, ObjectKey, Ref, Tenant


def adapter_findings(desired: Desired) -> Iterator[Finding]:
    """Broken rules of adapters, the oldest adapter judged first. Expects bases and tenants already judged."""
    owners = owners_by_namespace(desired)
    served: dict[tuple[str, str], Adapter] = {}
    counts: dict[str, int] = {}
    for adapter in by_age(desired.adapters.values()):
        owner = owners.get(adapter.ref.namespace)
        found = [
            *_base_findings(adapter, desired),
            *_base_name_conflicts(adapter, owner, desired),
            *_name_conflicts(adapter, owner, served),
        ]
        if owner is not None and not any(finding.refuses for finding in found):
            found += _quota_findings(adapter, owner, counts)
        yield from found
        if not any(finding.refuses for finding in found):
            served[_scope(adapter, owner), adapter.served_name] = adapter
            if owner is not None:
                counts[owner.name] = counts.get(owner.name, 0) + 1


def owners_by_namespace(desired: Desired) -> dict[str, Tenant]:
    """The tenant of each namespace that has one."""
    return {namespace: tenant for tenant in desired.tenants.values() for namespace in tenant.namespaces}


def _key(adapter: Adapter) -> ObjectKey:
    return ObjectKey("LoRAAdapter", adapter.ref.namespace, adapter.ref.name)


def _scope(adapter: Adapter, owner: Tenant | None) -> str:
    """Within what a served name must be unique: the tenant, or the namespace while it belongs to nobody."""
    return f"tenant {owner.name}" if owner is not None else f"namespace {adapter.ref.namespace}"


def _base_findings(adapter: Adapter, desired: Desired) -> Iterator[Finding]:
    base = desired.base_models.get(adapter.base)
    if base is None:
        yield _missing_base(adapter, desired)
        return
    if not allows(base, adapter.ref.namespace, desired.namespace_labels):
        yield Finding(
            _key(adapter), ".spec.baseModelRef", "NamespaceNotAllowed",
            f"BaseModel {base.ref} takes no adapters from namespace {adapter.ref.namespace}: its owner must add it "
            "to .spec.allowedNamespaces",
        )  # fmt: skip
    if not adapter.source.uri.startswith("pvc://"):
        return
    volumes = [volume["name"] for volume in base.runtime.get("artifactVolumes", ())]
    volume = adapter.source.uri.removeprefix("pvc://").split("/", 1)[0]
    if volume not in volumes:
        yield Finding(
            _key(adapter), ".spec.source.uri", "VolumeNotDeclared",
            f"BaseModel {base.ref} declares no artifact volume {volume!r} (it has {', '.join(volumes) or 'none'})",
        )  # fmt: skip


def _missing_base(adapter: Adapter, desired: Desired) -> Finding:
    place = _key(adapter), ".spec.baseModelRef"
    aside = desired.set_aside.get(ObjectKey("BaseModel", adapter.base.namespace, adapter.base.name))
    if (aside is not None and not aside.readable) or not desired.complete:
        message = f"BaseModel {adapter.base} cannot be read now: what is loaded stays"
        return Finding(*place, "BaseModelUnreadable", message, refuses=False)
    near = [str(ref) for ref in sorted(desired.base_models) if ref.name == adapter.base.name]
    hint = f"; there is {', '.join(near)}" if near else ""
    return Finding(*place, "BaseModelNotFound", f"there is no BaseModel {adapter.base}{hint}")


def allows(base: BaseModel, namespace: str, labels: Mapping[str, Mapping[str, str]]) -> bool:
    """Does the base model take adapters from this namespace? Every namespace has its name as a label."""
    allowed = base.allowed_namespaces
    if namespace == base.ref.namespace or allowed.from_ == "All":
        return True
    if allowed.from_ == "Same":
        return False
    has = {**labels.get(namespace, {}), "kubernetes.io/metadata.name": namespace}
    return all(has.get(key) == value for key, value in allowed.selector.items())


def _base_name_conflicts(adapter: Adapter, owner: Tenant | None, desired: Desired) -> Iterator[Finding]:
    models: tuple[Ref, ...] = owner.models if owner is not None else ()
    for ref in models:
        base = desired.base_models.get(ref)
        if owner is not None and base is not None and base.served_name == adapter.served_name:
            yield Finding(
                _key(adapter), ".spec.servedName", "ServedNameConflict",
                f"{adapter.served_name!r} is the served name of BaseModel {ref}, which Tenant {owner.name} may call: "
                "choose another name",
            )  # fmt: skip


def _name_conflicts(
    adapter: Adapter, owner: Tenant | None, served: Mapping[tuple[str, str], Adapter]
) -> Iterator[Finding]:
    scope = _scope(adapter, owner)
    holder = served.get((scope, adapter.served_name))
    if holder is not None:
        yield Finding(
            _key(adapter), ".spec.servedName", "ServedNameConflict",
            f"{adapter.served_name!r} is already served by LoRAAdapter {holder.ref} in {scope}: choose another name",
        )  # fmt: skip


def _quota_findings(adapter: Adapter, owner: Tenant, counts: Mapping[str, int]) -> Iterator[Finding]:
    most = owner.quota.max_adapters
    if most is not None and counts.get(owner.name, 0) >= most:
        yield Finding(
            _key(adapter), "", "QuotaExceeded",
            f"Tenant {owner.name} may have {most} adapters (.spec.quota.maxAdapters), and older ones use them up",
        )  # fmt: skip
