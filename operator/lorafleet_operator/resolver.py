"""Keeps an artifact (or why there is none) for every declared source, without ever making a pass wait for a disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from lorafleet_operator.answers import Answer, Answers, Resolution
from lorafleet_operator.core.limits import adapter_limits, base_model_limits
from lorafleet_operator.core.objects import Adapter, BaseModel, Desired, Ref


class Resolver:
    """Resolves in threads; `changed` is called when a result differs. What has no result yet is in neither map.

    `adapter` and `base` may block: they read files or ask a server. Neither is asked about an object that this release
    cannot honour. Small adapters never wait for a large base model's digest.
    """

    def __init__(
        self, changed: Callable[[], None], *, adapter: Callable[[Adapter], Answer],
        base: Callable[[BaseModel], Answer],
    ) -> None:  # fmt: skip
        self._adapters = Answers[Adapter](lambda each: adapter_limits(each) or adapter(each), changed)
        self._base_models = Answers[BaseModel](lambda each: base_model_limits(each) or base(each), changed)

    @property
    def adapters(self) -> Mapping[Ref, Resolution]:
        return self._adapters.known

    @property
    def base_models(self) -> Mapping[Ref, Resolution]:
        return self._base_models.known

    def declared(self) -> None:
        """What is declared has changed: resolve what is new, now."""
        self._adapters.news.set()
        self._base_models.news.set()

    def look_again(self) -> None:
        """What sources are read with has changed, a Secret or a pod with volumes: resolve everything, now."""
        self._adapters.due.set()
        self._base_models.due.set()

    async def follow(self, desired: Callable[[], Desired], every: float) -> None:
        """Resolve when told, and everything every `every` seconds: a retrained adapter shows as a new revision."""
        await asyncio.gather(
            self._adapters.follow(lambda: desired().adapters, every),
            self._base_models.follow(lambda: desired().base_models, every),
        )

    async def resolve(self, desired: Desired) -> None:
        """One round over all sources."""
        await asyncio.gather(self._adapters.resolve(desired.adapters), self._base_models.resolve(desired.base_models))

    def close(self) -> None:
        """End the threads of a resolver that follows nothing."""
        self._adapters.close()
        self._base_models.close()
