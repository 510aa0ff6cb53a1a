"""Other projects' kernels come from a wheel or an installed package, or are missing for a reason that is told."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.kernels_rivals import Unavailable
from bench.kernels_wheels import Source, aligned


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Modules of the made-up package, after each test."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "strangers"]:
        del sys.modules[name]


def source(folder: Path | None) -> Source:
    bare = ["strangers", "strangers.lora"]
    return Source("strangers", ("strangers",), ["strangers.lora.kernel"], bare, lambda: None, folder)


def wheel(folder: Path, kernel: str) -> None:
    with zipfile.ZipFile(folder / "strangers-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("strangers/__init__.py", "raise ImportError('wants half of the world')")
        archive.writestr("strangers/lora/__init__.py", "raise ImportError('and the rest')")
        archive.writestr("strangers/lora/kernel.py", kernel)


def test_of_a_wheel_only_the_kernels_are_imported(tmp_path: Path) -> None:
    wheel(tmp_path, "ANSWER = 42\n")

    assert source(tmp_path).load()["kernel"].ANSWER == 42


def test_what_is_nowhere_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"strangers is not installed$"):
        source(None).load()
    with pytest.raises(Unavailable, match=f"no wheel of it in {tmp_path}"):
        source(tmp_path).load()


def test_what_does_not_import_says_why_every_time(tmp_path: Path) -> None:
    wheel(tmp_path, "from strangers.lora import gone\n")
    found = source(tmp_path)

    for _ in range(2):
        with pytest.raises(Unavailable, match="strangers does not import: ImportError: cannot import name 'gone'"):
            found.load()


def test_rows_are_sorted_into_whole_blocks_of_their_buckets() -> None:
    places, owners, count = aligned(torch.tensor([2, 0, 2, 2, 0]), 2, 4)

    assert places.tolist() == [1, 4, 0, 2, 3, 5]
    assert owners.tolist() == [0, 2, 2]
    assert count.tolist() == [6]
