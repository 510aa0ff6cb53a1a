"""Requests of every kind for an engine in this process, and what each of them got."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import NamedTuple

from lorafleet_runtime.core.invariants import leaks, violations
from lorafleet_runtime.engine.engine import Engine
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, tiny_config
from lorafleet_runtime.protocol import AbortRequest, AddRequest, LoadAdapter, Sampling

CONFIG = tiny_config("llama")
NAMES = ("a", "b", "c")


class End(NamedTuple):
    reason: str
    error: str


Outcome = list[int | float | End]
"""Tokens, each with its log-probability where that was asked for, and how it ended."""


def load(engine: Engine, folder: Path, *, alpha: float = 16.0, strength: float = 1.0) -> None:
    for seed, name in enumerate(NAMES):
        adapter = random_adapter(CONFIG, 4, ("q_proj", "down_proj"), seed, alpha=alpha, strength=strength)
        engine.handle(LoadAdapter(name, "r1", str(save_adapter(folder / name, adapter))))
    deadline = time.monotonic() + 30
    while any(a.state == "Loading" for a in engine.state().adapters):
        assert time.monotonic() < deadline
        engine.step()
        time.sleep(0.001)


def requests(count: int, seed: int) -> list[AddRequest]:
    """Of every kind: greedy and drawn, with and without what reads the output, that stop and that do not."""
    rng = random.Random(seed)
    made = []
    for index in range(count):
        sampling = Sampling(
            max_tokens=rng.choice((1, 2, 7, 20)),
            temperature=rng.choice((0.0, 0.0, 0.8)),
            seed=index,
            presence_penalty=rng.choice((0.0, 0.0, 0.7)),
            logprobs=rng.choice((-1, -1, 0)),
            stop_token_ids=tuple(rng.sample(range(256), 24)),
            min_tokens=rng.choice((0, 3)),
        )
        prompt = [rng.randrange(256) for _ in range(rng.choice((1, 9, 16, 33, 70)))]
        made.append(AddRequest(str(index), prompt, sampling, rng.choice((None, *NAMES)), tenant=rng.choice("xy")))
    return made


def serve(engine: Engine, asked: list[AddRequest], aborts: dict[int, str] | None = None) -> dict[str, Outcome]:
    """Requests come in a few at a time. What each got, token by token, and how it ended; audited in every step."""
    got: dict[str, Outcome] = {}
    waiting = list(asked)
    for step in range(2000):
        for request in waiting[:3]:
            engine.handle(request)
        del waiting[:3]
        if aborts and step in aborts:
            engine.handle(AbortRequest(aborts[step]))
        if not engine.has_work and not waiting:
            assert not leaks(engine._room, engine._scheduler)
            return got
        for delta in engine.step():
            outcome = got.setdefault(delta.request_id, [])
            for index, token in enumerate(delta.token_ids):
                outcome.append(token)
                outcome += [round(each.logprob, 3) for each in delta.logprobs[index : index + 1]]
            if delta.finish_reason:
                outcome.append(End(delta.finish_reason, delta.error))
        assert not violations(engine._room, engine._scheduler)
    raise AssertionError("still busy")
