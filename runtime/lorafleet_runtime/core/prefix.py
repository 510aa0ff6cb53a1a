"""The prefix cache: full pages of KV that later prompts with the same beginning use again, instead of computing them.

Pages are found by (adapter revision, tenant, the chain of tokens): KV depends on the adapter's weights, and one tenant
must not learn from a fast answer what another one asked. Tokens are compared themselves, not their hashes. Sequences
share a page by reference; nobody writes into a full page.

A page is given up only after all that continue it, and an adapter only after all prefixes that were computed with it:
a prefix without its adapter saves nothing before the adapter is back. [DESIGN 7; SGLang's radix cache has the first
rule; FastLibra (arXiv 2505.03756) the second]"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lorafleet_runtime.core.eviction import Costs, EvictionOrder, Purpose
from lorafleet_runtime.core.pages import PAGE_TOKENS, PagePool
from lorafleet_runtime.core.residency import Adapter
from lorafleet_runtime.core.sequence import Sequence as Run


@dataclass(slots=True, eq=False)
class Prefix:
    """One full page and how it is reached. `users`: sequences that hold it now; `uses`: that ever did."""

    tokens: tuple[int, ...]
    page: int
    parent: Prefix | None  # None: a chain's beginning, which has no page
    adapter: Adapter | None
    children: dict[tuple[int, ...], Prefix] = field(default_factory=dict)
    users: int = 0
    uses: int = 0
    ticket: int = 0


class PrefixCache:
    """`find`, then `hold` what was found; `keep` pages as they fill; `release` what was held."""

    def __init__(self, pool: PagePool, order: EvictionOrder, costs: Costs, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.pages = 0
        self.idle = 0  # of these, what no sequence holds
        self.asked = 0  # prompt tokens of all requests that were admitted
        self.hits = 0  # of these, what was found here
        self.evicted: Counter[str] = Counter()
        self.on_bare: Callable[[Adapter], None] = lambda adapter: None
        """Called when the last prefix of an adapter is gone."""
        self._pool = pool
        self._order = order
        self._costs = costs
        self._roots: dict[int, dict[str, Prefix]] = {}  # by adapter's handle (-1: the base model), then by tenant

    def find(self, run: Run) -> list[Prefix]:
        """The cached pages that a sequence begins with. The page of its last token is never among them: somebody has
        to compute what the next token is sampled from."""
        node = self._roots.get(_handle(run.adapter), {}).get(run.tenant)
        found: list[Prefix] = []
        tokens = run.tokens
        for begin in range(0, len(tokens) - PAGE_TOKENS, PAGE_TOKENS):
            node = node.children.get(tuple(tokens[begin : begin + PAGE_TOKENS])) if node else None
            if node is None:
                break
            found.append(node)
        return found

    def match(self, run: Run) -> int:
        """How many tokens of it are cached now."""
        return PAGE_TOKENS * len(self.find(run))

    def idle_pages(self, found: Sequence[Prefix]) -> int:
        """How many of these count as pages that may be given up."""
        return sum(prefix.users == 0 for prefix in found)

    def hold(self, found: Sequence[Prefix]) -> list[int]:
        """One more sequence reads these pages. Returns their ids, each with a reference for the sequence."""
        for prefix in found:
            if prefix.users == 0:
                self._order.take(prefix)
                self._rested(-1)
            prefix.users += 1
            prefix.uses += 1
        pages = [prefix.page for prefix in found]
        self._pool.retain(pages)
        return pages

    def release(self, held: Sequence[Prefix]) -> None:
        """A sequence is done with what it held, or kept. The references to the pages are the sequence's to drop."""
        for prefix in reversed(held):
            prefix.users -= 1
            if prefix.users == 0:
                self._rested(1)
                if not prefix.children:
                    self._put(prefix)

    def keep(self, run: Run) -> None:
        """Offer the pages that a sequence has filled since it was last asked. Where another sequence computed the same
        page meanwhile, this one goes on with the other's."""
        if not self.enabled:
            return
        held = run.prefixes
        for index in range(len(held), run.computed // PAGE_TOKENS):
            begin = index * PAGE_TOKENS
            tokens = tuple(run.tokens[begin : begin + PAGE_TOKENS])
            parent = held[-1] if held else self._root(run)
            prefix = parent.children.get(tokens)
            if prefix is None:
                prefix = Prefix(tokens, run.pages[index], parent, run.adapter, users=1, uses=1)
                parent.children[tokens] = prefix
                self._pool.retain((prefix.page,))
                self.pages += 1
                if run.adapter is not None:
                    run.adapter.prefixes += 1
            else:
                self._pool.release((run.pages[index],))
                run.pages[index : index + 1] = self.hold((prefix,))
            held.append(prefix)

    def forget(self, adapter: Adapter) -> None:
        """Drop all that was computed with an adapter that nobody uses any more."""
        for root in self._roots.pop(adapter.handle, {}).values():
            below = list(root.children.values())
            while below:
                prefix = below.pop()
                below += prefix.children.values()
                assert prefix.users == 0, f"a prefix of {adapter.id} is in use"
                self._order.take(prefix)
                self._rested(-1)
                self._drop(prefix)

    def _root(self, run: Run) -> Prefix:
        tenants = self._roots.setdefault(_handle(run.adapter), {})
        root = tenants.get(run.tenant)
        if root is None:
            root = tenants[run.tenant] = Prefix((), -1, None, run.adapter)
        return root

    def _rested(self, pages: int) -> None:
        self.idle += pages
        self._order.pages += pages

    def _put(self, prefix: Prefix) -> None:
        self._order.put(prefix, prefix.uses * PAGE_TOKENS * self._costs.token, self._evict)

    def _evict(self, prefix: Prefix, purpose: Purpose) -> None:
        self.evicted[purpose] += 1
        self._rested(-1)
        self._drop(prefix)
        parent, adapter = prefix.parent, prefix.adapter
        assert parent is not None
        del parent.children[prefix.tokens]
        if parent.parent is not None and parent.users == 0 and not parent.children:
            self._put(parent)
        if adapter is not None and adapter.prefixes == 0:
            self.on_bare(adapter)

    def _drop(self, prefix: Prefix) -> None:
        self._pool.release((prefix.page,))
        self.pages -= 1
        if prefix.adapter is not None:
            prefix.adapter.prefixes -= 1


def _handle(adapter: Adapter | None) -> int:
    return -1 if adapter is None else adapter.handle
