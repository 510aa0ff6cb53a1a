"""Prometheus metrics: vLLM's names, so that dashboards and routers work unchanged; ours for residency."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lorafleet_runtime.frontend.engine_api import Engine
from lorafleet_runtime.frontend.fairness_metrics import FairnessCollector

_TTFT_BUCKETS = (0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_TOKEN_BUCKETS = (0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
_REQUEST_BUCKETS = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class Metrics:
    """One replica's metrics. Latencies are the front end's own; gauges come from the engine's state."""

    def __init__(self, engine: Engine, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineCollector(engine, model_name))
        self._registry.register(FairnessCollector(engine.board, model_name))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            metric = Histogram(name, text, ["model_name"], buckets=buckets, registry=self._registry)
            return metric.labels(model_name)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["model_name"], registry=self._registry).labels(model_name)

        self._model_name = model_name
        self._ttft = histogram("vllm:time_to_first_token_seconds", "To the first token", _TTFT_BUCKETS)
        self._itl = histogram("vllm:inter_token_latency_seconds", "Between tokens", _TOKEN_BUCKETS)
        self._tpot = histogram("vllm:time_per_output_token_seconds", "Mean per token", _TOKEN_BUCKETS)
        self._e2e = histogram("vllm:e2e_request_latency_seconds", "Whole requests", _REQUEST_BUCKETS)
        self._prompt = counter("vllm:prompt_tokens", "Prompt tokens of admitted requests")
        self._generated = counter("vllm:generation_tokens", "Tokens generated")
        labels = ["model_name", "finished_reason"]
        self._constrained = Counter(
            "lorafleet_constrained_requests", "Choices whose output must be of a given form",
            ["model_name", "kind"], registry=self._registry,
        )  # fmt: skip
        self._finished = Counter("vllm:request_success", "Finished requests", labels, registry=self._registry)

    def render(self) -> bytes:
        """The exposition text."""
        return generate_latest(self._registry)

    def constrained(self, kind: str, count: int) -> None:
        """So many choices are asked for under a constraint of a kind."""
        self._constrained.labels(self._model_name, kind).inc(count)

    def request(self, prompt_tokens: int) -> RequestClock:
        """Start the clock of one choice of one request."""
        return RequestClock(self, prompt_tokens)


class RequestClock:
    """Measures one choice: `tokens` at every delta, `finished` once."""

    __slots__ = ("_first", "_last", "_metrics", "_prompt_tokens", "_start", "_total")

    def __init__(self, metrics: Metrics, prompt_tokens: int) -> None:
        self._metrics = metrics
        self._prompt_tokens = prompt_tokens
        self._start = time.perf_counter()
        self._first = self._last = 0.0
        self._total = 0

    def tokens(self, count: int) -> None:
        """So many tokens have just come."""
        metrics, now = self._metrics, time.perf_counter()
        if not self._total:
            self._first = now
            metrics._ttft.observe(now - self._start)
            metrics._prompt.inc(self._prompt_tokens)
        else:
            for _ in range(count):
                metrics._itl.observe((now - self._last) / count)
        self._total += count
        self._last = now
        metrics._generated.inc(count)

    def finished(self, reason: str) -> None:
        """The choice ended with a finish reason."""
        metrics, now = self._metrics, time.perf_counter()
        metrics._e2e.observe(now - self._start)
        if self._total > 1:
            metrics._tpot.observe((self._last - self._first) / (self._total - 1))
        metrics._finished.labels(metrics._model_name, reason).inc()


