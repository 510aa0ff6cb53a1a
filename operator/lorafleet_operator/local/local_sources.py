"""From a source URI to an artifact, on one machine: the files that it names here."""

from __future__ import annotations

from collections.abc import Callable

from lorafleet_operator.digests import DigestCache
from lorafleet_operator.resolver import Resolver
from lorafleet_operator.sources import resolve_adapter, resolve_base


def local_resolver(changed: Callable[[], None]) -> Resolver:
    """Finds files on this machine."""
    digests = DigestCache()
    return Resolver(
        changed,
        adapter=lambda adapter: resolve_adapter(adapter.source, digests),
        base=lambda base: resolve_base(base.source, digests),
    )
