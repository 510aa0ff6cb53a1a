"""What is known about one kind of object, asked for in threads: what is new at once, everything now and then."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Generic, TypeVar

from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Ref, Unresolved

Resolution = Artifact | Unresolved
Answer = Resolution | None
"""None: not known yet, and no news about what was known."""
T = TypeVar("T", bound=Adapter | BaseModel)
LARGEST_BATCH, WORKERS = 32, 4


class Answers(Generic[T]):
    """`ask` may block; `changed` is called when an answer differs. What has no answer yet is not in `known`."""

    def __init__(self, ask: Callable[[T], Answer], changed: Callable[[], None]) -> None:
        self.known: dict[Ref, Resolution] = {}
        self.news, self.due = asyncio.Event(), asyncio.Event()
        self._ask = ask
        self._changed = changed
        self._declared: Mapping[Ref, T] = {}
        self._asked: dict[Ref, T] = {}
        self._asking: dict[Ref, T] = {}
        # A round over everything takes half of the threads, so that it never holds up what is new.
        self._threads = ThreadPoolExecutor(2 * WORKERS, "sources")

    async def follow(self, declared: Callable[[], Mapping[Ref, T]], every: float) -> None:
        """Ask about what is new when `news` is set; about everything when `due` is set, and every `every` seconds."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_news(declared, tasks))
                tasks.create_task(self._follow_rounds(declared, every))
        finally:
            self.close()

    async def resolve(self, declared: Mapping[Ref, T]) -> None:
        """One round over everything."""
        self._declare(declared)
        await self._resolve([each for ref, each in declared.items() if self._asking.get(ref) != each])

    def close(self) -> None:
        """End the threads; one that waits for a server ends when that has answered."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _follow_news(self, declared: Callable[[], Mapping[Ref, T]], tasks: asyncio.TaskGroup) -> None:
        while True:
            self.news.clear()
            if new := self._declare(declared()):
                tasks.create_task(self._resolve(new))  # what is declared next does not wait for a slow server
            await self.news.wait()

    async def _follow_rounds(self, declared: Callable[[], Mapping[Ref, T]], every: float) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every):
                    await self.due.wait()
            self.due.clear()
            await self.resolve(declared())

    def _declare(self, declared: Mapping[Ref, T]) -> list[T]:
        """From now on only these count. Of them, those that nobody has been asked about as they are now."""
        self._declared = declared
        for table in (self.known, self._asked):
            for ref in [ref for ref in table if ref not in declared]:
                del table[ref]
        return [each for ref, each in declared.items() if self._asked.get(ref) != each]

    async def _resolve(self, objects: Sequence[T]) -> None:
        """A few are asked about one by one, so that none waits for another one's server."""
        asking = {each.ref: each for each in objects}
        self._asked.update(asking)
        self._asking.update(asking)
        batches = _batches(objects, min(LARGEST_BATCH, 1 + len(objects) // (4 * WORKERS)))
        loop = asyncio.get_running_loop()

        async def work() -> None:
            for batch in batches:
                self._keep(batch, await loop.run_in_executor(self._threads, self._answer, batch))
                for ref in [each.ref for each in batch if self._asking.get(each.ref) is each]:
                    del self._asking[ref]

        await asyncio.gather(*(work() for _ in range(WORKERS)))

    def _answer(self, batch: Sequence[T]) -> list[Answer]:
        return [self._ask(each) for each in batch]

    def _keep(self, batch: Sequence[T], answers: Sequence[Answer]) -> None:
        # What was said about an older form, or one that is gone, must not stand for what is declared now.
        said = zip(batch, answers, strict=True)
        found = {each.ref: a for each, a in said if a is not None and self._declared.get(each.ref) == each}
        if any(self.known.get(ref) != answer for ref, answer in found.items()):
            self.known.update(found)
            self._changed()


def _batches(objects: Sequence[T], size: int) -> Iterator[list[T]]:
    remaining = iter(objects)
    while batch := list(islice(remaining, size)):
        yield batch
