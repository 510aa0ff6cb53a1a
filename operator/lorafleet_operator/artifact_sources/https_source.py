"""`https://HOST/PATH`: a folder that a web server gives to anybody who knows its address."""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

from lorafleet_operator.artifact_sources.content_digests import ContentDigests
from lorafleet_operator.artifact_sources.source import ADAPTER_FILES, SERVER_SECONDS, refuse_field
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import Adapter, ArtifactFile, Secret, Source


class HttpsSource:
    """An unchanged file costs one HEAD: its digest is remembered by URL and ETag."""

    fresh_seconds = SERVER_SECONDS

    def __init__(self, web: WebClient, digests: ContentDigests) -> None:
        self._web = web
        self._digests = digests

    def find(self, adapter: Adapter, secret: Secret | None) -> tuple[ArtifactFile, ...]:
        source = adapter.source
        if source.secret is not None:
            # A password would have to go to the runtime as it is; the other schemes have links that expire.
            raise refuse_field(source, "secretRef", "https:// links hold no credentials: use s3://, oci:// or hf://")
        if source.revision is not None:
            raise refuse_field(source, "revision", "a web server has no revisions: leave it out, or write sha256")
        return tuple(self._file(name, _below(source.uri, name)) for name in ADAPTER_FILES)

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        return file

    def _file(self, name: str, url: str) -> ArtifactFile:
        known = self._digests.get((url, self._etag(url))) if self._digests.get((url,)) else None
        if known is None:
            known, etag = self._web.digest(url)
            if etag:
                self._digests.keep((url, etag), known)
                self._digests.keep((url,), known)  # it has been read before: a HEAD may spare the next reading
        return ArtifactFile(name, url, known.sha256, known.size)

    def _etag(self, url: str) -> str:
        head = self._web.ask("HEAD", url, follow=True, body=False)
        return head.headers.get("etag", "") if head.ok else ""


def _below(folder: str, name: str) -> str:
    """The URL of a file in the folder; a query stays a query."""
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))
