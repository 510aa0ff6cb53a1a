"""From a source URI to an artifact, on one machine: the files that it names here, or at a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lorafleet_operator.artifact_sources.artifact_finder import ArtifactFinder, remote_sources
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Desired, Ref, Secret, Unresolved
from lorafleet_operator.digests import DigestCache
from lorafleet_operator.errors import SourceError
from lorafleet_operator.sources import resolve_adapter, resolve_base


class LocalSources:
    """`desired` is asked for the adapters and Secrets that are declared now. Blocks, except for `link`."""

    def __init__(self, desired: Callable[[], Desired]) -> None:
        self._web = WebClient()
        remote = remote_sources(self._web)
        self._desired = desired
        self._digests = DigestCache()
        self._schemes = frozenset(remote)
        self._remote = ArtifactFinder(remote, self._secret)

    def adapter(self, adapter: Adapter) -> Artifact | Unresolved | None:
        """The artifact of an adapter's source, or why there is none."""
        if self._is_remote(adapter):
            return self._remote.adapter(adapter)
        return resolve_adapter(adapter.source, self._digests)

    def base(self, base: BaseModel) -> Artifact | Unresolved:
        """The artifact of a base model's source, or why there is none."""
        return resolve_base(base.source, self._digests)

    async def link(self, ref: Ref, artifact: Artifact) -> Artifact:
        """The same artifact where a runtime can fetch it now. Raises SourceError."""
        adapter = self._desired().adapters.get(ref)
        if adapter is None:
            raise SourceError("Gone", f"LoRAAdapter {ref} is not there any more")
        if not self._is_remote(adapter):
            return artifact
        return await asyncio.to_thread(self._remote.link, adapter.source, artifact)

    def close(self) -> None:
        """Close the connections to servers."""
        self._web.close()

    def _is_remote(self, adapter: Adapter) -> bool:
        return adapter.source.uri.partition(":")[0] in self._schemes

    def _secret(self, ref: Ref) -> Secret | Unresolved:
        return self._desired().secrets.get(ref) or Unresolved("SecretNotFound", f"there is no Secret {ref}: declare it")
