"""metav1 conditions: built from facts, and their transition times carried over from what was there before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MESSAGE_LENGTH = 1024
_REASON = re.compile(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Condition:
    """One answer about an object. `holds` None stands for Unknown."""

    type: str
    holds: bool | None
    reason: str
    message: str = ""


def rendered(
    conditions: Iterable[Condition], previous: Mapping[str, Any] | None, generation: int, now_iso: str
) -> list[dict[str, Any]]:
    """The conditions as the API has them. `lastTransitionTime` moves only when the status does."""
    before = {old["type"]: old for old in (previous or {}).get("conditions", ())}
    found = []
    for condition in conditions:
        status = {True: "True", False: "False", None: "Unknown"}[condition.holds]
        old = before.get(condition.type)
        same = old is not None and old.get("status") == status
        found.append({
            "type": condition.type,
            "status": status,
            "observedGeneration": generation,
            "lastTransitionTime": old["lastTransitionTime"] if same and old else now_iso,
            "reason": condition.reason if _REASON.fullmatch(condition.reason) else "Unknown",
            "message": shortened(condition.message),
        })  # fmt: skip
    return found


def shortened(message: str) -> str:
    """A message within its bound."""
    return message if len(message) <= MESSAGE_LENGTH else message[: MESSAGE_LENGTH - 1] + "…"
