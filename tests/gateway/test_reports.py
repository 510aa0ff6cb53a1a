from __future__ import annotations

from lorafleet_gateway.reports import requests_in


def test_running_and_waiting_requests_are_added_up_and_other_metrics_are_not() -> None:
    text = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="a"} 3.0
vllm:num_requests_waiting{model_name="a",reason="x"} 1e+01
vllm:num_requests_waiting 2
vllm:num_requests_running_total 99.0
vllm:kv_cache_usage_perc 0.5
"""

    assert requests_in(text) == 15
    assert requests_in("") == 0
