from __future__ import annotations

import pytest

from lorafleet_runtime.core.adapter_room import why_no_room


def verdict(pages: int, *, pinned: int = 0) -> str:
    """On a pool of 100 pages of 4 KiB; a full context takes ten of them."""
    return why_no_room("acme.a", pages, pinned=pinned, total=100, page_bytes=4096, max_model_len=160)


@pytest.mark.parametrize(("most", "pinned"), [(90, 0), (60, 30), (1, 89)])
def test_an_adapter_fits_just_beside_a_full_context_and_what_is_pinned(most: int, pinned: int) -> None:
    assert verdict(most, pinned=pinned) == ""
    assert verdict(most + 1, pinned=pinned) != ""


def test_a_refusal_has_both_numbers_and_what_would_do() -> None:
    assert verdict(200) == (
        "adapter acme.a needs 200 pages (819200 bytes); of the pool's 100 pages, 90 (368640 bytes) are left beside one "
        "full context (10): raise engine.memory to 860160 bytes"
    )
    assert "90 (368640 bytes)" not in verdict(61, pinned=30)
    assert "60 (245760 bytes) are left beside one full context (10) and the pinned adapters (30)" in verdict(
        61, pinned=30
    )


def test_what_would_do_does() -> None:
    needed = int(verdict(61, pinned=30).rpartition("raise engine.memory to ")[2].split()[0])

    assert why_no_room("a", 61, pinned=30, total=needed // 4096, page_bytes=4096, max_model_len=160) == ""
    assert why_no_room("a", 61, pinned=30, total=needed // 4096 - 1, page_bytes=4096, max_model_len=160) != ""


def test_a_pool_that_is_pinned_beyond_its_end_has_nothing_left_and_no_less() -> None:
    assert "0 (0 bytes) are left" in verdict(1, pinned=95)
