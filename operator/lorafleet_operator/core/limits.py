"""What this release cannot do for an object, said as a sentence: the same in every world. Pure.

A setting that cannot be honoured is refused by its field path, never ignored.
"""

from __future__ import annotations

from collections.abc import Iterator

from lorafleet_operator.core.objects import Adapter, BaseModel, Unresolved

NOT_SUPPORTED = "NotSupported"


def base_model_limits(base: BaseModel) -> Unresolved | None:
    """Why this base model is not started; None when all of it can be honoured."""
    return _refusal(_base_sentences(base))


def adapter_limits(adapter: Adapter) -> Unresolved | None:
    """Why this adapter is not loaded; None when all of it can be honoured."""
    return _refusal(_adapter_sentences(adapter))


def _refusal(sentences: Iterator[str]) -> Unresolved | None:
    text = "; ".join(sentences)
    return Unresolved(NOT_SUPPORTED, text) if text else None


def _base_sentences(base: BaseModel) -> Iterator[str]:
    engine = base.engine
    if engine.tensor_parallel != 1:
        yield f".spec.engine.tensorParallel: {engine.tensor_parallel} ranks are not built into this runtime: write 1"
    if engine.memory_fraction is not None:
        yield ".spec.engine.memoryFraction: a replica's page pool has a size: write memory, such as 1Gi"
    if not engine.prefix_caching:
        yield ".spec.engine.prefixCaching: this runtime always keeps prefixes while pages are free: leave it out"
    if base.fairness.get("policy") == "DLPM":
        yield (
            ".spec.fairness.policy: DLPM orders by cached prefixes, and this runtime keeps none yet: write another "
            "policy, or leave it out"
        )
    if (base.fairness.get("cost") or {}).get("kind") == "Profiled":
        yield ".spec.fairness.cost.kind: this runtime does not profile itself: write Quadratic with the coefficients"
    if base.migration.get("enabled"):
        yield ".spec.migration.enabled: replicas do not move adapters yet: write false, or leave it out"


def _adapter_sentences(adapter: Adapter) -> Iterator[str]:
    if adapter.merge == "Always":
        yield ".spec.merge: this runtime does not merge an adapter into the base weights: write Auto or Never"
