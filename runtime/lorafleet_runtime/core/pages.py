"""The one allocator: fixed-size pages of pool memory, shared by KV cache and adapter weights.

A page id names the same page in every layer. Host-side, O(1) per page, reference-counted, no device sync
[S-LoRA 5.1; engine_kernels 7]. Knows nothing of what a page holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

PAGE_TOKENS = 16
"""Tokens of KV that one page holds in one layer."""


def pages_for_tokens(tokens: int) -> int:
    """Pages that hold the KV of so many tokens, the last one perhaps in part."""
    return -(-tokens // PAGE_TOKENS)


class OutOfPages(Exception):
    """The pool cannot give `wanted` pages now. Expected under load: callers evict, preempt or wait."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} pages wanted, {free} free")
        self.wanted = wanted
        self.free = free


class PagePool:
    """`total` pages with a free stack, a free map and reference counts."""

    def __init__(self, total: int) -> None:
        if total < 1:
            raise ValueError(f"a pool needs at least one page, got {total}")
        self.total = total
        self._refs = [0] * total
        self._free_map = bytearray(b"\x01") * total
        # Popped from the end, so low ids go first; ids that a run took stay in the stack and are skipped when popped.
        self._stack = list(range(total - 1, -1, -1))
        self._stacked = bytearray(b"\x01") * total
        self._free = total

    @property
    def free(self) -> int:
        return self._free

    def allocate(self, count: int) -> list[int]:
        """`count` pages with one reference each, in no order that matters. Raises OutOfPages and takes nothing."""
        if count > self._free:
            raise OutOfPages(count, self._free)
        pages: list[int] = []
        while len(pages) < count:
            page = self._stack.pop()
            self._stacked[page] = 0
            if self._free_map[page]:
                self._take(page)
                pages.append(page)
        return pages

    def allocate_run(self, count: int) -> list[int]:
        """Like `allocate`, but consecutive ids from the high end where such a run exists: a CPU then reads the pages
        as one view, without a gather."""
        if count > self._free:
            raise OutOfPages(count, self._free)
        start = self._free_map.rfind(b"\x01" * count) if count else 0
        if start < 0:
            return self.allocate(count)
        pages = list(range(start, start + count))
        for page in pages:
            self._take(page)
        return pages

    def retain(self, pages: Iterable[int]) -> None:
        """One more reference to pages that are in use."""
        for page in pages:
            assert self._refs[page] > 0, f"page {page} is free"
            self._refs[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One reference less; a page without references is free at once."""
        for page in reversed(pages):
            assert self._refs[page] > 0, f"page {page} is free already"
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._free_map[page] = 1
                self._free += 1
                if not self._stacked[page]:
                    self._stacked[page] = 1
                    self._stack.append(page)

    def _take(self, page: int) -> None:
        self._refs[page] = 1
        self._free_map[page] = 0
        self._free -= 1


def is_run(pages: Sequence[int]) -> bool:
    """Whether the ids are consecutive, so that a slice reads them."""
    return all(b == a + 1 for a, b in pairwise(pages))
