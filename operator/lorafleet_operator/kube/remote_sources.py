"""From a source URI to an artifact, for pods: URLs that a runtime can fetch, with sizes and digests.

Blocking: callers run it in a thread. Bytes are read once per content to digest them, and never kept.
"""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass

import httpx

from lorafleet_operator.core.objects import Adapter, Artifact, ArtifactFile, BaseModel, Source, Unresolved
from lorafleet_operator.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SourceError, check_digest, revision_of

SECONDS = 30.0
MOST_BYTES = 16 << 30
MOST_SOURCES = 65536
FRESH_SECONDS, FAILED_SECONDS = 60.0, 5.0
"""An answer counts for so long: a change of one object asks no server about all the others."""
NOT_YET = {
    "hf": "download it and serve its folder over https://",
    "s3": "serve its folder over https://, such as a bucket's public or gateway URL",
    "oci": "serve its files over https://",
    "pvc": "serve its folder over https://",
}


@dataclass(frozen=True, slots=True)
class _Known:
    etag: str
    sha256: str
    size: int


class RemoteSources:
    """Remembers digests by URL and ETag, so that an unchanged artifact costs one HEAD per file and round."""

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        self._http = httpx.Client(timeout=SECONDS, follow_redirects=True, transport=transport)
        self._known: dict[str, _Known] = {}
        self._fresh: dict[Source, tuple[float, Artifact | Unresolved]] = {}
        self._lock = threading.Lock()

    def adapter(self, adapter: Adapter) -> Artifact | Unresolved:
        """The artifact of an adapter's source, or why there is none."""
        kept = self._fresh.get(adapter.source)
        now = time.monotonic()
        if kept is not None and now < kept[0]:
            return kept[1]
        found: Artifact | Unresolved
        try:
            found, seconds = self._folder(adapter.source), FRESH_SECONDS
        except SourceError as error:
            found, seconds = Unresolved(error.reason, str(error)), FAILED_SECONDS
        with self._lock:
            if len(self._fresh) > MOST_SOURCES:
                self._fresh = {source: known for source, known in self._fresh.items() if now < known[0]}
            self._fresh[adapter.source] = (now + seconds, found)
        return found

    def _folder(self, source: Source) -> Artifact:
        scheme = source.uri.partition(":")[0]
        if scheme != "https":
            hint = NOT_YET.get(scheme, "serve its folder over https://, for pods do not see this machine's files")
            raise SourceError("UnsupportedSource", f"{source.uri}: {scheme}: is not read in a cluster: {hint}")
        if source.secret is not None:
            raise SourceError("UnsupportedSource", f"{source.uri}: secretRef is not used for https: sources")
        names = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
        files = [self._file(name, f"{source.uri.rstrip('/')}/{name}") for name in names]
        revision = revision_of(files)
        if source.sha256 is not None:
            check_digest(source, revision, files)
        return Artifact(revision, tuple(files))

    def _file(self, name: str, url: str) -> ArtifactFile:
        try:
            with self._lock:
                known = self._known.get(url)
            if known is None or not known.etag or known.etag != self._etag(url):
                known = self._digest(url)
                with self._lock:
                    self._known[url] = known
        except httpx.HTTPError as error:
            raise SourceError("Unreachable", f"{url}: {error or type(error).__name__}") from error
        return ArtifactFile(name, url, known.sha256, known.size)

    def _etag(self, url: str) -> str:
        head = self._http.head(url)
        return str(head.headers.get("etag", "")) if head.is_success else ""

    def _digest(self, url: str) -> _Known:
        digest, size = hashlib.sha256(), 0
        with self._http.stream("GET", url) as response:
            if response.status_code == 404:
                raise SourceError("NotFound", f"{url} does not exist: a PEFT adapter has this file")
            if not response.is_success:
                raise SourceError("Unreachable", f"{url}: HTTP {response.status_code}")
            for chunk in response.iter_bytes(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                if size > MOST_BYTES:
                    raise SourceError("TooLarge", f"{url} has more than {MOST_BYTES >> 30} GiB")
            return _Known(response.headers.get("etag", ""), digest.hexdigest(), size)


def declared_base(base: BaseModel) -> Artifact | Unresolved:
    """In a cluster the pods read the weights themselves, so their identity is what is declared about them."""
    source = base.source
    scheme = source.uri.partition(":")[0]
    if scheme not in ("pvc", "file", "package"):
        return Unresolved(
            "UnsupportedSource",
            f"{source.uri}: base models are read from volumes (pvc://VOLUME/PATH, see .spec.runtime.artifactVolumes) "
            "or from the runtime's image (package:// or file:)",
        )
    volume = source.uri.removeprefix("pvc://").split("/")[0]
    if scheme == "pvc" and volume not in {v["name"] for v in base.runtime.get("artifactVolumes", ())}:
        return Unresolved("VolumeNotDeclared", f"{source.uri}: .spec.runtime.artifactVolumes has no volume {volume!r}")
    declared = f"{source.uri} {source.revision or ''} {source.sha256 or ''}"
    return Artifact("sha256:" + hashlib.sha256(declared.encode()).hexdigest())
