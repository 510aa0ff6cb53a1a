"""`top replicas`: replicas as they work, one a line."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from lorafleet_operator.cli.live_table import Exposition


def replica_table(found: Iterable[Exposition], now: float = 0.0) -> Table:
    """A view without rates: `now` tells it nothing. A replica that does not answer is there, without numbers."""
    shown = Table(box=None, pad_edge=False)
    for name in ("NAMESPACE", "BASE MODEL", "REPLICA"):
        shown.add_column(name)
    for name in ("RUNNING", "WAITING", "TOKENS/S", "STEP MS", "KV", "ADAPTERS", "IN PAGES"):
        shown.add_column(name, justify="right")
    for each in found:
        v = _summed(each)
        if not v:
            shown.add_row(each.namespace, each.base, each.replica, *("-",) * 7)
            continue
        shown.add_row(
            each.namespace, each.base, each.replica, f"{v.get('vllm:num_requests_running', 0):.0f}",
            f"{v.get('vllm:num_requests_waiting', 0):.0f}", f"{v.get('lorafleet_output_tokens_per_second', 0):.1f}",
            f"{1000 * v.get('lorafleet_step_seconds', 0):.0f}", f"{100 * v.get('vllm:kv_cache_usage_perc', 0):.0f} %",
            f"{v.get('lorafleet_adapters.Ready', 0):.0f}", f"{v.get('lorafleet_adapters_resident', 0):.0f}",
        )  # fmt: skip
    return shown


def _summed(found: Exposition) -> dict[str, float]:
    """Of several series of one name the sum, `lorafleet_adapters` by its state."""
    values: dict[str, float] = {}
    for sample, labels, value in found.samples():
        name = f"{sample}.{labels['state']}" if "state" in labels else sample
        values[name] = values.get(name, 0.0) + value
    return values
