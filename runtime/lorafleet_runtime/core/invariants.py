"""What must hold between any two steps: every page is free or owned, and every count equals what it counts.

The auditor of tests and soaks: it reads what the parts keep to themselves, trusts none of their sums, and changes
nothing. O(pages + adapters + sequences). A page may have many owners: sequences that share a prefix, and the prefix
cache; each owner is one reference, no more and no less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from lorafleet_runtime.core.pages import PagePool, pages_for_tokens
from lorafleet_runtime.core.prefix import Prefix, PrefixCache
from lorafleet_runtime.core.residency import Residency
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence


def violations(room: Room, scheduler: Scheduler) -> list[str]:
    """Every invariant that does not hold, as a sentence; [] when all do."""
    running, waiting = list(scheduler._running), list(scheduler.queued())
    prefixes = list(_prefixes(room.prefixes))
    owners = Counter(page for sequence in running for page in sequence.pages)
    owners.update(page for adapter in room.residency.all() for page in adapter.pages)
    owners.update(prefix.page for prefix in prefixes)
    return [
        *_pool(room.pool, owners),
        *_queue(scheduler, running, waiting),
        *_sequences(running, waiting),
        *_adapters(room.residency, running, waiting, prefixes, owners),
        *_prefix_cache(room.prefixes, running, prefixes),
        *_evictable(room, prefixes),
    ]


def leaks(room: Room, scheduler: Scheduler) -> list[str]:
    """What is still held when nobody asks for anything: pages of no adapter and no prefix, users of either."""
    found = violations(room, scheduler)
    idle = room.residency.pages_used + room.prefixes.pages
    if scheduler.has_work:
        found.append(f"{scheduler.running} sequences run and {scheduler.waiting} wait")
    if room.pool.total - room.pool.free != idle:
        found.append(f"{room.pool.total - room.pool.free} pages are taken, {idle} hold adapters or prefixes")
    found += [f"adapter {a.id} still drains" for a in room.residency.all() if a.draining]
    return found


def _pool(pool: PagePool, owners: Counter[int]) -> Iterator[str]:
    for page, references in enumerate(pool._refs):
        if references != owners[page]:
            yield f"page {page} has {references} references and {owners[page]} owners"
        if bool(pool._free_map[page]) != (references == 0):
            yield f"page {page} has {references} references and is marked {'free' if pool._free_map[page] else 'used'}"
    if strangers := [page for page in owners if not 0 <= page < pool.total]:
        yield f"pages {strangers} are owned and do not exist"
    if pool.free != pool._refs.count(0):
        yield f"the pool counts {pool.free} free pages; {pool._refs.count(0)} have no reference"
    stacked = Counter(pool._stack)
    for page in range(pool.total):
        if stacked[page] != pool._stacked[page]:
            yield f"page {page} lies {stacked[page]} times in the free stack, which counts {pool._stacked[page]}"
        if pool._free_map[page] and not stacked[page]:
            yield f"page {page} is free and will never be found"


def _queue(scheduler: Scheduler, running: list[Sequence], waiting: list[Sequence]) -> Iterator[str]:
    known = Counter(sequence.request_id for sequence in (*running, *waiting))
    if known != Counter(scheduler._by_id.keys()):
        strange = known.keys() ^ scheduler._by_id.keys() or {name for name, count in known.items() if count > 1}
        yield f"requests {sorted(strange)} are known and nowhere, or in two places"
    for tenant, tally in scheduler.queue.tallies.items():
        counted = sum(s.tenant == tenant for s in running), sum(s.tenant == tenant for s in waiting)
        if counted != (tally.running, tally.waiting):
            yield f"tenant {tenant!r} has (running, waiting) {counted}, and {tally.running, tally.waiting} in its tally"


def _sequences(running: list[Sequence], waiting: list[Sequence]) -> Iterator[str]:
    for sequence in waiting:
        if sequence.pages or sequence.prefixes or sequence.computed:
            yield f"request {sequence.request_id} waits and holds {len(sequence.pages)} pages"
    for sequence in running:
        name = f"request {sequence.request_id}"
        if len(set(sequence.pages)) < len(sequence.pages):
            yield f"{name} has a page twice"
        if not 0 <= sequence.computed < len(sequence.tokens):
            yield f"{name} has computed {sequence.computed} of {len(sequence.tokens)} tokens"
        if len(sequence.pages) < pages_for_tokens(sequence.computed):
            yield f"{name} has {len(sequence.pages)} pages for {sequence.computed} tokens"
        if [prefix.page for prefix in sequence.prefixes] != sequence.pages[: len(sequence.prefixes)]:
            yield f"{name} has other pages than the prefixes it holds"
        if sequence.finish_reason is not None:
            yield f"{name} has finished and still runs"


def _adapters(
    residency: Residency, running: list[Sequence], waiting: list[Sequence], prefixes: list[Prefix], owners: Counter[int]
) -> Iterator[str]:
    users = Counter(id(s.adapter) for s in running if s.adapter is not None)
    queued = Counter(id(s.adapter) for s in waiting if s.adapter is not None)
    cached = Counter(id(prefix.adapter) for prefix in prefixes if prefix.adapter is not None)
    adapters = residency.all()
    for adapter in adapters:
        name = f"adapter {adapter.id} ({adapter.revision})"
        for what, count, counted in (
            ("users", adapter.users, users[id(adapter)]),
            ("waiting", adapter.waiting, queued[id(adapter)]),
            ("prefixes", adapter.prefixes, cached[id(adapter)]),
        ):
            if count != counted:
                yield f"{name} counts {count} {what}, there are {counted}"
        if len(adapter.pages) not in (0, adapter.pages_needed):
            yield f"{name} has {len(adapter.pages)} of {adapter.pages_needed} pages"
        if shared := [page for page in adapter.pages if owners[page] != 1]:
            yield f"{name} shares its pages {shared}"
        if adapter.users and not adapter.resident:
            yield f"{name} has {adapter.users} users and no pages"
    if forgotten := (users.keys() | queued.keys() | cached.keys()) - {id(adapter) for adapter in adapters}:
        yield f"{len(forgotten)} adapters are used and not known"
    if residency.pages_used != (held := sum(len(adapter.pages) for adapter in adapters)):
        yield f"the residency counts {residency.pages_used} pages, its adapters hold {held}"


def _prefix_cache(cache: PrefixCache, running: list[Sequence], prefixes: list[Prefix]) -> Iterator[str]:
    users = Counter(id(prefix) for sequence in running for prefix in sequence.prefixes)
    for prefix in prefixes:
        name = f"the prefix on page {prefix.page}"
        if prefix.users != users[id(prefix)]:
            yield f"{name} counts {prefix.users} users, there are {users[id(prefix)]}"
        parent = prefix.parent
        if parent is None or parent.children.get(prefix.tokens) is not prefix:
            yield f"{name} is not among its parent's children"
        elif parent.parent is not None and parent.users < prefix.users:
            yield f"{name} has {prefix.users} users, what it continues has {parent.users}"
    if unknown := users.keys() - {id(prefix) for prefix in prefixes}:
        yield f"{len(unknown)} prefixes are held and not in the cache"
    if cache.pages != len(prefixes):
        yield f"the prefix cache counts {cache.pages} pages, it has {len(prefixes)}"
    if cache.idle != (idle := sum(prefix.users == 0 for prefix in prefixes)):
        yield f"the prefix cache counts {cache.idle} idle pages, there are {idle}"


def _evictable(room: Room, prefixes: list[Prefix]) -> Iterator[str]:
    idle = [adapter for adapter in room.residency.all() if room.residency.is_idle(adapter)]
    pages = sum(len(adapter.pages) for adapter in idle) + sum(prefix.users == 0 for prefix in prefixes)
    if room.order.pages != pages:
        yield f"{room.order.pages} pages count as evictable, {pages} are idle"
    leaving = {adapter.handle for adapter in idle if not adapter.prefixes}
    for adapter in room.residency.all():
        if bool(adapter.ticket) != (adapter.handle in leaving):
            yield f"adapter {adapter.id} is{'' if adapter.ticket else ' not'} in the order of eviction, wrongly"
    for prefix in prefixes:
        if bool(prefix.ticket) != (prefix.users == 0 and not prefix.children):
            listed = "" if prefix.ticket else " not"
            yield f"the prefix on page {prefix.page} is{listed} in the order of eviction, wrongly"


def _prefixes(cache: PrefixCache) -> Iterator[Prefix]:
    tenants = [root for roots in cache._roots.values() for root in roots.values()]
    below: list[Iterable[Prefix]] = [root.children.values() for root in tenants]
    while below:
        for prefix in below.pop():
            yield prefix
            below.append(prefix.children.values())
