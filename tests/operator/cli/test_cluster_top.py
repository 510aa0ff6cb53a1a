"""What `kubectl lorafleet top` makes of replicas' metrics."""

from __future__ import annotations

from rich.console import Console

from lorafleet_operator.cli.cluster_status import troubles
from lorafleet_operator.cli.cluster_top import Row, parsed, table

TEXT = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="tiny"} 0.25
# TYPE lorafleet_adapters gauge
lorafleet_adapters{model_name="tiny",state="Ready"} 7.0
lorafleet_adapters{model_name="tiny",state="Failed"} 2.0
"""


def shown(*rows: Row) -> str:
    out = Console(width=150, force_terminal=False)
    with out.capture() as captured:
        out.print(table(list(rows)))
    return captured.get()


def test_a_replica_is_a_line_of_its_own_numbers() -> None:
    line = shown(Row("models", "tiny", "tiny-abc", parsed(TEXT))).splitlines()[-1].split()

    assert line[:4] == ["models", "tiny", "tiny-abc", "3"]
    assert line[-4:] == ["25", "%", "7", "0"]


def test_a_replica_that_does_not_answer_is_there_without_numbers() -> None:
    assert shown(Row("models", "tiny", "tiny-abc", {})).splitlines()[-1].split()[3:] == ["-"] * 7


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
