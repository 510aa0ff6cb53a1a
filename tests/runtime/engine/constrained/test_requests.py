"""Constrained requests through the whole engine, on a tiny model with random weights: it would write anything."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from lorafleet_runtime.constraints.constraint import Constraint, Kind, Vocabulary
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from lorafleet_runtime.protocol import AbortRequest, AddRequest, Delta, LoadAdapter, Sampling
from tests.runtime.engine.conftest import CONFIG

END = 259
VOCABULARY = Vocabulary([*(bytes([byte]) for byte in range(256)), *[b""] * 8], (END,))
DATE = Constraint("regex", r"[12]\d{3}-[01]\d-[0-3]\d")
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b", None, 7]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, dict[str, Any]] = {
    "nested": {"type": "object", "properties": {"who": PERSON, "where": {"type": "array", "items": {"type": "boolean"},
               "minItems": 2, "maxItems": 2}}, "required": ["who", "where"], "additionalProperties": False},
    "enum": {"enum": ["red", "gré en", 3, None, {"a": [1]}]},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": -1, "exclusiveMaximum": 2}, "minItems": 1,
                "maxItems": 3},
    "union": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-f]{2,4}$"}, PERSON]},
    "references": {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "object", "properties": {
        "value": {"type": "integer", "minimum": 0, "maximum": 9}, "left": {"anyOf": [{"$ref": "#/$defs/leaf"},
        {"type": "null"}]}}, "required": ["value", "left"], "additionalProperties": False},
        "leaf": {"const": "leaf"}}},
    "optional": {"type": "object", "properties": {"a": {"const": 1}, "b": {"type": "null"}, "c": {"type": "boolean"}},
                 "additionalProperties": False},
    "format": {"type": "string", "format": "date"},
    "one of disjoint": {"oneOf": [{"type": "object", "properties": {"k": {"const": k}}, "required": ["k"],
                                   "additionalProperties": False} for k in ("x", "y")]},
}  # fmt: skip


@pytest.fixture
def engine(make: Callable[..., Engine]) -> Engine:
    engine = make(max_model_len=512)
    engine.handle(VOCABULARY)
    return engine


def ask(name: str, constraint: Constraint | None, *, adapter: str | None = None, resume: Iterable[int] = (),
        tenant: str = "", length: int = 300, **fields: Any) -> AddRequest:  # fmt: skip
    sampling = Sampling(max_tokens=length, stop_token_ids=(END,), constraint=constraint, **fields)
    return AddRequest(name, [ord(c) for c in "a prompt"], sampling, adapter, list(resume), tenant)


def run(engine: Engine, *requests: AddRequest) -> dict[str, list[Delta]]:
    """Until idle; deltas by request."""
    deltas: dict[str, list[Delta]] = {}
    for request in requests:
        engine.handle(request)
    deadline = time.monotonic() + 120
    while engine.has_work:
        assert time.monotonic() < deadline, "still busy"
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    return deltas


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def said(deltas: list[Delta]) -> tuple[list[int], str | None, str]:
    """All of it; in how many pieces depends on when the process of masks answers."""
    return tokens(deltas), deltas[-1].finish_reason, deltas[-1].error


def text(deltas: list[Delta]) -> str:
    """What was written, if it came to its end."""
    assert deltas[-1].finish_reason == "stop", deltas[-1]
    *written, end = tokens(deltas)
    assert end == END
    return bytes(written).decode()


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_the_model_wants_to_say_the_output_obeys_the_schema(engine: Engine, name: str) -> None:
    constraint = Constraint("json", json.dumps(SCHEMAS[name]))

    @settings(max_examples=12)
    @given(
        st.lists(st.integers(0, 2**63), min_size=3, max_size=3, unique=True),
        st.sampled_from([{}, {"temperature": 0.0}, {"top_p": 0.5}, {"temperature": 2.0, "presence_penalty": 1.5},
                         {"logit_bias": {END: -5.0, ord("!"): 90.0}}, {"top_k": 3, "logprobs": 2}]),
    )  # fmt: skip
    def obeys(seeds: list[int], fields: dict[str, Any]) -> None:
        requests = [ask(f"{seed}", constraint, seed=seed, **fields) for seed in seeds]
        for deltas in run(engine, *requests).values():
            if deltas[-1].finish_reason == "stop":
                written = text(deltas)
                jsonschema.validate(json.loads(written), SCHEMAS[name])
                assert "\n" not in written
            else:
                assert (deltas[-1].finish_reason, len(tokens(deltas))) == ("length", 300)

    obeys()
    assert engine.state().counters.constraints_compiled == 1


@pytest.mark.parametrize(
    ("kind", "constraint", "pattern"),
    [
        ("regex", DATE.text, DATE.text),
        ("regex", "(?i)(yes|no)(, (yes|no)){0,3}[.!]", "(?i)(yes|no)(, (yes|no)){0,3}[.!]"),
        ("regex", "[α-ω]{1,9}|😀+", "[α-ω]{1,9}|😀+"),
        ("choice", '["one", "one two", "été"]', "one|one two|été"),
        ("grammar", 'start: item ("+" item)*\nitem: /[0-9]{1,2}/', r"\d{1,2}(\+\d{1,2})*"),
    ],
)
def test_regexes_choices_and_grammars_are_matched_whole(
    engine: Engine, kind: Kind, constraint: str, pattern: str
) -> None:
    requests = [ask(f"{seed}", Constraint(kind, constraint), seed=seed, length=500) for seed in range(12)]
    found = {text(deltas) for deltas in run(engine, *requests).values()}

    assert all(re.fullmatch(pattern, written) for written in found)
    assert len(found) > 1


def test_max_tokens_cuts_the_text_wherever_it_is(engine: Engine) -> None:
    got = run(engine, ask("cut", DATE, length=6))["cut"]

    assert got[-1].finish_reason == "length"
    assert re.fullmatch(r"[12]\d{3}-[01]", bytes(tokens(got)).decode())


def test_a_seed_gives_the_same_text_in_any_batch_and_free_requests_notice_nothing(
    engine: Engine, make: Callable[..., Engine]
) -> None:
    one = Constraint("json", json.dumps(SCHEMAS["union"]))
    free = [ask("greedy", None, temperature=0.0, length=40), ask("free", None, seed=3, length=40)]
    without = run(engine, *free)
    alone = run(engine, ask("one", one, seed=9))
    bound = [ask("two", DATE, seed=1), ask("one", one, seed=9), ask("three", DATE, temperature=0.0)]
    together = run(engine, bound[0], *free, *bound[1:])

    assert said(together["one"]) == said(alone["one"])
    for name in ("greedy", "free"):
        assert together[name] == without[name]


def test_a_request_goes_on_elsewhere_where_it_was(engine: Engine, make: Callable[..., Engine]) -> None:
    constraint = Constraint("json", json.dumps(PERSON))
    whole = tokens(run(engine, ask("whole", constraint, seed=4))["whole"])
    elsewhere = make(max_model_len=512)
    elsewhere.handle(VOCABULARY)
    for cut in (1, 9, len(whole) - 1):
        rest = run(elsewhere, ask(f"rest {cut}", constraint, seed=4, resume=whole[:cut]))
        assert tokens(rest[f"rest {cut}"]) == whole[cut:]

    misfit = run(elsewhere, ask("misfit", constraint, resume=b"[1"))["misfit"]
    assert misfit[0].error.startswith("invalid_constraint: the tokens generated so far do not fit: token 91 ")


FORESEEN = {
    "type": "object",
    "properties": {
        "a long name": {"enum": ["one value", "one more"]}, "age": {"type": "integer", "minimum": 0, "maximum": 9},
        "that is that": {"const": "what is known does not have to be asked for"},
    },
    "required": ["a long name", "age", "that is that"],
    "additionalProperties": False,
}  # fmt: skip


def test_what_must_come_takes_no_steps_of_its_own_and_every_token_is_the_same(make: Callable[..., Engine]) -> None:
    constraint = Constraint("json", json.dumps(FORESEEN))
    asked: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"seed": 1}, {"seed": 2, "top_p": 0.6, "presence_penalty": 0.5},
        {"seed": 3, "logprobs": 2},
    ]  # fmt: skip
    requests = [ask(f"{i}", constraint, **fields) for i, fields in enumerate(asked)]
    foresees, plain = make(max_model_len=512), make(max_model_len=512)
    plain._constraints.foreseen = dict  # type: ignore[method-assign]
    ends = {}
    for engine in (foresees, plain):
        engine.handle(VOCABULARY)
        ends[engine] = {name: said(deltas) for name, deltas in run(engine, *requests).items()}

    assert ends[foresees] == ends[plain]
    for made, *_ in ends[plain].values():
        jsonschema.validate(json.loads(bytes(made[:-1])), FORESEEN)
    mine, others = foresees.state().counters, plain.state().counters
    assert others.foreseen_tokens == 0
    assert mine.foreseen_tokens > mine.generation_tokens // 2
    assert mine.steps < others.steps // 2


@pytest.mark.parametrize("length", [1, 2, 7, 20, 27])
def test_max_tokens_and_stop_tokens_cut_what_must_come(engine: Engine, length: int) -> None:
    alphabet = Constraint("choice", '["abcdefghijklmnopqrstuvwxyz"]')
    request = ask("cut", alphabet, length=length, resume=b"abc"[: length // 3])
    stops = ask("stops", alphabet)
    stops = replace(stops, sampling=replace(stops.sampling, stop_token_ids=(ord("k"), END)))
    got = run(engine, request, stops)

    resumed = len(request.output_token_ids)
    expected = [*b"abcdefghijklmnopqrstuvwxyz", END][:length]
    assert tokens(got["cut"]) == expected[resumed:]
    assert tokens(got["stops"]) == list(b"abcdefghijk")
    assert got["stops"][-1].finish_reason == "stop"


def test_preempted_requests_say_the_same(engine: Engine, make: Callable[..., Engine]) -> None:
    constraint = Constraint("json", json.dumps({"type": "array", "items": {"enum": [1, 2]}, "minItems": 60}))
    requests = [ask(f"{seed}", constraint, seed=seed, length=150) for seed in range(6)]
    small = make(24, max_model_len=256)
    small.handle(VOCABULARY)
    expected, got = run(engine, *requests), run(small, *requests)

    assert small.state().counters.preemptions > 0
    assert {name: tokens(deltas) for name, deltas in got.items()} == {n: tokens(d) for n, d in expected.items()}


def test_adapters_obey_beside_the_base_model(engine: Engine, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        save_adapter(folder, random_adapter(CONFIG, rank=4, seed=seed))
        engine.handle(LoadAdapter(name, "r1", str(folder)))
    deadline = time.monotonic() + 30
    while {a.state for a in engine.state().adapters} != {"Ready"}:
        assert time.monotonic() < deadline
        engine.step()
    names = {"base": None, "on a": "a", "on b": "b"}
    got = run(engine, *(ask(name, DATE, adapter=adapter, seed=5) for name, adapter in names.items()))

    assert all(re.fullmatch(DATE.text, text(got[name])) for name in names)


REFUSED = Constraint("regex", "(?=a)b")


def test_what_cannot_be_compiled_ends_its_own_request_only(engine: Engine) -> None:
    hostile = Constraint("json", '{"type": "integer", "multipleOf": 999983}')
    got = run(engine, ask("bad", REFUSED, tenant="b"), ask("slow", hostile, tenant="s"), ask("good", DATE, tenant="g"))

    assert got["bad"][0].error.startswith("invalid_constraint: regex parse error: look-around")
    assert got["slow"][0].error == "invalid_constraint: compiling it takes more than 1 s"
    assert re.fullmatch(DATE.text, text(got["good"]))


def test_tenants_take_turns_at_compiling(engine: Engine) -> None:
    """One who sends many hostile constraints keeps another's waiting for one of them."""
    many = [ask(f"bad {i}", Constraint("regex", f"(?={i})"), tenant="many") for i in range(20)]
    got = run(engine, *many, ask("good", DATE, tenant="other"))

    assert list(got).index("good") < 10
    assert re.fullmatch(DATE.text, text(got["good"]))


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_who_hangs_or_kills_the_process_of_masks_loses_its_request_and_others_go_on(
    engine: Engine, number: signal.Signals
) -> None:
    requests = [ask("first", Constraint("regex", "[ab]{200}")), ask("second", DATE, seed=2)]
    expected = {each.request_id: run(engine, each)[each.request_id] for each in requests}
    deltas: list[Delta] = []
    for request in requests:
        engine.handle(request)
    while not any(delta.request_id == "second" for delta in deltas):
        deltas += engine.step()
    pid = engine._constraints.pid
    assert pid is not None
    os.kill(pid, number)
    rest = run(engine)
    got = {name: [d for d in deltas if d.request_id == name] + rest[name] for name in expected}

    # Whose mask was being made when it happened is chance, and whether one was when it died.
    lost = [name for name in expected if got[name][-1].error.startswith("constraint_too_slow: ")]
    assert len(lost) == 1 if number == signal.SIGSTOP else len(lost) <= 1
    assert all(said(got[name]) == said(expected[name]) for name in expected if name not in lost)
    assert engine._constraints.pid != pid
    assert re.fullmatch(DATE.text, text(run(engine, ask("next", DATE))["next"]))


