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
    for name, count in _devices(base):
        if count < engine.tensor_parallel:
            yield (
                f".spec.engine.tensorParallel: {engine.tensor_parallel} ranks need a device each, and "
                f".spec.runtime.resources.limits has {name}: {count}: raise one or lower the other"
            )
    if engine.memory_fraction is not None:
        yield ".spec.engine.memoryFraction: a replica's page pool has a size: write memory, such as 1Gi"
    if (base.fairness.get("cost") or {}).get("kind") == "Profiled":
        yield ".spec.fairness.cost.kind: this runtime does not profile itself: write Quadratic with the coefficients"
    if base.migration.get("enabled"):
        yield ".spec.migration.enabled: replicas do not move adapters yet: write false, or leave it out"


def _devices(base: BaseModel) -> Iterator[tuple[str, int]]:
    """The GPUs that a replica may use, by resource name; none for one that runs on the CPU."""
    for name, count in base.runtime.get("resources", {}).get("limits", {}).items():
        if name.endswith("/gpu") and str(count).isdigit():
            yield name, int(count)


def _adapter_sentences(adapter: Adapter) -> Iterator[str]:
    if adapter.merge == "Always":
        yield ".spec.merge: this runtime does not merge an adapter into the base weights: write Auto or Never"
