"""Keeps an artifact (or why there is none) for every declared source, without ever making a pass wait for a disk."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from itertools import islice

from lorafleet_operator.core.limits import adapter_limits, base_model_limits
from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Desired, Ref, Unresolved

Resolution = Artifact | Unresolved
Answer = Resolution | None
"""None: not known yet, and no news about what was known."""
BATCH, THREADS = 32, 4


class Resolver:
    """Resolves in threads; `changed` is called when a result differs. What has no result yet is in neither map.

    `adapter` and `base` may block: they read files or ask a server. Neither is asked about an object that this release
    cannot honour.
    """

    def __init__(
        self, changed: Callable[[], None], *, adapter: Callable[[Adapter], Answer],
        base: Callable[[BaseModel], Answer],
    ) -> None:  # fmt: skip
        self.adapters: dict[Ref, Resolution] = {}
        self.base_models: dict[Ref, Resolution] = {}
        self._changed = changed
        self._adapter = adapter
        self._base = base
        self._woken = (asyncio.Event(), asyncio.Event())

    def wake(self) -> None:
        """What is declared has changed: resolve now."""
        for event in self._woken:
            event.set()

    async def follow(self, desired: Callable[[], Desired], every: float) -> None:
        """Resolve when woken, and every `every` seconds: a retrained adapter shows as a new revision.

        Two loops, so that small adapters never wait for a large base model's digest.
        """

        async def loop(woken: asyncio.Event, resolve: Callable[[Desired], Awaitable[None]]) -> None:
            while True:
                woken.clear()
                await resolve(desired())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(every):
                        await woken.wait()

        adapters, base_models = self._woken
        await asyncio.gather(loop(adapters, self._resolve_adapters), loop(base_models, self._resolve_base_models))

    async def resolve(self, desired: Desired) -> None:
        """One round over all sources."""
        await asyncio.gather(self._resolve_adapters(desired), self._resolve_base_models(desired))

    async def _resolve_adapters(self, desired: Desired) -> None:
        adapters = desired.adapters
        _forget(self.adapters, adapters)
        batches = _batches(adapters.values(), BATCH)

        async def work() -> None:
            for batch in batches:
                self._keep(self.adapters, await asyncio.to_thread(self._adapters, batch))

        await asyncio.gather(*(work() for _ in range(THREADS)))

    async def _resolve_base_models(self, desired: Desired) -> None:
        _forget(self.base_models, desired.base_models)
        for base in desired.base_models.values():
            answer = await asyncio.to_thread(self._base_model, base)
            self._keep(self.base_models, {} if answer is None else {base.ref: answer})

    def _adapters(self, batch: list[Adapter]) -> dict[Ref, Resolution]:
        answers = {adapter.ref: adapter_limits(adapter) or self._adapter(adapter) for adapter in batch}
        return {ref: answer for ref, answer in answers.items() if answer is not None}

    def _base_model(self, base: BaseModel) -> Answer:
        return base_model_limits(base) or self._base(base)

    def _keep(self, known: dict[Ref, Resolution], found: Mapping[Ref, Resolution]) -> None:
        if any(known.get(ref) != resolution for ref, resolution in found.items()):
            known.update(found)
            self._changed()


def _forget(known: dict[Ref, Resolution], declared: Mapping[Ref, object]) -> None:
    for ref in [ref for ref in known if ref not in declared]:
        del known[ref]


def _batches(adapters: Iterable[Adapter], size: int) -> Iterator[list[Adapter]]:
    remaining = iter(adapters)
    while batch := list(islice(remaining, size)):
        yield batch
