"""Messages on a pipe come out whole and in order, or not at all."""

from __future__ import annotations

import io

import msgspec
import pytest

from lorafleet_runtime.frames import frame, read_frame


class Word(msgspec.Struct, frozen=True, tag=True):
    text: str


WORDS = [Word("a"), Word(""), Word("x" * 70_000)]


def test_messages_come_out_as_they_went_in() -> None:
    pipe = io.BytesIO(b"".join(frame(word) for word in WORDS))
    bodies = [read_frame(pipe) for _ in WORDS]

    assert [msgspec.msgpack.decode(body or b"", type=Word) for body in bodies] == WORDS
    assert read_frame(pipe) is None


@pytest.mark.parametrize("left", [0, 1, 3, 4, 5, -1])
def test_of_a_message_that_was_cut_off_nothing_comes(left: int) -> None:
    assert read_frame(io.BytesIO(frame(WORDS[0])[:left])) is None
