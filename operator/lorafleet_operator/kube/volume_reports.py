"""What lies on a base model's volumes: asked of its replicas, which alone can see them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from lorafleet_operator.callee import Callee
from lorafleet_operator.core.objects import ArtifactFile, Ref
from lorafleet_operator.errors import RuntimeCallError, RuntimeRefused, SourceError

Files = tuple[ArtifactFile, ...]

SECONDS = 15.0
REASONS = {"not_found": "NotFound", "pickle_refused": "PickleRefused", "invalid_value": "UnsupportedSource"}
MOST_KNOWN = 65536


class VolumeReports:
    """`replicas` are those of a base model that can answer now. What was told last holds while none can: an adapter
    that serves elsewhere does not become unknown because a pod starts."""

    def __init__(self, replicas: Callable[[Ref], Iterable[Callee]]) -> None:
        self._replicas = replicas
        self._told: dict[tuple[Ref, str], Files] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def attach(self) -> None:
        """Take note of the loop that the replicas' clients belong to. Called on it, before `describe`."""
        self._loop = asyncio.get_running_loop()

    def describe(self, base: Ref, path: str) -> Files | None:
        """The files of the adapter at `path`, VOLUME/PATH; None when nobody has told yet. Blocks: call it in a thread.

        Raises SourceError with the words of the replica that refuses.
        """
        if self._loop is None:
            return None
        asked = asyncio.run_coroutine_threadsafe(self._ask(base, path), self._loop)
        try:
            found = asked.result(SECONDS)
        except TimeoutError:
            asked.cancel()
            found = None
        if found is None:
            return self._told.get((base, path))
        if len(self._told) > MOST_KNOWN:
            self._told.clear()
        self._told[base, path] = found
        return found

    async def _ask(self, base: Ref, path: str) -> Files | None:
        """The first replica that answers speaks for all: their volumes are the same."""
        for replica in self._replicas(base):
            client = replica.client
            if client is None:
                continue
            try:
                return await client.describe_artifact(path)
            except RuntimeRefused as error:
                if error.status < 500:
                    raise SourceError(REASONS.get(error.code, error.reason), f"{replica.name}: {error}") from None
            except RuntimeCallError:
                continue  # its poll tells what is wrong with it
        return None
