"""`POST /fairness` in bytes: what this gateway tells a replica, and what it believes of the answer.

An answer is believed as a whole or not at all; docs/contracts.md has the fields. Fields that are not known are ignored,
so that a replica may be newer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from lorafleet_gateway.core.counters import MOST_TENANTS, Amount, Incarnation, Name, Table
from lorafleet_gateway.core.quota import Use
from lorafleet_gateway.core.shared_use import MOST_GATEWAYS
from lorafleet_gateway.errors import CountersError


class GatewayUse(msgspec.Struct, frozen=True):
    """What one gateway has admitted, of the tenants that changed."""

    sequence: Amount
    tenants: dict[Name, Use] = {}


class Load(msgspec.Struct, frozen=True):
    """Requests at the replica, of all gateways."""

    running: Amount = 0
    waiting: Amount = 0


class Fairness(msgspec.Struct, frozen=True):
    """How far apart the replica lets tenants come, in micro-units of service; `rate` is per second."""

    policy: str = ""
    spread: Amount = 0
    bound: Amount = 0
    rate: Amount = 0


class Answer(msgspec.Struct, frozen=True):
    """One answer; `at` is what to send as `since` next time."""

    version: int
    incarnation: Incarnation
    at: Amount
    load: Load
    fairness: Fairness = Fairness()
    table: Table = Table()
    usage: dict[Incarnation, GatewayUse] = {}


def decode_answer(data: bytes) -> Answer:
    """A replica's answer. Raises CountersError for a wrong type, a number below 0 or above 2^62, a name that is too
    long, or too many of anything."""
    try:
        answer = msgspec.json.decode(data, type=Answer)
    except msgspec.ValidationError as error:
        raise CountersError("wrong value", str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CountersError("not JSON", str(error)) from None
    if answer.version != 1:
        raise CountersError("wrong version", f"version is {answer.version}, and this gateway reads version 1")
    names = {cell[2] for cell, _ in answer.table.cells()}.union(*(use.tenants for use in answer.usage.values()))
    if len(names) > MOST_TENANTS or len(answer.usage) > MOST_GATEWAYS:
        what = f"{len(names)} tenants and {len(answer.usage)} gateways, of which there may be"
        raise CountersError("too many", f"{what} {MOST_TENANTS} and {MOST_GATEWAYS}")
    return answer


def encode_request(
    since: int, incarnation: str, table: Table, gateway: str, sequence: int, uses: Mapping[str, Use]
) -> bytes:
    """One request: `table` and `uses` are what the replica of that incarnation has not been told yet."""
    request = {
        "version": 1,
        "since": since,
        "incarnation": incarnation,
        "table": table,
        "usage": {gateway: {"sequence": sequence, "tenants": uses}},
    }
    return msgspec.json.encode(request)
