"""What a run was worth: is the fleet as wanted, and was a serving adapter ever lost on the way?"""

from __future__ import annotations

from collections import Counter

from lorafleet_operator.core.objects import Ref
from lorafleet_operator.reconcile import reconcile
from lorafleet_sim.world import SimWorld


def ready_copies(world: SimWorld) -> Counter[Ref]:
    """Ready copies of each wanted adapter on Ready replicas of its base model."""
    wanted = world.desired.adapters
    return Counter(
        resident.adapter
        for replica in world.truth().replicas.values()
        if replica.state == "Ready"
        for resident in replica.residents
        if resident.state == "Ready" and resident.adapter in wanted and wanted[resident.adapter].base == replica.base
    )


def shortfalls(world: SimWorld) -> list[str]:
    """Where the fleet is not as wanted, as sentences; empty when every replica and copy is there, and none twice."""
    truth, copies = world.truth(), ready_copies(world)
    found: list[str] = []
    for ref, base in world.desired.base_models.items():
        ready = sum(r.state == "Ready" for r in truth.replicas.values() if r.base == ref)
        if ready != base.replicas:
            found.append(f"{ref} has {ready} of {base.replicas} replicas")
    for ref, adapter in world.desired.adapters.items():
        least = min(adapter.copies_min, world.desired.base_models[adapter.base].replicas)
        if not least <= copies[ref] <= adapter.copies_max:
            found.append(f"{ref} has {copies[ref]} copies, not {least} to {adapter.copies_max}")
    for replica in truth.replicas.values():
        if len({(r.adapter, r.revision) for r in replica.residents}) < len(replica.residents):
            found.append(f"{replica.name} holds something twice")
    return found


async def watch(world: SimWorld, seconds: float) -> Counter[Ref]:
    """Run, and count per wanted adapter how often it had a Ready copy and then had none."""
    losses: Counter[Ref] = Counter()
    end, before = world.now() + seconds, ready_copies(world)
    while world.now() < end:
        decided = await reconcile(world)
        world.advance(max(world.next_event(decided) - world.now(), 0.01))
        after = ready_copies(world)
        losses.update(ref for ref in before if not after[ref] and ref in world.desired.adapters)
        before = after
    return losses
