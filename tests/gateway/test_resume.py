from __future__ import annotations

import itertools
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lorafleet_gateway.errors import ApiError, Lost, Moved
from lorafleet_gateway.resume import StreamTracker


def tracker(**fields: Any) -> StreamTracker:
    defaults = {"single": True, "keep_token_ids": False, "wants_usage": False, "event_bytes": 10_000}
    made = StreamTracker("pirate", **{**defaults, **fields})
    made.begin()
    return made


def event(text: str = "", ids: list[int] | None = None, **choice: Any) -> bytes:
    row = {"index": 0, "delta": {"content": text}, "token_ids": ids or [], "finish_reason": None, **choice}
    return data({"id": "a", "object": "chat.completion.chunk", "created": 1, "model": "acme.pirate", "choices": [row]})


def data(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def rows(events: bytes) -> list[dict[str, Any]]:
    return [
        json.loads(part.removeprefix(b"data: ")) for part in events.split(b"\n\n") if part and b"[DONE]" not in part
    ]


def texts(events: bytes) -> list[str]:
    return [choice["delta"].get("content", "") for row in rows(events) for choice in row["choices"]]


ROLE = event(delta={"role": "assistant", "content": ""})
STREAM = ROLE + b"".join(event(f"w{i} é", [i]) for i in range(5)) + event(finish_reason="stop") + b"data: [DONE]\n\n"


@given(st.lists(st.integers(0, len(STREAM)), max_size=20), st.booleans())
def test_how_the_bytes_are_cut_changes_nothing(cuts: list[int], windows_line_ends: bool) -> None:
    stream = STREAM
    if windows_line_ends:
        stream = stream.replace(b"\n\n", b"\r\n\r\n")
    whole, piecewise = tracker(), tracker()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    expected = whole.feed(STREAM)

    got = b"".join(piecewise.feed(stream[a:b]) for a, b in itertools.pairwise(edges))

    assert got == expected
    assert piecewise.output_token_ids == [0, 1, 2, 3, 4]
    assert piecewise.done


@given(st.integers(0, len(STREAM) - 1), st.integers(0, 400))
def test_wherever_a_stream_breaks_the_next_one_joins_without_a_seam(cut: int, second_cut: int) -> None:
    made = tracker()
    out = made.feed(STREAM[:cut])
    out += _resume(made, second_cut)
    out += _resume(made, 10**6)

    assert texts(out)[0] == ""
    assert "".join(texts(out)) == "".join(texts(tracker().feed(STREAM)))
    assert [row["choices"][0]["delta"].get("role") for row in rows(out)].count("assistant") == 1
    assert len({(row["id"], row["created"], row["model"]) for row in rows(out)}) == 1
    assert made.output_token_ids == [0, 1, 2, 3, 4]
    assert out.endswith(b"data: [DONE]\n\n")


def _resume(made: StreamTracker, most: int) -> bytes:
    """What the tracker makes of a new replica's stream that breaks after `most` bytes."""
    out = b"" if made.done else made.end()
    if made.done:
        return out
    made.begin()
    done = len(made.output_token_ids)
    again = [event(f"w{i} é", [i]) for i in range(done, 5)]
    stream = ROLE + b"".join(again) + event(finish_reason="stop") + b"data: [DONE]\n\n"
    return out + made.feed(stream.replace(b'"id": "a"', b'"id": "b"').replace(b'"created": 1', b'"created": 2')[:most])


def test_texts_and_numbers_stay_the_bytes_that_the_replica_wrote() -> None:
    odd = b'data: {"id":"a","model":"acme.pirate","choices":[{"index":0,"delta":{"content":"\\u00e9\\/"},'
    odd += b'"logprobs":{"p":-0.10000000000000000555},"token_ids":[1]}]}\n\n'

    assert b'"content":"\\u00e9\\/"},"logprobs":{"p":-0.10000000000000000555}' in tracker().feed(odd)


def test_token_ids_are_taken_out_unless_they_are_wanted() -> None:
    first = data({"id": "a", "model": "m", "prompt_token_ids": [7, 8], "choices": []}) + event("x", [5])

    assert b"token_ids" not in tracker().feed(first)
    kept = rows(tracker(keep_token_ids=True).feed(first))
    assert kept[0]["prompt_token_ids"] == [7, 8]
    assert kept[1]["choices"][0]["token_ids"] == [5]


def test_a_resumed_stream_does_not_repeat_the_prompts_ids() -> None:
    first = event("x", [5], prompt_token_ids=[7, 8])
    made = tracker(keep_token_ids=True)
    made.feed(first)
    made.begin()

    assert "prompt_token_ids" not in rows(made.feed(first.replace(b"[5]", b"[6]")))[0]["choices"][0]


def test_comments_pass_once_the_answer_has_begun() -> None:
    made = tracker()

    assert made.feed(b": ping\n\n") == b""
    assert not made.started
    assert made.feed(event("x", [1]) + b": ping\n\n").endswith(b": ping\n\n")


def test_an_end_after_the_last_token_is_completed_here() -> None:
    made = tracker(wants_usage=True)
    made.feed(event("x", [5], prompt_token_ids=[1, 2]) + event("y", [6], finish_reason="stop"))
    out = made.end()

    assert made.done
    assert rows(out)[0]["usage"] == {"prompt_tokens": 2, "completion_tokens": 2, "total_tokens": 4}
    assert rows(out)[0]["model"] == "pirate"


def test_a_usage_event_is_not_made_up_when_there_was_one() -> None:
    made = tracker(wants_usage=True)
    made.feed(event("x", [5], prompt_token_ids=[1], finish_reason="stop"))
    made.feed(data({"id": "a", "model": "m", "choices": [], "usage": {"total_tokens": 2}}))

    assert rows(made.end()) == []


def test_what_an_error_event_means_for_the_attempt() -> None:
    def failure(**fields: Any) -> ApiError | Exception | None:
        made = tracker()
        made.feed(event("x", [1]) + data({"error": fields}) + event("never", [2]))
        assert made.output_token_ids == [1]
        return made.failure

    moved = failure(message="go", type="server_error", code="moved", to="r2")
    assert isinstance(moved, Moved) and moved.to == "r2"
    assert isinstance(failure(message="bye", type="server_error", code="draining"), Moved)
    assert isinstance(failure(message="dead", type="server_error", code="engine_dead"), Lost)
    fault = failure(message="no", type="invalid_request_error", code="bad", param="stop")
    assert isinstance(fault, ApiError) and (fault.status, fault.code, fault.param) == (400, "bad", "stop")


def test_nonsense_and_endless_events_are_a_lost_replica() -> None:
    for nonsense in (b"data: {\n\n", b"data: 7\n\n", b'data: {"choices": 7}\n\n', b"data: " + b"x" * 20_000):
        made = tracker()
        made.feed(nonsense)
        assert isinstance(made.failure, Lost), nonsense[:20]


def test_several_choices_keep_everything_but_their_models_name() -> None:
    row = {"id": "a", "model": "acme.pirate", "choices": [{"index": 1, "delta": {"content": "x"}, "token_ids": [1]}]}
    made = tracker(single=False)

    assert rows(made.feed(data(row))) == [{**row, "model": "pirate"}]
    assert made.end() == b"" and isinstance(made.failure, Lost)
