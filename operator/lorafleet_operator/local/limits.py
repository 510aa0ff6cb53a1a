"""What a fleet on one machine cannot do for an object, said as a sentence. Pure.

A setting that cannot be honoured is refused by its field path, never ignored. Settings that only describe a pod
(`runtime.image`, `resources`, `nodeSelector`, ...) ask nothing of a process, so the same YAML serves both worlds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from lorafleet_operator.core.objects import Adapter, BaseModel, Unresolved
from lorafleet_operator.digests import DigestCache
from lorafleet_operator.resolver import Resolver
from lorafleet_operator.sources import resolve_adapter, resolve_base

NOT_HERE = "NotSupportedHere"


def local_resolver(changed: Callable[[], None]) -> Resolver:
    """Finds files on this machine for objects that it can honour."""
    digests = DigestCache()
    return Resolver(
        changed,
        adapter=lambda adapter: adapter_limits(adapter) or resolve_adapter(adapter.source, digests),
        base=lambda base: base_model_limits(base) or resolve_base(base.source, digests),
    )


def base_model_limits(base: BaseModel) -> Unresolved | None:
    """Why this base model is not started on one machine; None when all of it can be honoured."""
    return _refusal(_base_sentences(base))


def adapter_limits(adapter: Adapter) -> Unresolved | None:
    """Why this adapter is not loaded on one machine; None when all of it can be honoured."""
    return _refusal(_adapter_sentences(adapter))


def _refusal(sentences: Iterator[str]) -> Unresolved | None:
    text = "; ".join(sentences)
    return Unresolved(NOT_HERE, text) if text else None


def _base_sentences(base: BaseModel) -> Iterator[str]:
    engine = base.engine
    if engine.tensor_parallel != 1:
        yield f".spec.engine.tensorParallel: {engine.tensor_parallel} ranks are not started on one machine: write 1"
    if engine.memory_fraction is not None:
        yield ".spec.engine.memoryFraction: on one machine a replica's page pool has a size: write memory, such as 1Gi"
    if not engine.prefix_caching:
        yield ".spec.engine.prefixCaching: this runtime always keeps prefixes while pages are free: leave it out"
    policy = base.fairness.get("policy", "VTC")
    if policy != "VTC":
        yield f".spec.fairness.policy: {policy} is not built into this runtime: write VTC, or leave it out"
    cost = base.fairness.get("cost") or {}
    if {"kind": "Linear", "input": 1, "output": 2} | dict(cost) != {"kind": "Linear", "input": 1, "output": 2}:
        yield ".spec.fairness.cost: this runtime counts Linear, input 1, output 2: write that, or leave it out"
    if base.fairness.get("earlyAbort"):
        yield ".spec.fairness.earlyAbort: this runtime does not abort early: leave it out"
    if base.migration.get("enabled"):
        yield ".spec.migration.enabled: replicas on one machine do not move adapters: write false, or leave it out"


def _adapter_sentences(adapter: Adapter) -> Iterator[str]:
    if adapter.merge == "Always":
        yield ".spec.merge: this runtime does not merge an adapter into the base weights: write Auto or Never"
