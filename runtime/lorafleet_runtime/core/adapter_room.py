"""Whether an adapter can ever run on a pool, beside one full context and the adapters that are pinned."""

from __future__ import annotations

from lorafleet_runtime.core.pages import pages_for_tokens


def why_no_room(adapter: str, pages: int, *, pinned: int, total: int, page_bytes: int, max_model_len: int) -> str:
    """What is needed and what there is, in pages and bytes, as a sentence; "" when it fits.

    `pinned` are the pages of other pinned adapters. What is idle or running now does not count: it leaves.
    """
    context = pages_for_tokens(max_model_len)
    available = total - context - pinned
    if pages <= available:
        return ""
    beside = f"one full context ({context})" + (f" and the pinned adapters ({pinned})" if pinned else "")
    return (
        f"adapter {adapter} needs {pages} pages ({pages * page_bytes} bytes); of the pool's {total} pages, "
        f"{max(available, 0)} ({max(available, 0) * page_bytes} bytes) are left beside {beside}: "
        f"raise engine.memory to {(context + pinned + pages) * page_bytes} bytes"
    )
