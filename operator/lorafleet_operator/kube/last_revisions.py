"""What a new operator knows of sources before it has looked at them: the revisions that the statuses name.

Without it, every restart would write each status twice, once to take the revision away and once to bring it back.
"""

from __future__ import annotations

from collections.abc import Mapping

from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, ObjectKey, Ref, Unresolved
from lorafleet_operator.kube.store import Store

Found = Mapping[Ref, Artifact | Unresolved]


def with_last_revisions(
    kind: str, declared: Mapping[Ref, Adapter] | Mapping[Ref, BaseModel], found: Found, store: Store
) -> dict[Ref, Artifact | Unresolved]:
    """`found`, and for what has not been looked at an artifact without files, if its status is about this spec."""
    known = dict(found)
    for ref in declared.keys() - found.keys():
        status = (store.raw.get(ObjectKey(kind, *ref)) or {}).get("status") or {}
        revision, seen = status.get("revision"), status.get("observedGeneration")
        if revision and seen == declared[ref].generation:
            known[ref] = Artifact(str(revision))
    return known
