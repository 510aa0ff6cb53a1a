"""What a Tenant says of itself: its adapters and keys, what it has received, which limits are kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafleet_operator.core.conditions import Condition
from lorafleet_operator.core.objects import Desired, Tenant
from lorafleet_operator.core.tenant_keys import key_material
from lorafleet_operator.core.usage import ModelUsage, TenantUsage, Usage

Status = dict[str, Any]


def tenant_fields(tenant: Tenant, desired: Desired, adapters: Mapping[str, int]) -> Status:
    """`adapters` is the number of adapters in each namespace."""
    seen = sum(key_material(desired, ref) is not None for ref in tenant.api_keys)
    mine = sum(adapters.get(namespace, 0) for namespace in set(tenant.namespaces))
    return {"adapters": mine, "keys": f"{seen}/{len(tenant.api_keys)}"}


def usage_field(known: Usage, tenant: str, previous: Mapping[str, Any] | None) -> Status:
    """`usage`, or nothing for a tenant that never had traffic.

    While the tenant's own figures stay, so does the whole: a floor that others raise is no news of a tenant that rests,
    and nothing is written at rest.
    """
    before, found = (previous or {}).get("usage"), known.tenants.get(tenant)
    now = _usage(found) if found is not None else _at_rest(before)
    if not known.as_of or now is None or (before is not None and _figures(now) == _figures(before)):
        return {"usage": before} if before is not None else {}
    if before is None and not any(value for name, value in now.items() if name != "models"):
        return {}
    return {"usage": {"asOf": known.as_of, **now}}


def only_usage_differs(status: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    """Is a status news about usage alone, which may wait for its turn?"""
    return "usage" in status and {**status, "usage": None} == {**last, "usage": None}


def quota_enforced(tenant: Tenant) -> Condition:
    """Which limits gateways keep. The operator itself keeps those on adapters."""
    quota = tenant.quota
    limits = {
        "requestsPerMinute": quota.requests_per_minute,
        "tokensPerMinute": quota.tokens_per_minute,
        "maxConcurrentRequests": quota.max_concurrent_requests,
    }
    kept = ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
    if not kept:
        return Condition("QuotaEnforced", True, "NoLimits", "the tenant has no limits for its gateways to keep")
    return Condition("QuotaEnforced", True, "Enforced", f"gateways answer 429 beyond {kept}")


def _usage(found: TenantUsage) -> Status:
    return {
        "promptTokens": found.prompt_tokens,
        "outputTokens": found.output_tokens,
        "service": found.service,
        "rejected": found.rejected,
        "running": found.running,
        "waiting": found.waiting,
        "models": [_model(model) for model in found.models],
    }


def _model(model: ModelUsage) -> Status:
    shown: Status = {
        "baseModel": str(model.base), "service": model.service, "running": model.running, "waiting": model.waiting,
    }  # fmt: skip
    if model.counter is not None:
        shown |= {"counter": model.counter, "lag": model.lag}
    return shown


def _at_rest(before: Mapping[str, Any] | None) -> Status | None:
    """What was known of a tenant that no replica knows now: its totals stay, and nothing runs."""
    if before is None:
        return None
    models = [{**model, "running": 0, "waiting": 0} for model in before.get("models", ())]
    return {**{n: v for n, v in before.items() if n != "asOf"}, "running": 0, "waiting": 0, "models": models}


def _figures(usage: Mapping[str, Any]) -> tuple[Any, ...]:
    """What changes by traffic of the tenant's own."""
    models = [{n: v for n, v in m.items() if n not in ("counter", "lag")} for m in usage.get("models", ())]
    return {n: v for n, v in usage.items() if n not in ("asOf", "models")}, models
