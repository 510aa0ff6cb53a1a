"""Random life of an engine, from a seed: requests come and are given up; adapters come, change, are pinned, and go.

Knows no engine: `Target` is one, with tensors or without. After every step the target's auditor is asked.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

CROWD = 40
PATIENCE = 1000
"""Steps in a row in which nothing ends, while something is asked: then somebody waits in vain."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A request. `adapter` "" is the base model."""

    name: str
    prompt: Sequence[int]
    max_tokens: int
    adapter: str
    tenant: str


class Target(Protocol):
    """What is soaked. No call waits, but `settle`."""

    def ask(self, request: Ask) -> None: ...

    def abort(self, name: str) -> None: ...

    def load(self, adapter: str, revision: int, pinned: bool) -> None: ...

    def unload(self, adapter: str) -> None: ...

    def usable(self) -> list[str]:
        """Adapters that a request may name now."""
        ...

    def step(self) -> list[str]:
        """Run one step; the requests that ended in it, by themselves or with an error."""
        ...

    def settle(self) -> None:
        """Have every load that is under way end."""
        ...

    def violations(self) -> list[str]:
        """Invariants that do not hold between two steps."""
        ...

    def leaks(self) -> list[str]:
        """What is held although nobody asks for anything."""
        ...

    def hardships(self) -> dict[str, int]:
        """How often it was short of something: a soak without any proves little."""
        ...


@dataclass(frozen=True, slots=True)
class Rates:
    """Chances per step."""

    load: float = 0.3
    unload: float = 0.1
    pin: float = 0.1
    abort: float = 0.15
    abort_all: float = 0.001


@dataclass(slots=True)
class Life:
    """What has happened so far. `broken` is the first step at which something was wrong, and what."""

    steps: int = 0
    asked: int = 0
    ended: int = 0
    aborted: int = 0
    loads: int = 0
    unloads: int = 0
    in_vain: int = 0
    broken: tuple[int, list[str]] | None = None
    open: dict[str, None] = field(default_factory=dict)


def live(target: Target, requests: int, seed: int, *, adapters: int = 24, rates: Rates | None = None) -> Life:
    """Ask so many requests, at most `CROWD` at once, then let the last ones end. Stops at the first violation."""
    rng, rates, life = random.Random(seed), rates or Rates(), Life()
    beginnings = [[rng.randrange(250) for _ in range(48)] for _ in range(6)]  # what prompts have in common
    while (life.asked < requests or life.open) and life.broken is None:
        _orders(target, rng, rates, life, adapters)
        usable = target.usable()
        while life.asked < requests and len(life.open) < CROWD and rng.random() < 0.8:
            shared = rng.choice(beginnings)[: rng.choice((0, 16, 40, 48))]
            prompt = [*shared, *(rng.randrange(250) for _ in range(rng.randint(1, 30)))]
            adapter = rng.choice(usable) if usable and rng.random() < 0.8 else ""
            request = Ask(f"r{life.asked}", prompt, rng.choice((1, 2, 3, 4, 8, 24)), adapter, rng.choice("abc"))
            target.ask(request)
            life.open[request.name] = None
            life.asked += 1
        ended = [name for name in target.step() if life.open.pop(name, 0) is None]
        life.ended += len(ended)
        life.steps += 1
        life.in_vain = 0 if ended or not life.open else life.in_vain + 1
        _audit(life, target.violations())
        if life.in_vain > PATIENCE:
            _audit(life, [f"{len(life.open)} requests, such as {next(iter(life.open))}, wait in vain"])
    if life.broken is None:
        target.settle()
        _audit(life, target.leaks())
        for index in range(adapters):
            target.unload(f"adapter-{index}")
        _audit(life, target.leaks())
    return life


def _orders(target: Target, rng: random.Random, rates: Rates, life: Life, adapters: int) -> None:
    """What an operator and clients that leave do between two steps."""
    name = f"adapter-{rng.randrange(adapters)}"
    if rng.random() < rates.load:
        target.load(name, rng.randrange(3), pinned=rng.random() < 0.05)
        life.loads += 1
    if rng.random() < rates.pin:
        target.load(name, 0, pinned=rng.random() < 0.3)
    if rng.random() < rates.unload:
        target.unload(name)
        life.unloads += 1
    leaving = list(life.open) if rng.random() < rates.abort_all else []
    if life.open and rng.random() < rates.abort:
        leaving.append(rng.choice(list(life.open)))
    for request in dict.fromkeys(leaving):
        target.abort(request)
        del life.open[request]
        life.aborted += 1


def _audit(life: Life, problems: list[str]) -> None:
    if problems and life.broken is None:
        life.broken = (life.steps, problems)
