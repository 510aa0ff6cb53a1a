"""The one seam between deciding and doing, and one pass over it."""

from __future__ import annotations

from typing import Protocol

from lorafleet_operator.core.actions import Action, Plan
from lorafleet_operator.core.objects import Desired, Observed
from lorafleet_operator.core.planner import plan


class World(Protocol):
    """What the planner's shell needs of a world. Executing is dumb and idempotent: a failed action is not retried in
    place, the next pass plans again from what is observed."""

    async def observe(self) -> tuple[Desired, Observed]:
        """What is wanted, without the objects that `validation.admit` refuses, and what is there."""
        ...

    async def execute(self, action: Action) -> None: ...

    async def publish(self, desired: Desired, observed: Observed, plan: Plan) -> None:
        """Write status and the gateways' documents, coalesced: nothing is written when nothing changed."""
        ...

    def now(self) -> float:
        """Monotonic seconds."""
        ...


async def reconcile(world: World) -> Plan:
    """Observe, plan, act, publish. An empty plan means converged."""
    desired, observed = await world.observe()
    decided = plan(desired, observed, world.now())
    for action in decided.actions:
        await world.execute(action)
    await world.publish(desired, observed, decided)
    return decided
