"""What is declared is asked about at once, in threads, and nobody waits for another one's slow server."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from lorafleet_operator.answers import LARGEST_BATCH, Answer, Answers
from lorafleet_operator.core.objects import Adapter, Artifact, Ref, Source, Unresolved

BASE = Ref("models", "base")
SECONDS = 5.0


def adapter(name: str, uri: str = "https://a.example/a") -> Adapter:
    return Adapter(Ref("team", name), BASE, name, Source(uri))


class Server:
    """Answers with the URI asked for; a name that is held is answered when it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.held: dict[str, threading.Event] = {}
        self.content = "1"

    def ask(self, each: Adapter) -> Answer:
        self.asked.append(each.ref.name)
        content = f"{each.source.uri} {self.content}"
        if gate := self.held.get(each.source.uri):
            assert gate.wait(SECONDS)
        return Artifact(content)

    def hold(self, uri: str) -> threading.Event:
        return self.held.setdefault(uri, threading.Event())


class Following:
    """Answers that follow what `declare` says."""

    def __init__(self, ask: Callable[[Adapter], Answer], every: float = 3600) -> None:
        self.changes = 0
        self.declared: dict[Ref, Adapter] = {}
        self.answers = Answers[Adapter](ask, self._changed)
        self.every = every

    def _changed(self) -> None:
        self.changes += 1

    def declare(self, *adapters: Adapter) -> None:
        self.declared = {each.ref: each for each in adapters}
        self.answers.news.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.answers.follow(lambda: self.declared, self.every))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def said(self, name: str) -> str:
        found = self.answers.known.get(Ref("team", name))
        return found.revision if isinstance(found, Artifact) else ""

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.005)


async def test_only_what_is_new_or_changed_is_asked_about() -> None:
    server = Server()
    following = Following(server.ask)
    async with following.running():
        following.declare(adapter("a"), adapter("b"))
        await following.until(lambda: len(server.asked) == 2)
        following.declare(adapter("a"), adapter("b", "https://a.example/b"), adapter("c"))
        await following.until(lambda: following.said("b") == "https://a.example/b 1" and bool(following.said("c")))
    assert sorted(server.asked) == ["a", "b", "b", "c"]


async def test_a_new_one_waits_for_no_slow_server() -> None:
    server = Server()
    gate = server.hold("https://slow.example")
    following = Following(server.ask)
    async with following.running():
        following.declare(adapter("slow", "https://slow.example"))
        await following.until(lambda: server.asked == ["slow"])
        following.declare(adapter("slow", "https://slow.example"), adapter("quick"))
        await following.until(lambda: bool(following.said("quick")))
        assert following.said("slow") == ""
        gate.set()
        await following.until(lambda: bool(following.said("slow")))


async def test_a_new_one_does_not_wait_for_the_round_over_the_known_ones() -> None:
    server = Server()
    following = Following(server.ask)
    known = [adapter(f"a{i}", f"https://{i}.example") for i in range(2 * LARGEST_BATCH)]
    async with following.running():
        following.declare(*known)
        await following.until(lambda: len(following.answers.known) == len(known))
        gates = [server.hold(each.source.uri) for each in known]
        following.answers.due.set()
        await following.until(lambda: len(server.asked) > len(known))
        following.declare(*known, adapter("new"))
        await following.until(lambda: bool(following.said("new")))
        for gate in gates:
            gate.set()


async def test_a_round_finds_what_changed_behind_the_same_source() -> None:
    server = Server()
    following = Following(server.ask, every=0.01)
    async with following.running():
        following.declare(adapter("a"))
        await following.until(lambda: bool(following.said("a")))
        server.content = "2"
        await following.until(lambda: following.said("a").endswith("2"))
    assert following.changes == 2


async def test_an_answer_about_an_older_form_is_dropped() -> None:
    server = Server()
    gate = server.hold("https://old.example")
    following = Following(server.ask)
    async with following.running():
        following.declare(adapter("a", "https://old.example"))
        await following.until(lambda: server.asked == ["a"])
        following.declare(adapter("a", "https://new.example"))
        await following.until(lambda: following.said("a") == "https://new.example 1")
        gate.set()
        await asyncio.sleep(0.05)
        assert following.said("a") == "https://new.example 1"


async def test_what_is_declared_no_longer_is_forgotten_even_while_it_is_asked_about() -> None:
    server = Server()
    gate = server.hold("https://slow.example")
    following = Following(server.ask)
    async with following.running():
        following.declare(adapter("a"), adapter("slow", "https://slow.example"))
        await following.until(lambda: bool(following.said("a")) and "slow" in server.asked)
        following.declare()
        await following.until(lambda: not following.answers.known)
        gate.set()
        await asyncio.sleep(0.05)
        assert following.answers.known == {}


@pytest.mark.parametrize("answer", [None, Unresolved("NotFound", "not there")])
async def test_no_news_keeps_what_is_known_and_bad_news_replaces_it(answer: Answer) -> None:
    answers = [Artifact("1"), answer]
    found = Answers[Adapter](lambda _: answers.pop(0), lambda: None)
    one = adapter("a")
    await found.resolve({one.ref: one})
    await found.resolve({one.ref: replace(one)})
    found.close()
    assert found.known[one.ref] == (answer or Artifact("1"))
