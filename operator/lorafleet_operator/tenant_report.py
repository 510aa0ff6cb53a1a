"""Reads the body of `GET /admin/tenants` (docs/contracts.md). Unknown fields are ignored."""

from __future__ import annotations

from typing import Any

from lorafleet_operator.core.usage import Report, Share
from lorafleet_operator.errors import RuntimeProtocolError


def parse_tenants(body: dict[str, Any]) -> Report:
    """What a replica tells of its tenants. Raises RuntimeProtocolError."""
    try:
        return Report(
            incarnation=str(body["incarnation"]),
            floor=int(body.get("floor") or 0),
            shares={str(item["name"]): _share(item) for item in body["tenants"]},
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise RuntimeProtocolError(f"/admin/tenants does not follow the contract: {error!r}") from error


def _share(item: dict[str, Any]) -> Share:
    return Share(
        service=_amount(item["service"]),
        prompt_tokens=_amount(item.get("promptTokens")),
        output_tokens=_amount(item.get("outputTokens")),
        counter=int(item.get("counter") or 0),
        running=_amount(item.get("running")),
        waiting=_amount(item.get("waiting")),
        rejected=_amount(item.get("rejected")),
    )


def _amount(value: Any) -> int:
    """The API refuses a status with a negative amount as a whole, conditions included: so it must not get there."""
    amount = int(value or 0)
    if amount < 0:
        raise ValueError(f"{amount} is negative")
    return amount
