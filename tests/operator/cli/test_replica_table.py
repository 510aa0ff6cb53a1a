"""What `top replicas` makes of replicas' metrics."""

from __future__ import annotations

from rich.console import Console

from lorafleet_operator.cli.live_table import Exposition
from lorafleet_operator.cli.replica_table import replica_table

TEXT = """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="tiny"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="tiny"} 0.25
# TYPE lorafleet_adapters gauge
lorafleet_adapters{model_name="tiny",state="Ready"} 7.0
lorafleet_adapters{model_name="tiny",state="Failed"} 2.0
"""


def line(text: str) -> list[str]:
    out = Console(width=150, force_terminal=False)
    with out.capture() as captured:
        out.print(replica_table([Exposition("models", "tiny", "tiny-abc", text)]))
    return captured.get().splitlines()[-1].split()


def test_a_replica_is_a_line_of_its_own_numbers() -> None:
    assert line(TEXT)[:4] == ["models", "tiny", "tiny-abc", "3"]
    assert line(TEXT)[-4:] == ["25", "%", "7", "0"]


def test_a_replica_that_does_not_answer_is_there_without_numbers() -> None:
    assert line("")[3:] == ["-"] * 7
    assert line("<html>{another program}</html>")[3:] == ["-"] * 7
