from __future__ import annotations

import json
from typing import Any

import pytest

from lorafleet_gateway.core.counters import MOST, Table
from lorafleet_gateway.core.fairness_messages import decode_answer, encode_request
from lorafleet_gateway.core.quota import Use
from lorafleet_gateway.errors import CountersError

ANSWER: dict[str, Any] = {
    "version": 1, "incarnation": "i1", "at": 7, "load": {"running": 1, "waiting": 2},
    "table": {"service": {"i1": {"acme": MOST}}, "refunds": {}, "offsets": {"acme": 0}, "retired": ["i0"]},
    "usage": {"g": {"sequence": 1, "tenants": {
        "acme": {"requests": 1, "tokens": 2, "started": 3, "finished": 2, "rejected": 4}}}},
    "fairness": {"policy": "VTC", "spread": 1, "bound": 2, "rate": 3},
}  # fmt: skip
LONG = "x" * 64


def answer(**fields: Any) -> bytes:
    return json.dumps({**ANSWER, **fields}).encode()


def test_an_answer_is_read_and_what_a_newer_replica_adds_is_ignored() -> None:
    read = decode_answer(answer(newer=1))

    assert (read.incarnation, read.at, read.load.running, read.load.waiting) == ("i1", 7, 1, 2)
    assert read.table == Table({"i1": {"acme": MOST}}, {}, {"acme": 0}, ("i0",))
    assert read.usage["g"].tenants == {"acme": Use(1, 2, 3, 2, 4)}
    assert (read.fairness.spread, read.fairness.bound, read.fairness.rate) == (1, 2, 3)


def test_a_replica_without_counters_tells_at_least_its_load() -> None:
    read = decode_answer(json.dumps({k: ANSWER[k] for k in ("version", "incarnation", "at", "load")}).encode())

    assert (read.table, read.usage) == (Table(), {})


@pytest.mark.parametrize(
    ("kind", "where", "fields"),
    [
        ("wrong value", "service", {"table": {"service": {"i": {"acme": -1}}}}),
        ("wrong value", "refunds", {"table": {"refunds": {"i": {"acme": MOST + 1}}}}),
        ("wrong value", "offsets", {"table": {"offsets": {"acme": 1.5}}}),
        ("wrong value", "offsets", {"table": {"offsets": {"acme": None}}}),
        ("wrong value", "offsets", {"table": {"offsets": {LONG: 1}}}),
        ("wrong value", "retired", {"table": {"retired": {"i": 1}}}),
        ("wrong value", "service", {"table": {"service": [1]}}),
        ("wrong value", "usage", {"usage": {"g": {"tenants": {}}}}),
        ("wrong value", "usage", {"usage": {"g": {"sequence": 1, "tenants": {"acme": {"started": -1}}}}}),
        ("wrong value", "fairness", {"fairness": {"bound": -1}}),
        ("wrong value", "load", {"load": {"running": "many"}}),
        ("wrong value", "at", {"at": -1}),
        ("wrong value", "incarnation", {"incarnation": ""}),
        ("wrong version", "2", {"version": 2}),
        ("too many", "65537 tenants", {"table": {"offsets": {f"t{i}": 1 for i in range(65_536)}}}),
        ("too many", "1025 gateways", {"usage": {f"g{i}": {"sequence": 1} for i in range(1025)}}),
    ],
)
def test_nonsense_is_refused_as_a_whole_and_says_where(kind: str, where: str, fields: dict[str, Any]) -> None:
    with pytest.raises(CountersError, match=where) as raised:
        decode_answer(answer(**fields))

    assert raised.value.kind == kind


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"version": 1,', answer().replace(b"7", b"NaN")])
def test_what_is_no_json_is_refused(data: bytes) -> None:
    with pytest.raises(CountersError) as raised:
        decode_answer(data)

    assert raised.value.kind == "not JSON"


def test_a_request_has_the_fields_of_the_contract() -> None:
    table = Table({"i2": {"acme": 5}}, {}, {"acme": 1}, ("i0",))

    assert json.loads(encode_request(7, "i1", table, "me", 9, {"acme": Use(1, 2, 3, 2, 4)})) == {
        "version": 1, "since": 7, "incarnation": "i1",
        "table": {"service": {"i2": {"acme": 5}}, "refunds": {}, "offsets": {"acme": 1}, "retired": ["i0"]},
        "usage": {"me": {"sequence": 9, "tenants": ANSWER["usage"]["g"]["tenants"]}},
    }  # fmt: skip
