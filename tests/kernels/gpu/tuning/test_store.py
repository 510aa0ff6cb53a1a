"""Tunings are found again where they were put, and nothing that lies there can end a start."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from lorafleet_kernels.gpu.card import Card
from lorafleet_kernels.gpu.forms.attention import DecodeTiles
from lorafleet_kernels.gpu.forms.lora import Tiles
from lorafleet_kernels.gpu.tuning.document import Document, Tuning, to_json
from lorafleet_kernels.gpu.tuning.lora.lookup import LoraTuning
from lorafleet_kernels.gpu.tuning.store import (
    SHIPPED,
    CannotStore,
    check_folder,
    file_name,
    kernels_digest,
    load,
    own_folder,
    store,
)
from tests.kernels.gpu.tuning.tunings import CARD, attention_tuning, run, tuning


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    first, second, third = tuning(8, 8), tuning(64, 64, splits=4), attention_tuning()

    store(run([first]), CARD, tmp_path)
    path = store(run([second, third]), CARD, tmp_path)

    assert path.name == "nvidia-h200-132.json"
    assert load(CARD, [tmp_path]) == [second, third, first]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", path.name]


def test_what_was_measured_here_comes_before_what_shipped(tmp_path: Path) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    store(run([tuning(8, 8, splits=2)]), CARD, shipped)
    store(run([tuning(8, 8, splits=4)]), CARD, own)

    assert load(CARD, [own, shipped]) == [tuning(8, 8, splits=4), tuning(8, 8, splits=2)]


def test_a_card_of_which_nothing_is_known_has_none_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(CARD, [tmp_path, tmp_path / "nowhere"]) == []
    assert not caplog.records


def test_the_folder_is_the_users_cache_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LORAFLEET_TUNINGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert own_folder() == tmp_path / "lorafleet" / "tunings"
    monkeypatch.setenv("LORAFLEET_TUNINGS", "/elsewhere")
    assert own_folder() == Path("/elsewhere")


def _write(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("put", "said"),
    [
        (_write("{"), "no JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "can't decode"),
        (lambda path: path.mkdir(), "directory"),
        (_write(to_json(Document(CARD, kernels_digest(), ())).replace('"format": 2', '"format": 1')), "reads 2"),
        (_write(to_json(Document(CARD, "old", (run([tuning(8, 8)]),)))), "they are of other kernels (old, these are"),
        (
            _write(to_json(Document(replace(CARD, capability=(8, 0)), kernels_digest(), (run([tuning(8, 8)]),)))),
            "they are of Card(name='NVIDIA H200', capability=(8, 0)",
        ),
    ],
    ids=["half", "no text", "a folder", "an older format", "other kernels", "another card"],
)
def test_what_cannot_be_used_is_left_out_with_one_line(
    put: Callable[[Path], object], said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path / file_name(CARD))

    assert load(CARD, [tmp_path]) == []

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert said in record.getMessage()
    assert str(tmp_path / file_name(CARD)) in record.getMessage()


def test_forms_that_no_longer_ship_are_left_out_and_others_stay(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, gone = tuning(8, 8), tuning(64, 64)
    found = gone.found["o"]
    other = replace(found, config=replace(found.config, shrink=Tiles(1, 16, 512, 4, 5)))
    store(run([good, replace(gone, found={**gone.found, "o": other})]), CARD, tmp_path)

    assert load(CARD, [tmp_path]) == [good]

    (record,) = caplog.records
    assert "1 of 2 tunings" in record.getMessage()
    assert "no shrink by rows of 1x16x512 w4 s5 ships" in record.getMessage()


def test_attention_in_a_form_that_no_longer_ships_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(run([attention_tuning(DecodeTiles(512, 4, 5, 1)), tuning(8, 8)]), CARD, tmp_path)

    assert load(CARD, [tmp_path]) == [tuning(8, 8)]

    (record,) = caplog.records
    assert "no attention of n512 w4 s5, 1 programs a processor ships for decode" in record.getMessage()


@pytest.mark.parametrize("before", ["damaged", to_json(Document(CARD, "old", (run([tuning(8, 8)]),)))])
def test_a_run_takes_the_place_of_a_file_that_cannot_be_used(before: str, tmp_path: Path) -> None:
    (tmp_path / file_name(CARD)).write_text(before)

    store(run([tuning(64, 64)]), CARD, tmp_path)

    assert load(CARD, [tmp_path]) == [tuning(64, 64)]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    for fails in (lambda: check_folder(tmp_path / "file"), lambda: store(run([]), CARD, tmp_path / "file")):
        with pytest.raises(CannotStore, match="set LORAFLEET_TUNINGS to a folder"):
            fails()


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store(run([tuning(8, 8)]), CARD, tmp_path)
    before = path.read_text()

    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CannotStore, match="No space left"):
        store(run([tuning(64, 64)]), CARD, tmp_path)

    assert path.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", path.name]


_WRITER = """
import sys
from pathlib import Path
from lorafleet_kernels.gpu.tuning.store import store
from tests.kernels.gpu.tuning.tunings import CARD, run, tuning
for segments in map(int, sys.argv[2:]):
    store(run([tuning(64, segments)]), CARD, Path(sys.argv[1]))
"""


@pytest.mark.interpreted
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    wanted = [list(range(first, first + 8)) for first in (20, 40)]
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), *map(str, segments)], cwd=Path(__file__).parents[4]
        )
        for segments in wanted
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0]

    assert sorted(_segments(t) for t in load(CARD, [tmp_path])) == sorted(chain(*wanted))


def _segments(tuning: Tuning) -> int:
    assert isinstance(tuning, LoraTuning)
    return tuning.step.segments


def test_whatever_ships_is_of_these_kernels() -> None:
    assert SHIPPED.is_dir()
    for path in SHIPPED.glob("*.json"):
        name, processors = path.stem.rsplit("-", 1)
        assert name and int(processors) > 0
        record = path.read_text()
        assert kernels_digest() in record, f"{path.name} is of other kernels: tune anew, or remove it"


def test_names_of_cards_are_names_of_files() -> None:
    assert file_name(Card("NVIDIA GeForce RTX 3090 / Ti", (8, 6), 84)) == "nvidia-geforce-rtx-3090-ti-84.json"
