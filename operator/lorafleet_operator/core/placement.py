"""Which adapter on which replica: as many copies as wanted, spread, and stability before optimality. Deterministic.

Nothing moves because it could lie better: a copy that is there stays there. New copies go where the fewest adapters
are, then where the most pages are free. Knows no actions and no time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Literal, NamedTuple

from lorafleet_operator.core.objects import Adapter, Ref, Replica, ReplicaState, Resident

# The same bytes on the same runtime give the same refusal: only another revision makes a difference.
PERMANENT = frozenset({"InvalidAdapter", "RankTooHigh", "DigestMismatch"})

Standing = Literal["Ready", "Loading", "Old", "Refused", "Failed", "Absent"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an adapter's copies belong: `targets` hold or get one, `surplus` have one too many.

    `refused` is the resident whose permanent failure makes any further load pointless.
    """

    targets: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()
    refused: Resident | None = None


# What each replica, by name, reports about one adapter: at most one entry per revision.
There = Mapping[str, tuple[Resident, ...]]


class Holder(NamedTuple):
    """What is said of a replica where one of its adapters is told of; not what its other adapters change."""

    name: str
    incarnation: str
    state: ReplicaState


# One adapter's residents with the replicas they are on, in the replicas' own order (index, then name).
Here = tuple[tuple[Holder, Resident], ...]


def residency(replicas: Iterable[Replica]) -> dict[Ref, dict[str, tuple[Resident, ...]]]:
    """Who holds what, by adapter and replica name. Built once per pass: fleets hold thousands of adapters."""
    found: dict[Ref, dict[str, tuple[Resident, ...]]] = defaultdict(dict)
    for replica in replicas:
        for resident in replica.residents:
            there = found[resident.adapter]
            there[replica.name] = (*there.get(replica.name, ()), resident)
    return dict(found)


def whereabouts(replicas: Iterable[Replica]) -> dict[Ref, dict[Ref, Here]]:
    """Who holds what, by base model and adapter."""
    found: dict[Ref, dict[Ref, Here]] = defaultdict(dict)
    for replica in sorted(replicas, key=lambda r: (r.index, r.name)):
        mine, holder = found[replica.base], Holder(replica.name, replica.incarnation, replica.state)
        for resident in replica.residents:
            mine[resident.adapter] = (*mine.get(resident.adapter, ()), (holder, resident))
    return found


def standing(residents: Sequence[Resident], revision: str) -> Standing:
    """How far one replica is with `revision`. Old: another revision serves or loads there, so this one belongs too."""
    wanted = [resident for resident in residents if resident.revision == revision]
    if any(resident.state == "Ready" for resident in wanted):
        return "Ready"
    if any(resident.state in ("Loading", "Pending") for resident in wanted):
        return "Loading"
    failed = [resident for resident in wanted if resident.state == "Failed"]
    if failed:
        return "Refused" if any(resident.reason in PERMANENT for resident in failed) else "Failed"
    return "Old" if serves_other(residents, revision) else "Absent"


def serves_other(residents: Sequence[Resident], revision: str) -> bool:
    """Does another revision than `revision` serve or load there?"""
    alive = ("Ready", "Loading", "Pending")
    return any(resident.state in alive for resident in residents if resident.revision != revision)


class Places:
    """The replicas of one base model that copies may lie on, and how full each is by now.

    A heap finds the emptiest, so that a pass costs adapters + replicas, never their product.
    """

    def __init__(self, replicas: Sequence[Replica], counts: Mapping[str, int]) -> None:
        """`counts` is the number of adapters on each replica."""
        self.order = {replica.name: position for position, replica in enumerate(replicas)}
        self._counts = {replica.name: counts.get(replica.name, 0) for replica in replicas}
        self._ties = {replica.name: (-replica.pages_free, replica.index, replica.name) for replica in replicas}
        self._heap = [self._key(name) for name in self.order]
        heapify(self._heap)

    def __len__(self) -> int:
        return len(self.order)

    def add(self, name: str) -> None:
        """One more adapter is decided for this replica."""
        self._counts[name] += 1
        heappush(self._heap, self._key(name))

    def emptiest(self, most: int, but: Collection[str]) -> list[str]:
        """Up to `most` replicas: the fewest adapters first, then the most free pages."""
        found: list[str] = []
        valid = []
        while self._heap and len(found) < most:
            key = heappop(self._heap)
            count, (_, _, name) = key
            if count != self._counts[name]:
                continue  # from before another adapter was decided for it
            valid.append(key)
            if name not in but:
                found.append(name)
        for key in valid:
            heappush(self._heap, key)
        return found

    def sorted(self, names: Iterable[str]) -> list[str]:
        """These replicas, the emptiest first."""
        return sorted(names, key=self._key)

    def _key(self, name: str) -> tuple[int, tuple[int, int, str]]:
        return self._counts[name], self._ties[name]


def place(adapter: Adapter, revision: str, places: Places, known: There) -> Placement:
    """Where the copies of `adapter` at `revision` belong among `places`, all of them able to load."""
    there = {name: known[name] for name in sorted(known.keys() & places.order.keys(), key=places.order.__getitem__)}
    stands = {name: standing(residents, revision) for name, residents in there.items()}
    holders = [name for name, state in stands.items() if _holds(state, there[name], revision)]
    ready = [name for name, state in stands.items() if state == "Ready"]
    needed = min(adapter.copies_min, len(places))
    refused = next((r for residents in there.values() for r in residents if _refuses(r, revision)), None)
    surplus = _extra(adapter, ready, stands)
    if len(ready) >= needed:  # memories of failures that no longer matter
        surplus += tuple(name for name in there if name not in holders and _only_failed(there[name]))
    targets = [name for name in holders if name not in surplus]
    if refused is None and len(holders) < needed:
        targets += _fresh(needed - len(holders), places, holders, stands)
    return Placement(tuple(targets), surplus, refused)


def _holds(state: Standing, residents: Sequence[Resident], revision: str) -> bool:
    return state in ("Ready", "Loading", "Old") or serves_other(residents, revision)


def _refuses(resident: Resident, revision: str) -> bool:
    return resident.revision == revision and resident.state == "Failed" and resident.reason in PERMANENT


def _fresh(most: int, places: Places, holders: Sequence[str], stands: Mapping[str, Standing]) -> list[str]:
    """Where a load failed comes last: it stays remembered there until the copies are made good elsewhere."""
    failed = [name for name, state in stands.items() if state == "Failed" and name not in holders]
    found = places.emptiest(most, {*holders, *failed})
    return [*found, *places.sorted(failed)[: most - len(found)]]


def _extra(adapter: Adapter, ready: Sequence[str], stands: Mapping[str, Standing]) -> tuple[str, ...]:
    """Copies beyond the maximum.

    Only Ready copies are given up, only when nothing is on its way, and always the last by order: two pictures of
    the same fleet, one of them stale, then never give up different copies until none is left.
    """
    unsettled = any(state in ("Loading", "Old") for state in stands.values())
    return () if unsettled else tuple(ready[adapter.copies_max :])


def _only_failed(residents: Sequence[Resident]) -> bool:
    return bool(residents) and all(resident.state == "Failed" for resident in residents)
