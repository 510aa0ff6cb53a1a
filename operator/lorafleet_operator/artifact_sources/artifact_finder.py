"""From a source to its artifact, and from that to links, whatever its scheme.

Blocks: callers run it in a thread. Secrets are looked up for every call, so that a rotated one counts from then on.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import structlog

from lorafleet_operator.artifact_sources.content_digests import ContentDigests
from lorafleet_operator.artifact_sources.hf_source import HfSource
from lorafleet_operator.artifact_sources.https_source import HttpsSource
from lorafleet_operator.artifact_sources.oci_registry import OciRegistry
from lorafleet_operator.artifact_sources.oci_source import OciSource
from lorafleet_operator.artifact_sources.s3_clients import S3Clients
from lorafleet_operator.artifact_sources.s3_source import S3Source
from lorafleet_operator.artifact_sources.source import ArtifactSource, Wanted
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import Adapter, Artifact, BaseModel, Ref, Secret, Source, Unresolved
from lorafleet_operator.errors import SourceError
from lorafleet_operator.sources import check_digest, revision_of

log = structlog.get_logger("sources")

MOST_SOURCES = 65536
FAILED_SECONDS = 5.0
SLOW_FAILURE = 10.0
"""A failure counts for at least so many times as long as it took: one server that hangs does not hold up the others."""
PINNED_SECONDS = 3600.0
"""What has a digest in its spec cannot change; only whether it is still there can."""
AT_FULL_PACE = 600
"""More sources than these are looked at less often, each: servers and this process see no more than ten looks a second.
So a retrained adapter shows after a minute, among 10,000 after 17 minutes, at the latest."""

Answer = Artifact | Unresolved | None
SecretLookup = Callable[[Ref], Secret | Unresolved | None]
"""The Secret of that name, why there is none, or None while it is being read."""


def remote_sources(web: WebClient) -> dict[str, ArtifactSource]:
    """The sources that are servers, by scheme; all but s3 ask through `web`."""
    digests = ContentDigests()
    return {
        "https": HttpsSource(web, digests),
        "s3": S3Source(S3Clients(), digests),
        "oci": OciSource(OciRegistry(web)),
        "hf": HfSource(web, digests),
    }


@dataclass(frozen=True, slots=True)
class _Known:
    until: float
    secret: str
    found: Artifact | Unresolved


class ArtifactFinder:
    """Thread safe. Nothing that it returns or says holds a credential, but what `link` returns."""

    def __init__(self, sources: Mapping[str, ArtifactSource], secrets: SecretLookup) -> None:
        self._sources = sources
        self._secrets = secrets
        self._known: dict[Wanted, _Known] = {}
        self._lock = threading.Lock()

    def adapter(self, adapter: Adapter) -> Answer:
        """The artifact of an adapter's source, or why there is none; None: not known yet."""
        return self._answer(Wanted("adapter", adapter.source, adapter.base))

    def base(self, base: BaseModel) -> Answer:
        """As `adapter`, of a base model's source."""
        return self._answer(Wanted("base", base.source, base.ref))

    def link(self, source: Source, artifact: Artifact) -> Artifact:
        """The same artifact behind links that work for minutes from now. Raises SourceError."""
        try:
            scheme, secret = self._of(source), self._secret(source)
            if secret is None and source.secret is not None:
                raise SourceError("SecretNotRead", f"Secret {source.secret.name} is still being read")
            files = tuple(scheme.link(file, source, secret) for file in artifact.files)
        except SourceError:
            raise
        except Exception as error:
            raise _unexpected(source, error) from None
        return replace(artifact, files=files)

    def _counts_for(self, source: Source, found: Artifact | Unresolved, taken: float) -> float:
        """For how many seconds what was found counts, when finding it took `taken` seconds."""
        if isinstance(found, Unresolved):
            return max(FAILED_SECONDS, SLOW_FAILURE * taken)
        if source.sha256 is not None:
            return PINNED_SECONDS
        most = self._of(source).fresh_seconds * max(1.0, len(self._known) / AT_FULL_PACE)
        return most * random.uniform(0.5, 1.0)  # those that were declared together do not fall due together

    def _answer(self, wanted: Wanted) -> Answer:
        now = time.monotonic()
        try:
            secret = self._secret(wanted.source)
        except SourceError as error:
            return Unresolved(error.reason, str(error))
        if secret is None and wanted.source.secret is not None:
            return None
        fingerprint = _fingerprint(secret)
        known = self._known.get(wanted)
        if known is not None and now < known.until and known.secret == fingerprint:
            return known.found
        found = self._find(wanted, secret)
        if found is None:
            return None
        done = time.monotonic()
        seconds = self._counts_for(wanted.source, found, done - now)
        with self._lock:
            if len(self._known) > MOST_SOURCES:
                self._known = {key: kept for key, kept in self._known.items() if now < kept.until}
            self._known[wanted] = _Known(done + seconds, fingerprint, found)
        return found

    def _find(self, wanted: Wanted, secret: Secret | None) -> Answer:
        try:
            files = self._of(wanted.source).find(wanted, secret)
            if files is None:
                return None
            revision = revision_of(files)
            if wanted.source.sha256 is not None:
                check_digest(wanted.source, revision, list(files))
            return Artifact(revision, files)
        except SourceError as error:
            return Unresolved(error.reason, str(error))
        except Exception as error:  # what breaks in a new way must show at its object, and stop no other one
            unexpected = _unexpected(wanted.source, error)
            return Unresolved(unexpected.reason, str(unexpected))

    def _of(self, source: Source) -> ArtifactSource:
        scheme = source.uri.partition(":")[0]
        if scheme not in self._sources:
            reads = ", ".join(f"{name}:" for name in self._sources)
            raise SourceError("UnsupportedSource", f"{source.uri}: {scheme}: is not read here; {reads} are")
        return self._sources[scheme]

    def _secret(self, source: Source) -> Secret | None:
        if source.secret is None:
            return None
        found = self._secrets(Ref(source.secret.namespace, source.secret.name))
        if isinstance(found, Unresolved):
            raise SourceError(found.reason, found.message)
        return found


def _fingerprint(secret: Secret | None) -> str:
    """Tells one content of a Secret from another, and tells nothing of it."""
    return "" if secret is None else hashlib.sha256(repr(sorted(secret.data.items())).encode()).hexdigest()


def _unexpected(source: Source, error: Exception) -> SourceError:
    """The kind of the error only: a library's words may repeat a header or a URL."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        place, trace = f"{trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}", trace.tb_next
    kind = type(error).__name__
    log.error("a source failed in a way that is not known", source=source.uri, error=kind, at=place)
    return SourceError("InternalError", f"{source.uri}: {kind}: the operator's log says where")
