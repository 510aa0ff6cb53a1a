"""What `kubectl lorafleet status` says below its tables."""

from __future__ import annotations

from lorafleet_operator.cli.cluster_status import troubles


def test_the_first_thing_wrong_is_told_and_nothing_of_what_is_well() -> None:
    def found(name: str, **conditions: str) -> dict[str, object]:
        shown = [{"type": t, "status": s, "reason": f"{t}Reason", "message": "why"} for t, s in conditions.items()]
        metadata = {"namespace": "acme", "name": name}
        return {"kind": "LoRAAdapter", "metadata": metadata, "status": {"conditions": shown}}

    told = list(troubles([
        found("well", Accepted="True", Ready="True"), found("bad", Ready="False", Accepted="False"), found("new"),
    ]))  # fmt: skip

    assert told == [
        "LoRAAdapter acme/bad: AcceptedReason: why",
        "LoRAAdapter acme/new: no operator has looked at it yet",
    ]
