"""How many pods a Deployment is told to have, and which pods may count as ready. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from lorafleet_operator.core.actions import LoadAdapter, Plan
from lorafleet_operator.core.objects import BaseModel, Replica


def deployment_replicas(base: BaseModel, replicas: Iterable[Replica], stops: Collection[str], spec_hash: str) -> int:
    """`spec.replicas`, and as long as pods beyond that must not stop yet, those too.

    A Deployment deletes pods at once when it is told fewer; the plan knows which still serve a last copy.
    """
    alive = [r for r in replicas if r.state != "Draining" and r.spec_hash == spec_hash]
    staying = [r for r in alive if r.name not in stops]
    return max(base.replicas, len(staying)) if len(alive) > base.replicas else base.replicas


def being_loaded(plan: Plan) -> frozenset[str]:
    """The replicas that this plan loads something on."""
    return frozenset(action.replica for action in plan.actions if isinstance(action, LoadAdapter))


def holds_its_adapters(replica: Replica, coming: Collection[str]) -> bool:
    """Is the replica Ready with every adapter that the plan wants there? `coming` are the replicas that the plan loads
    something on. What failed there is not waited for."""
    loading = any(resident.state in ("Pending", "Loading") for resident in replica.residents)
    return replica.state == "Ready" and replica.name not in coming and not loading
