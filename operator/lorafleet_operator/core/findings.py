"""What a rule between objects finds, and who comes first when two objects want the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from lorafleet_operator.core.objects import Adapter, BaseModel, ObjectKey, Problem, Tenant


@dataclass(frozen=True, slots=True)
class Finding:
    """A broken rule. `refuses` is False where the object is still good enough to act upon."""

    key: ObjectKey
    field: str
    reason: str
    message: str
    refuses: bool = True

    @property
    def problem(self) -> Problem:
        return Problem(str(self.key), self.field, self.message, self.reason)


Aged = TypeVar("Aged", BaseModel, Adapter, Tenant)


def by_age(objects: Iterable[Aged]) -> list[Aged]:
    """Oldest first, then by name. Objects of one machine have no age."""
    return sorted(objects, key=lambda o: (o.created, o.name if isinstance(o, Tenant) else str(o.ref)))
