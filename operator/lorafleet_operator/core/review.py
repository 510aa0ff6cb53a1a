"""Should the API take this object? The rules between objects, asked before it is stored. Pure.

The sentences are those that conditions would carry later. Refused is only what is wrong now and whatever else is
applied: a base model that is not there may be the next document of the same file, so that is a warning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lorafleet_operator.core import api
from lorafleet_operator.core.limits import adapter_limits, base_model_limits
from lorafleet_operator.core.objects import (
    Adapter,
    BaseModel,
    Desired,
    ObjectKey,
    Problem,
    Problems,
    Ref,
    Secret,
    Tenant,
    Unresolved,
)
from lorafleet_operator.core.validation import admit

Declared = BaseModel | Adapter | Tenant
Document = Mapping[str, Any]

YOUNGEST = "~"
"""Sorts after every time: whoever is reviewed claims last, so that nobody takes away what another one holds."""
LATER = ("BaseModelNotFound", "BaseModelUnreadable", "KeyMissing")
HARMS_OTHERS = ("KeyConflict",)
"""Not reason enough to do without a stored object, but not to be stored: the other tenant would lose its key too."""
OTHERS = 5
NOT_READ_YET = (
    "lorafleet's operator has not read the cluster yet, so rules between objects were not checked: "
    "the object's conditions will say"
)


@dataclass(frozen=True, slots=True)
class Review:
    """Why the object is refused, if it is, and what its author should know."""

    refusals: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def allowed(self) -> bool:
        return not self.refusals

    @property
    def clean(self) -> bool:
        """Is there nothing to say?"""
        return not self.refusals and not self.warnings


@dataclass(frozen=True, slots=True)
class _Judgement:
    """What rules say about a fleet that holds one form of the object."""

    refused: Mapping[ObjectKey, tuple[Problem, ...]]
    noted: tuple[Problem, ...]


def review(desired: Desired, document: Document, old: Document | None = None) -> Review:
    """The verdict on `document`, which is new or takes the place of `old`.

    An update is refused for what it makes worse only: an object that broke a rule before may still be edited.
    """
    found = _read(document)
    if isinstance(found, Problems):
        return Review(warnings=tuple(f"lorafleet's operator cannot read this: {p}" for p in found.problems))
    if found is None:
        return Review()
    before = _read(old) if old is not None else None
    if isinstance(before, Problems):
        before = None
    if before is not None and _same(before, found):
        return Review()
    if not desired.complete:
        return Review(warnings=(NOT_READ_YET,))
    key = api.key_of(found)
    near = _near(desired, key, [form for form in (before, found) if form is not None])
    now, then = _judged(near, key, found), _judged(near, key, before)
    wrong = [p for p in now.refused.get(key, ()) if p not in then.refused.get(key, ())]
    noted = [p for p in now.noted if p not in then.noted and p.where == str(key)]
    warned = [p for p in wrong if p.reason in LATER] + noted
    refusals = [p for p in wrong if p.reason not in LATER] + [p for p in noted if p.reason in HARMS_OTHERS]
    warned = [p for p in warned if p not in refusals]
    return Review(tuple(map(str, refusals)), (*map(str, warned), *_others(key, now, then)))


def _read(document: Document) -> Declared | Problems | None:
    found = api.read(document)
    return found if isinstance(found, (BaseModel, Adapter, Tenant, Problems)) else None


def _same(one: Declared, other: Declared) -> bool:
    """Do two forms of an object declare the same? Its metadata is no declaration."""
    return replace(one, generation=0, created="") == replace(other, generation=0, created="")


def _near(desired: Desired, key: ObjectKey, forms: Iterable[Declared]) -> Desired:
    """What the rules need to judge this object: of ten thousand adapters only those whose names or quota it touches.
    Without the object's own form."""
    touched = {namespace for form in forms for namespace in _namespaces(form, desired)}
    touched |= {n for tenant in desired.tenants.values() if touched & set(tenant.namespaces) for n in tenant.namespaces}
    ref = Ref(key.namespace, key.name)
    return replace(
        desired,
        base_models={r: o for r, o in desired.base_models.items() if (key.kind, r) != ("BaseModel", ref)},
        adapters={
            r: o for r, o in desired.adapters.items()
            if r.namespace in touched and (key.kind, r) != ("LoRAAdapter", ref)
        },
        tenants={n: o for n, o in desired.tenants.items() if (key.kind, n) != ("Tenant", key.name)},
        set_aside={k: entry for k, entry in desired.set_aside.items() if k != key},
        problems=(),
    )  # fmt: skip


def _namespaces(form: Declared, desired: Desired) -> Iterator[str]:
    if isinstance(form, Tenant):
        yield from form.namespaces
        return
    if isinstance(form, Adapter):
        yield form.ref.namespace
        return
    yield from (ref.namespace for ref, adapter in desired.adapters.items() if adapter.base == form.ref)
    yield from (n for tenant in desired.tenants.values() if form.ref in tenant.models for n in tenant.namespaces)


def _judged(near: Desired, key: ObjectKey, form: Declared | None) -> _Judgement:
    admitted = admit(_with(near, form))
    refused = {k: entry.problems for k, entry in admitted.set_aside.items() if entry.readable}
    noted = [p for p in admitted.problems if not any(p in problems for problems in refused.values())]
    if (limit := _limits(form)) is not None:
        refused[key] = (*refused.get(key, ()), Problem(str(key), "", limit.message, limit.reason))
    return _Judgement(refused, tuple(noted))


def _with(near: Desired, form: Declared | None) -> Desired:
    match form:
        case BaseModel():
            return replace(near, base_models={**near.base_models, form.ref: replace(form, created=YOUNGEST)})
        case Adapter():
            return replace(near, adapters={**near.adapters, form.ref: replace(form, created=YOUNGEST)})
        case Tenant():
            tenants = {**near.tenants, form.name: replace(form, created=YOUNGEST)}
            return replace(near, tenants=tenants, secrets={**_unread(form), **near.secrets})
    return near


def _unread(tenant: Tenant) -> dict[Ref, Secret]:
    """A Secret is read once a stored Tenant names it; until then, it is taken to be there, and unlike all others."""
    found: dict[Ref, Secret] = {}
    for ref in tenant.api_keys:
        where = Ref(ref.namespace, ref.name)
        known = found[where].data if where in found else {}
        found[where] = Secret(where, {**known, ref.key: f"not read: {where} {ref.key}".encode()})
    return found


def _limits(form: Declared | None) -> Unresolved | None:
    if isinstance(form, BaseModel):
        return base_model_limits(form)
    return adapter_limits(form) if isinstance(form, Adapter) else None


def _others(key: ObjectKey, now: _Judgement, then: _Judgement) -> Iterator[str]:
    """What would be refused from now on because of this object."""
    broken = [
        problem for other, problems in now.refused.items() if other != key
        for problem in problems if problem not in then.refused.get(other, ())
    ]  # fmt: skip
    yield from (f"with this, another object is refused: {problem}" for problem in broken[:OTHERS])
    if len(broken) > OTHERS:
        yield f"with this, {len(broken) - OTHERS} more objects are refused"
