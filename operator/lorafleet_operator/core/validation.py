"""Rules between objects: what one object alone cannot know. Objects that break one are set aside, the rest goes on.

Among objects that conflict the oldest wins, then the first by name: a newcomer never takes away what serves. Not
so with keys (see `tenant_keys`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from lorafleet_operator.core.admission import adapter_findings
from lorafleet_operator.core.findings import Finding, by_age
from lorafleet_operator.core.objects import (
    BaseModel,
    Desired,
    ObjectKey,
    Problem,
    Ref,
    SetAside,
    Tenant,
)
from lorafleet_operator.core.tenant_keys import claims, key_findings, shared_keys


def check(desired: Desired) -> Mapping[ObjectKey, tuple[Problem, ...]]:
    """Every problem between objects, by the object that has it; also those that set nothing aside."""
    found: dict[ObjectKey, tuple[Problem, ...]] = {}
    for finding in _findings(desired):
        found[finding.key] = (*found.get(finding.key, ()), finding.problem)
    return found


def admit(desired: Desired) -> Desired:
    """`desired` without the objects that a rule refuses; they are in `set_aside`, and every problem in `problems`."""
    findings = list(_findings(desired))
    refused: dict[ObjectKey, SetAside] = {}
    for finding in findings:
        if finding.refuses:
            before = refused[finding.key].problems if finding.key in refused else ()
            refused[finding.key] = SetAside((*before, finding.problem), True, _generation(desired, finding.key))
    known = set(desired.problems)
    return replace(
        _without(desired, refused),
        problems=(*desired.problems, *(f.problem for f in findings if f.problem not in known)),
        set_aside={**desired.set_aside, **refused},
        shared_keys=shared_keys(desired),
    )


def _findings(desired: Desired) -> Iterator[Finding]:
    """Bases, then tenants, then adapters, each judged among what the rules before it left."""
    for rule in (_base_findings, _tenant_findings, adapter_findings):
        found = list(rule(desired))
        yield from found
        desired = _without(desired, {finding.key for finding in found if finding.refuses})


def _without(desired: Desired, keys: Iterable[ObjectKey]) -> Desired:
    gone = set(keys)
    if not gone:
        return desired
    return replace(
        desired,
        base_models={r: o for r, o in desired.base_models.items() if _key("BaseModel", r) not in gone},
        adapters={r: o for r, o in desired.adapters.items() if _key("LoRAAdapter", r) not in gone},
        tenants={n: o for n, o in desired.tenants.items() if ObjectKey("Tenant", "", n) not in gone},
    )


def _key(kind: str, ref: Ref) -> ObjectKey:
    return ObjectKey(kind, ref.namespace, ref.name)


def _generation(desired: Desired, key: ObjectKey) -> int:
    if key.kind == "Tenant":
        return desired.tenants[key.name].generation
    ref = Ref(key.namespace, key.name)
    if key.kind == "BaseModel":
        return desired.base_models[ref].generation
    return desired.adapters[ref].generation


def _base_findings(desired: Desired) -> Iterator[Finding]:
    holders: dict[tuple[str, str], BaseModel] = {}
    for base in by_age(desired.base_models.values()):
        holder = holders.setdefault((base.ref.namespace, base.served_name), base)
        if holder is not base:
            yield Finding(
                _key("BaseModel", base.ref), ".spec.servedName", "ServedNameConflict",
                f"{base.served_name!r} is already served by BaseModel {holder.ref}: choose another name",
            )  # fmt: skip


def _tenant_findings(desired: Desired) -> Iterator[Finding]:
    namespaces: dict[str, str] = {}
    claimed = claims(desired)
    for tenant in by_age(desired.tenants.values()):
        found = [*_namespace_conflicts(tenant, namespaces), *key_findings(tenant, desired, claimed)]
        yield from found
        yield from _missing_models(tenant, desired)
        if not any(finding.refuses for finding in found):  # what a refused tenant claims stays free for the next
            namespaces.update((namespace, tenant.name) for namespace in tenant.namespaces)


def _namespace_conflicts(tenant: Tenant, taken: Mapping[str, str]) -> Iterator[Finding]:
    for index, namespace in enumerate(tenant.namespaces):
        if owner := taken.get(namespace):
            yield Finding(
                ObjectKey("Tenant", "", tenant.name), f".spec.namespaces[{index}]", "NamespaceConflict",
                f"namespace {namespace} already belongs to Tenant {owner}: an adapter has one tenant",
            )  # fmt: skip


def _missing_models(tenant: Tenant, desired: Desired) -> Iterator[Finding]:
    served: dict[str, Ref] = {}
    for index, ref in enumerate(tenant.models):
        place = ObjectKey("Tenant", "", tenant.name), f".spec.models[{index}]"
        base = desired.base_models.get(ref)
        if base is None:
            if desired.complete and _key("BaseModel", ref) not in desired.set_aside:
                yield Finding(*place, "BaseModelNotFound", f"there is no BaseModel {ref}", refuses=False)
            continue
        first = served.setdefault(base.served_name, ref)
        if first != ref:
            yield Finding(
                *place, "ServedNameConflict",
                f"BaseModel {ref} has the served name {base.served_name!r} of BaseModel {first}, which wins",
                refuses=False,
            )  # fmt: skip