class _EngineCollector(Collector):
    def __init__(self, engine: Engine, model_name: str) -> None:
        self._engine = engine
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        state = self._engine.state
        resident = sum(adapter.resident for adapter in state.adapters)
        gauges: list[tuple[str, str, float]] = [
            ("lorafleet_ready", "The model is loaded", state.phase == "Ready"),
            ("lorafleet_adapters_resident", "Adapters in pages", resident),
        ]
        if state.load is not None:
            gauges += [
                ("vllm:num_requests_running", "Requests in the batch", state.load.running),
                ("vllm:num_requests_waiting", "Requests in the queue", state.load.waiting),
                ("lorafleet_waiting_tokens", "Tokens that wait to be computed", state.load.waiting_tokens),
                ("lorafleet_step_seconds", "Mean time of a step", state.load.step_seconds),
                ("lorafleet_output_tokens_per_second", "Throughput", state.load.output_tokens_per_second),
            ]
        if state.host is not None:
            gauges += [
                ("lorafleet_host_memory_bytes", "Bound of host memory for adapters", state.host.budget),
                ("lorafleet_host_memory_used_bytes", "Host memory that adapters take", state.host.used),
            ]
        if state.pages is not None:
            usage = state.pages.kv / state.pages.total if state.pages.total else 0.0
            gauges += [
                ("vllm:kv_cache_usage_perc", "Share of the pool that holds KV, 0..1", usage),
                ("lorafleet_pages_total", "Pages of the pool", state.pages.total),
                ("lorafleet_page_bytes", "Bytes of one page over all layers", state.pages.bytes),
                ("lorafleet_pages_evictable", "Pages of idle adapters and prefixes", state.pages.evictable),
            ]
        for name, text, value in gauges:
            yield self._gauge(name, text, value)
        yield from self._labelled()
        counters = state.counters
        for name, text, total in [
            ("lorafleet_steps", "Steps run", counters.steps),
            ("lorafleet_preemptions", "Requests put back for want of pages", counters.preemptions),
            ("lorafleet_adapter_loads", "Adapters copied into pages", counters.adapter_loads),
            ("lorafleet_adapter_reads", "Adapters read again from disk", counters.adapter_reads),
            ("lorafleet_early_aborts", "Requests given up before their first token", counters.early_aborts),
            ("lorafleet_constraints_compiled", "Schemas, regexes and grammars compiled", counters.constraints_compiled),
            ("lorafleet_constraint_compile_seconds", "Time of compiling them", counters.constraint_seconds),
            ("lorafleet_constraint_foreseen_tokens", "Tokens that needed no step", counters.foreseen_tokens),
            ("vllm:spec_decode_num_drafts", "Rows with guesses at further tokens", counters.drafts),
            ("vllm:spec_decode_num_draft_tokens", "Tokens guessed", counters.draft_tokens),
            ("vllm:spec_decode_num_accepted_tokens", "Tokens guessed right", counters.accepted_tokens),
            ("vllm:prefix_cache_queries", "Prompt tokens looked for in the prefix cache", counters.prefix_tokens_asked),
            ("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache", counters.prefix_tokens_hit),
        ]:
            family = CounterMetricFamily(name, text, labels=["model_name"])
            family.add_metric([self._model_name], total)
            yield family
        for name, text, by_purpose in [
            ("lorafleet_adapter_evictions", "Adapters evicted from pages", counters.adapter_evictions),
            ("lorafleet_prefix_evictions", "Pages of prefixes evicted", counters.prefix_evictions),
        ]:
            family = CounterMetricFamily(name, text, labels=["model_name", "wanted_for"])
            for purpose in ("prompt", "decode", "adapter"):
                family.add_metric([self._model_name, purpose], by_purpose.get(purpose, 0))
            yield family

    def _gauge(self, name: str, text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _labelled(self) -> Iterator[Metric]:
        state = self._engine.state
        if state.pages is not None:
            pages = GaugeMetricFamily("lorafleet_pages", "Pages by use", labels=["model_name", "use"])
            for use in ("free", "kv", "prefixes", "adapters"):
                pages.add_metric([self._model_name, use], getattr(state.pages, use))
            yield pages
        running = ",".join(sorted({a.id for a in state.adapters if a.running}))
        waiting = ",".join(sorted({a.id for a in state.adapters if a.waiting}))
        known = GaugeMetricFamily("lorafleet_adapters", "Adapters by state", labels=["model_name", "state"])
        for name in ("Loading", "Ready", "Draining", "Failed"):
            known.add_metric([self._model_name, name], sum(a.state == name for a in state.adapters))
        yield known
        # vLLM's shape: the names are labels, the value is when that was so. Here no slot bounds the adapters.
        lora = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters of running and waiting requests",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        lora.add_metric([str(max(len(state.adapters), 1)), running, waiting], time.time())
        yield lora
        # vLLM's newer shape: what is held, and where. "gpu" is the pool, "cpu" the copies that pages are filled from.
        held = GaugeMetricFamily(
            "vllm:lora_adapter_loaded", "Adapters that can serve", labels=["adapter_name", "level", "pinned", "rank"]
        )
        for adapter in state.adapters:
            if adapter.state == "Ready":
                level = "gpu" if adapter.resident else "disk" if adapter.level == "disk" else "cpu"
                held.add_metric([adapter.id, level, str(adapter.pinned).lower(), str(adapter.rank)], 1)
        yield held
