"""`https://HOST/PATH`: a folder that a web server gives to anybody who knows its address."""

from __future__ import annotations

import json
from urllib.parse import urlsplit, urlunsplit

from lorafleet_operator.artifact_sources.content_digests import ContentDigests
from lorafleet_operator.artifact_sources.source import ADAPTER_FILES, SERVER_SECONDS, Wanted, refuse_field
from lorafleet_operator.artifact_sources.web_client import WebClient
from lorafleet_operator.core.objects import ArtifactFile, Secret, Source
from lorafleet_operator.errors import SourceError
from lorafleet_operator.sources import BASE_SIDE_FILES, WEIGHTS_INDEX


class HttpsSource:
    """An unchanged file costs one HEAD: its digest is remembered by URL and ETag."""

    fresh_seconds = SERVER_SECONDS

    def __init__(self, web: WebClient, digests: ContentDigests) -> None:
        self._web = web
        self._digests = digests

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...]:
        source = wanted.source
        if source.secret is not None:
            # A password would have to go to the runtime as it is; the other schemes have links that expire.
            raise refuse_field(source, "secretRef", "https:// links hold no credentials: use s3://, oci:// or hf://")
        if source.revision is not None:
            raise refuse_field(source, "revision", "a web server has no revisions: leave it out, or write sha256")
        parts = urlsplit(source.uri)
        path, single = wanted.split(parts.path)
        folder = urlunsplit(parts._replace(path=f"/{path}", fragment=""))
        if single:
            names = [single]
        elif wanted.kind == "base":
            names = wanted.chosen([name for name in self._base_names(folder) if self._is_there(_below(folder, name))])
        else:
            names = list(ADAPTER_FILES)
        return tuple(self._file(name, _below(folder, name)) for name in names)

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        return file

    def _base_names(self, folder: str) -> list[str]:
        """What may be in a base model's folder: a web server lists nothing, but the index of the weights names them."""
        index = self._web.ask("GET", _below(folder, WEIGHTS_INDEX), follow=True)
        if not index.ok:
            return [*BASE_SIDE_FILES, "model.safetensors"]
        try:
            shards = {str(name) for name in json.loads(index.body)["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise SourceError("NotABaseModel", f"{index.shown} is no index of weights") from None
        return [*BASE_SIDE_FILES, *sorted(name for name in shards if "/" not in name)]

    def _is_there(self, url: str) -> bool:
        return self._web.ask("HEAD", url, follow=True).ok

    def _file(self, name: str, url: str) -> ArtifactFile:
        # What has been read before may be spared the next reading by a HEAD.
        known = self._digests.get(url, self._etag(url)) if self._digests.knows(url) else None
        if known is None:
            known, etag = self._web.digest(url)
            if etag:
                self._digests.keep(url, etag, known)
        return ArtifactFile(name, url, known.sha256, known.size)

    def _etag(self, url: str) -> str:
        head = self._web.ask("HEAD", url, follow=True)
        return head.headers.get("etag", "") if head.ok else ""


def _below(folder: str, name: str) -> str:
    """The URL of a file in the folder; a query stays a query."""
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}", fragment=""))
