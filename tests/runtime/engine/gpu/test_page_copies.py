"""Adapters of any size come through a buffer of a fixed one, into their own pages and no others."""

from __future__ import annotations

import pytest
import torch

from lorafleet_runtime.engine.gpu.page_copies import PageCopies

LAYERS, PAGES, ELEMENTS = 3, 20, 8
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("staged_rows", [1, 4, 5, 1000])
def test_every_page_of_every_layer_is_written_and_no_other(staged_rows: int) -> None:
    pool = torch.full((LAYERS, PAGES, ELEMENTS), 7.0, device=DEVICE)
    copies = PageCopies(pool, staged_rows * ELEMENTS * 4)
    pages = [13, 2, 19, 3, 0]
    blob = torch.randn(LAYERS, len(pages), ELEMENTS, generator=torch.Generator().manual_seed(1))

    copies.write(pages, blob, read_now=True)
    copies.join()

    assert torch.equal(pool[:, pages].cpu(), blob)
    others = [page for page in range(PAGES) if page not in pages]
    assert bool((pool[:, others] == 7.0).all())


def test_what_is_written_last_is_what_a_page_holds() -> None:
    pool = torch.zeros(LAYERS, PAGES, ELEMENTS, device=DEVICE)
    copies = PageCopies(pool)
    for value in range(5):
        copies.write([value, value + 1], torch.full((LAYERS, 2, ELEMENTS), float(value)), read_now=False)
    copies.join()

    assert pool[0, :6, 0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 4.0]


def test_a_page_that_is_larger_than_the_buffer_would_be_is_copied_at_once() -> None:
    pool = torch.zeros(LAYERS, PAGES, ELEMENTS, device=DEVICE)
    copies = PageCopies(pool, staged_bytes=1)
    copies.write([1], torch.ones(LAYERS, 1, ELEMENTS), read_now=False)
    copies.join()

    assert pool.sum().item() == LAYERS * ELEMENTS
