"""The allocator: what it promises under any sequence of calls."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_runtime.core.pages import OutOfPages, PagePool, is_run, pages_for_tokens


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_a_page_holds_sixteen_tokens(tokens: int, pages: int) -> None:
    assert pages_for_tokens(tokens) == pages


def test_a_pool_that_is_out_of_pages_takes_nothing() -> None:
    pool = PagePool(4)
    pool.allocate(3)

    with pytest.raises(OutOfPages) as raised:
        pool.allocate(2)

    assert (raised.value.wanted, raised.value.free, pool.free) == (2, 1, 1)


def test_a_shared_page_is_free_only_after_its_last_reader() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1)
    pool.retain(pages)

    pool.release(pages)
    assert pool.free == 1
    pool.release(pages)
    assert pool.free == 2


def test_releasing_a_free_page_is_refused() -> None:
    pool = PagePool(2)
    pages = pool.allocate(1)
    pool.release(pages)

    with pytest.raises(AssertionError):
        pool.release(pages)


def test_a_run_is_consecutive_where_one_exists_and_scattered_where_none_does() -> None:
    pool = PagePool(8)
    low = pool.allocate(4)
    assert is_run(pool.allocate_run(3))

    pool.release([low[0], low[2]])
    scattered = pool.allocate_run(3)

    assert len(set(scattered)) == 3
    assert not is_run(scattered)


@given(st.lists(st.tuples(st.sampled_from(["allocate", "run", "release", "retain"]), st.integers(0, 7)), max_size=60))
def test_no_page_is_lost_or_given_twice(calls: list[tuple[str, int]]) -> None:
    pool = PagePool(16)
    held: list[list[int]] = []
    for call, number in calls:
        if call in ("allocate", "run"):
            try:
                held.append(pool.allocate(number) if call == "allocate" else pool.allocate_run(number))
            except OutOfPages:
                assert number > pool.free
        elif held and call == "release":
            pool.release(held.pop(number % len(held)))
        elif held:
            pages = held[number % len(held)]
            pool.retain(pages)
            held.append(pages)
        in_use = {page for pages in held for page in pages}
        assert pool.free == pool.total - len(in_use)

    for pages in held:
        pool.release(pages)
    assert sorted(pool.allocate(16)) == list(range(16))
