"""From documents to what is desired: one object per identity, and nothing lost because of a neighbour's mistake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from lorafleet_operator.core import api
from lorafleet_operator.core.objects import (
    Adapter,
    BaseModel,
    Desired,
    Namespace,
    ObjectKey,
    Problem,
    Problems,
    Ref,
    Secret,
    SetAside,
    Tenant,
)

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Document:
    """One parsed YAML document: `where` is its file for people, `base_dir` the folder of that file."""

    value: object = field(repr=False)  # it may be a Secret
    where: str = ""
    base_dir: str = ""


def assemble(documents: Iterable[Document], unreadable: Iterable[Problem] = ()) -> Desired:
    """What the documents declare. `unreadable` are the files that could not be parsed: then nothing is complete.

    An object declared twice is set aside, for nobody knows which declaration counts.
    """
    lost = tuple(unreadable)
    found: dict[ObjectKey, api.Object] = {}
    aside: dict[ObjectKey, SetAside] = {}
    problems: list[Problem] = list(lost)
    complete = not lost
    places: dict[ObjectKey, str] = {}
    for document in documents:
        if document.value is None:  # an empty document between two `---`
            continue
        read = api.read(document.value, document.where, document.base_dir)
        key = read.key if isinstance(read, Problems) else api.key_of(read)
        if key is not None and key in places:
            read = _twice(key, document.where, places[key])
        if key is not None:
            places.setdefault(key, document.where)
        if isinstance(read, Problems):
            problems += read.problems
            complete = complete and key is not None
            if key is not None:
                found.pop(key, None)
                before = aside[key].problems if key in aside else ()
                aside[key] = SetAside((*before, *read.problems), False, read.generation)
        elif key is not None:
            found[key] = read
    return collect(found, aside, tuple(problems), complete)


def retain(previous: Desired, current: Desired) -> Desired:
    """`current`, with the last good form of every object that cannot be read now: a typo stops nothing that serves."""
    unreadable = {key for key, entry in current.set_aside.items() if not entry.readable}
    gone = None if not current.complete else unreadable
    return replace(
        current,
        base_models=_kept("BaseModel", previous.base_models, current.base_models, gone),
        adapters=_kept("LoRAAdapter", previous.adapters, current.adapters, gone),
        tenants=_kept("Tenant", previous.tenants, current.tenants, gone),
        secrets=_kept("Secret", previous.secrets, current.secrets, gone),
    )


def _kept(kind: str, before: Mapping[K, V], now: Mapping[K, V], gone: set[ObjectKey] | None) -> dict[K, V]:
    """`now` and, of `before`, what is in `gone` (None: whatever is missing)."""
    return {**{name: old for name, old in before.items() if gone is None or _key(kind, name) in gone}, **now}


def _key(kind: str, name: object) -> ObjectKey:
    return ObjectKey(kind, name.namespace, name.name) if isinstance(name, Ref) else ObjectKey(kind, "", str(name))


def _twice(key: ObjectKey, where: str, first: str) -> Problems:
    place = f"{where}: {key}" if where else str(key)
    message = f"declared twice, in {first or 'the input'} and in {where or 'the input'}: keep one"
    return Problems((Problem(place, "", message),), key)


def collect(
    found: Mapping[ObjectKey, api.Object], aside: Mapping[ObjectKey, SetAside], problems: tuple[Problem, ...],
    complete: bool,
) -> Desired:  # fmt: skip
    """What is desired, from objects that have been read."""
    objects = list(found.values())
    return Desired(
        base_models={o.ref: o for o in objects if isinstance(o, BaseModel)},
        adapters={o.ref: o for o in objects if isinstance(o, Adapter)},
        tenants={o.name: o for o in objects if isinstance(o, Tenant)},
        secrets={o.ref: o for o in objects if isinstance(o, Secret)},
        problems=problems,
        set_aside=aside,
        namespace_labels={o.name: o.labels for o in objects if isinstance(o, Namespace)},
        complete=complete,
    )
