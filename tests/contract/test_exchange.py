"""The gateway's half of `POST /fairness` is what docs/contracts.md shows."""

from __future__ import annotations

import json
from typing import Any

from lorafleet_gateway.core.counters import Counters
from lorafleet_gateway.core.fairness_messages import decode_answer, encode_request
from lorafleet_gateway.core.quota import Use
from tests.contract.shapes import shape


def test_the_gateway_tells_what_the_contract_shows(examples: dict[str, Any]) -> None:
    answer = decode_answer(json.dumps(examples["exchanged"]).encode())
    counters = Counters()
    counters.take(answer.table)
    counters.retire("an older one")
    sent = json.loads(
        encode_request(0, "", counters.since(0), "g1", 17, {"acme": Use(12, 3400, 12, 10)})
    )
    sent["table"]["offsets"] = {"acme": 0}  # an offset of 0 is not told: it says nothing
    sent["usage"] = {"GATEWAY": sent["usage"]["g1"]}

    assert shape(sent) == shape(examples["exchange"])


def test_the_gateway_reads_every_field_of_the_contracts_answer(examples: dict[str, Any]) -> None:
    example = examples["exchanged"]
    answer = decode_answer(json.dumps(example).encode())

    assert (answer.incarnation, answer.at) == (example["incarnation"], example["at"])
    assert (answer.load.running, answer.load.waiting) == (3, 1)
    assert answer.table.service == example["table"]["service"]
    assert answer.usage["GATEWAY"].tenants == {"acme": Use(12, 3400, 12, 10)}
    assert {name: getattr(answer.fairness, name) for name in example["fairness"]} == example["fairness"]
