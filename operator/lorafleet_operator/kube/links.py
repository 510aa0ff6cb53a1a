"""Links that work for minutes, made just before a runtime is told to load: credentials stay here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder
from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Desired, Ref
from lorafleet_operator.errors import SourceError


class Links:
    """`desired` says what is declared now. Raises SourceError when an object is gone, or cannot be linked."""

    def __init__(self, sources: ArtifactFinder, desired: Callable[[], Desired]) -> None:
        self._sources = sources
        self._desired = desired

    async def adapter(self, ref: Ref, artifact: Artifact) -> Artifact:
        """An adapter's files with links."""
        return await self._linked("LoRAAdapter", ref, self._desired().adapters.get(ref), artifact)

    async def model(self, ref: Ref, artifact: Artifact) -> Artifact:
        """A base model's files with links."""
        return await self._linked("BaseModel", ref, self._desired().base_models.get(ref), artifact)

    async def _linked(self, kind: str, ref: Ref, owner: Adapter | BaseModel | None, artifact: Artifact) -> Artifact:
        if owner is None:
            raise SourceError("Gone", f"{kind} {ref} is not there any more")
        return await asyncio.to_thread(self._sources.link, owner.source, artifact)
