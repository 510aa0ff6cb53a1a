from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafleet_runtime.frontend.detokenize import Detokenizer
from lorafleet_runtime.frontend.token_bytes import TokenBytes
from lorafleet_runtime.model.tiny_tokenizer import tiny_tokenizer
from lorafleet_runtime.protocol import TokenLogprobs

TOKENIZER = tiny_tokenizer()  # a token a byte: every character above ASCII is split
TABLE = TokenBytes(TOKENIZER)
EOS = TOKENIZER.encode("<|im_end|>").ids[0]

ids_lists = st.lists(st.integers(0, 270), max_size=40)
texts = st.text(st.sampled_from("abcé😀\u0301 \n"), max_size=20)


def ids_of(text: str) -> list[int]:
    return list(text.encode())


def chunked(ids: list[int], sizes: list[int]) -> list[list[int]]:
    cuts = list(itertools.accumulate(sizes, initial=0))
    return [ids[a:b] for a, b in itertools.pairwise([*cuts, len(ids)]) if a < len(ids)]


@given(ids_lists, st.lists(st.integers(1, 5), max_size=10))
def test_the_deltas_are_the_whole_text_whatever_the_ids_and_the_steps(ids: list[int], sizes: list[int]) -> None:
    detokenizer = Detokenizer(TABLE)
    pieces = [detokenizer.feed(chunk) for chunk in chunked(ids, sizes)] + [detokenizer.finish()]

    expected = b"".join(TABLE.of(token_id) for token_id in ids).decode("utf-8", errors="replace")
    assert "".join(piece.text for piece in pieces) == expected
    assert [token_id for piece in pieces for token_id in piece.token_ids] == ids


@given(st.text(max_size=30))
def test_no_delta_splits_a_character(text: str) -> None:
    try:
        ids = ids_of(text)
    except UnicodeEncodeError:
        return
    detokenizer = Detokenizer(TABLE)
    deltas = [detokenizer.feed([token_id]).text for token_id in ids]

    assert "".join(deltas) == text
    assert all("\ufffd" not in delta for delta in deltas) or "\ufffd" in text


@given(st.text(max_size=30))
def test_the_text_is_what_the_tokenizer_decodes(text: str) -> None:
    try:
        ids = ids_of(text)
    except UnicodeEncodeError:
        return

    assert Detokenizer(TABLE).feed(ids).text == TOKENIZER.decode(ids)


def first_stop(text: str, stops: list[str]) -> int | None:
    """Where the text ends when it is read a byte at a time: at the stop string that is complete first."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts)
    return None


@given(texts, st.lists(st.text(st.sampled_from("abc😀"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_stop_strings_end_the_text_and_never_leak(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(TABLE, stops)
    sent, stopped = "", None
    for token_id in ids_of(text):
        piece = detokenizer.feed([token_id])
        sent += piece.text
        stopped = piece.stopped
        if stopped is not None:
            break
    else:
        sent += detokenizer.finish().text

    end = first_stop(text, stops)
    assert sent == (text if end is None else text[:end])
    assert (stopped is None) == (end is None)


@given(texts, st.lists(st.text(st.sampled_from("abc"), min_size=1, max_size=4), min_size=1, max_size=3))
def test_at_most_the_beginning_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    detokenizer = Detokenizer(TABLE, stops)
    fed = sent = ""
    for character in text:
        piece = detokenizer.feed(ids_of(character))
        if piece.stopped is not None:
            return
        fed, sent = fed + character, sent + piece.text

        held = fed.removeprefix(sent)
        assert fed.startswith(sent)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


@given(texts, st.integers(0, 60), st.lists(st.text(st.sampled_from("abc😀"), min_size=1, max_size=3), max_size=2))
def test_a_stream_resumed_anywhere_goes_on_as_if_never_cut(text: str, cut: int, stops: list[str]) -> None:
    """The ids of the pieces that were delivered are all that the second detokenizer is told."""
    ids = ids_of(text)
    first = Detokenizer(TABLE, stops)
    delivered: list[int] = []
    sent = ""
    for token_id in ids[:cut]:
        piece = first.feed([token_id])
        delivered += piece.token_ids
        sent += piece.text
        if piece.stopped is not None:
            return
    second = Detokenizer(TABLE, stops)

    assert second.resume(delivered) is None
    for token_id in ids[len(delivered) :]:
        piece = second.feed([token_id])
        sent += piece.text
        if piece.stopped is not None:
            break
    else:
        sent += second.finish().text
    end = first_stop(text, stops)
    assert sent == (text if end is None else text[:end])


def test_a_stop_string_may_be_left_in() -> None:
    piece = Detokenizer(TABLE, ["END"], include_stop=True).feed(ids_of("so it ENDs"))

    assert (piece.text, piece.stopped) == ("so it END", "END")


def test_tokens_after_a_stop_string_are_not_counted() -> None:
    detokenizer = Detokenizer(TABLE, ["b"])
    piece = detokenizer.feed(ids_of("abcd"))

    assert (piece.text, piece.token_ids, detokenizer.count) == ("a", ids_of("ab"), 2)


def test_what_a_resumed_request_already_has_may_hold_the_stop_string() -> None:
    assert Detokenizer(TABLE, ["stop"]).resume(ids_of("now stop")) == "stop"


def test_the_stop_token_is_an_id_without_text() -> None:
    detokenizer = Detokenizer(TABLE, ["ab"])
    held = detokenizer.feed(ids_of("xa"))
    rest = detokenizer.finish(EOS)

    assert (held.text, rest.text, rest.token_ids, detokenizer.count) == ("x", "a", [ord("a"), EOS], 3)


@pytest.mark.parametrize(("show", "text"), [(False, "ab"), (True, "a<|im_end|>b")])
def test_special_tokens_are_hidden_unless_asked_for(show: bool, text: str) -> None:
    assert Detokenizer(TABLE, show_special=show).feed([ord("a"), EOS, ord("b")]).text == text


def test_logprobs_and_offsets_travel_with_their_tokens() -> None:
    detokenizer = Detokenizer(TABLE)
    ids = ids_of("é!")
    logprobs = [TokenLogprobs(token_id, -float(i)) for i, token_id in enumerate(ids)]
    nothing = detokenizer.feed(ids[:1], logprobs[:1])
    everything = detokenizer.feed(ids[1:], logprobs[1:])

    assert (nothing.text, nothing.token_ids, nothing.logprobs) == ("", [], [])
    assert (everything.text, everything.logprobs, everything.offsets) == ("é!", logprobs, [0, 0, 1])


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    assert Detokenizer(TABLE).feed([ord("a"), 100_000, ord("b")]).text == "ab"