def test_only_whose_mask_was_being_made_when_the_process_stopped_loses_its_request(engine: Engine) -> None:
    names = ("first", "second", "third")
    for name in names:
        engine.handle(ask(name, Constraint("regex", "[01]{200}")))
    deltas: list[Delta] = []
    while {delta.request_id for delta in deltas} != set(names):
        deltas += engine.step()
    process = engine._constraints._process
    assert process is not None
    places = [(name, len(engine._constraints._requests[name].output)) for name in names]
    engine._constraints.masks(places)  # the process has nothing to do
    os.kill(process.pid, signal.SIGSTOP)
    engine._constraints.prepare((name, [*engine._constraints._requests[name].output, ord("0")]) for name in names)
    process._progress.making = engine._constraints._asked._count - 1
    first, second, third = [(name, at + 1) for name, at in places]
    masks = engine._constraints.masks([first, second, third])

    assert list(masks.errors) == [second]
    assert masks.errors[second].startswith("constraint_too_slow: the mask of a token took more than 1 s")
    assert list(masks.allowed) == [first, third]


def test_requests_that_are_aborted_are_forgotten_at_every_stage(engine: Engine) -> None:
    for name in ("compiling", "queued"):
        engine.handle(ask(name, DATE))
        engine.handle(AbortRequest(name))
    engine.handle(ask("running", Constraint("regex", "[ab]{200}")))
    deltas: list[Delta] = []
    while not deltas:
        deltas += engine.step()
    engine.handle(AbortRequest("running"))

    assert {delta.request_id for delta in deltas} == {"running"}
    assert run(engine) == {}
    assert engine._constraints._requests == {}


def test_a_request_that_ends_while_its_step_runs_stops_nobody(engine: Engine) -> None:
    engine.handle(ask("other", DATE, seed=1))
    deltas: list[Delta] = []
    while not deltas:
        deltas += engine.step()
    engine._constraints.prepare([("gone", [1, 2]), ("other", tokens(deltas))])
    gone, other = ("gone", 2), ("other", len(tokens(deltas)))
    masks = engine._constraints.masks([gone, other])

    assert masks.errors[gone].startswith("constraint_lost: ")
    assert list(masks.allowed) == [other]
    assert re.fullmatch(DATE.text, text(deltas + run(engine)["other"]))


def test_an_engine_that_does_not_know_the_texts_of_tokens_says_so(make: Callable[..., Engine]) -> None:
    got = run(make(), ask("mute", DATE), ask("free", None, length=2))

    assert got["mute"][0].error.startswith("constraints_unavailable: ")
    assert len(tokens(got["free"])) == 2


def test_the_process_starts_with_the_first_constraint_and_ends_with_the_engine(engine: Engine) -> None:
    run(engine, ask("free", None, length=3))
    before = engine._constraints.pid
    run(engine, ask("bound", DATE))
    pid = engine._constraints.pid
    engine.close()

    assert before is None
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
