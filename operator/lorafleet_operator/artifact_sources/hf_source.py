"""`hf://ORG/NAME[@REVISION][/PATH]`: a folder of a repository on the Hugging Face hub, or a mirror of it.

The hub redirects large files to short-lived links of its storage, which are handed on; a token never is. Files that it
serves itself are small: of a repository that needs a token, they go to the runtime in the order.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from lorafleet_operator.artifact_sources.content_digests import ContentDigests, Digest
from lorafleet_operator.artifact_sources.source import SERVER_SECONDS, Wanted, refuse_field, secret_text
from lorafleet_operator.artifact_sources.web_client import Answer, WebClient
from lorafleet_operator.core.objects import ArtifactFile, Secret, Source
from lorafleet_operator.errors import SourceError

HUB = "https://huggingface.co"
URI = re.compile(
    r"hf://(?P<repository>[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+)(?:@(?P<revision>[A-Za-z0-9._%-]+))?(?:/(?P<path>[^?#]*))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_INLINE = 512 << 10
MOST_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class _Hub:
    """Where to ask, and the token to show there; "" for none."""

    endpoint: str
    token: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class HfSource:
    """A round costs one call of the hub's API per artifact. Digests are the hub's; small files are read once."""

    fresh_seconds = SERVER_SECONDS

    def __init__(self, web: WebClient, digests: ContentDigests, endpoint: str = "") -> None:
        self._web = web
        self._digests = digests
        self._endpoint = endpoint or os.environ.get("HF_ENDPOINT") or HUB

    def find(self, wanted: Wanted, secret: Secret | None) -> tuple[ArtifactFile, ...]:
        source = wanted.source
        hub = self._hub(source, secret)
        repository, revision, path = _parts(source)
        folder, single = wanted.split(path)
        commit, siblings = self._listing(hub, source.uri, repository, revision)
        inside = f"{folder}/" if folder else ""
        found = {path.removeprefix(inside): facts for path, facts in siblings.items() if path.startswith(inside)}
        names = wanted.chosen(found, single)
        return tuple(self._file(hub, name, f"hf://{repository}@{commit}/{inside}{name}", found[name]) for name in names)

    def link(self, file: ArtifactFile, source: Source, secret: Secret | None) -> ArtifactFile:
        hub = self._hub(source, secret)
        answer = self._resolved(hub, file.url, body=bool(hub.token))
        if answer.moved_to:
            return replace(file, url=answer.moved_to)
        answer.expect(file.url)
        if not hub.token:
            return replace(file, url=_url(hub, file.url))
        if len(answer.body) > MOST_INLINE:
            raise SourceError(
                "NoShortLivedLink",
                f"{file.url}: the hub serves it without a link of its storage, and its {len(answer.body) >> 10} KiB "
                "are too much to hand on: keep it in Git LFS, as the hub does by itself with safetensors",
            )
        return replace(file, url="data:;base64," + base64.b64encode(answer.body).decode())

    def _hub(self, source: Source, secret: Secret | None) -> _Hub:
        key = source.secret.key if source.secret is not None else "token"
        token = secret_text(secret, key, "token", "HF_TOKEN")
        if secret is not None and not token:
            raise SourceError("SecretIncomplete", f"Secret {secret.ref} lacks {key} and HF_TOKEN")
        return _Hub((secret_text(secret, "HF_ENDPOINT") or self._endpoint).rstrip("/"), token)

    def _listing(self, hub: _Hub, uri: str, repository: str, revision: str) -> tuple[str, dict[str, Mapping[str, Any]]]:
        """The commit that `revision` is now, and what is known of each file of the repository, by path."""
        where = f"{hub.endpoint}/api/models/{repository}/revision/{quote(revision, safe='')}"
        answer = self._web.ask("GET", where, hub.headers, follow=True, params={"blobs": "true"})
        code = answer.headers.get("x-error-code", "")  # such as GatedRepo, RepoNotFound, RevisionNotFound
        answer.expect(f"{uri} at {revision}{f' ({code})' if code else ''}")
        try:
            body = json.loads(answer.body)
            commit = str(body["sha"])
            siblings: dict[str, Mapping[str, Any]] = {str(s["rfilename"]): dict(s) for s in body["siblings"]}
        except (ValueError, KeyError, TypeError):
            raise SourceError("Unreachable", f"{uri}: {answer.shown} does not answer as the hub does") from None
        if not COMMIT.fullmatch(commit):
            raise SourceError("Unreachable", f"{uri}: {answer.shown} names no commit")
        return commit, siblings

    def _file(self, hub: _Hub, name: str, url: str, facts: Mapping[str, Any]) -> ArtifactFile:
        lfs = facts.get("lfs")
        if isinstance(lfs, dict) and lfs.get("sha256"):
            return ArtifactFile(name, url, str(lfs["sha256"]), int(lfs.get("size") or facts.get("size") or 0))
        blob = f"{hub.endpoint} {facts.get('blobId') or url}"  # named by its content
        known = self._digests.get(blob, blob)
        if known is None:
            known = self._read(hub, url)
            self._digests.keep(blob, blob, known)
        return ArtifactFile(name, url, known.sha256, known.size)

    def _read(self, hub: _Hub, url: str) -> Digest:
        answer = self._resolved(hub, url, body=False)
        if answer.moved_to:
            return self._web.digest(answer.moved_to, what=url)[0]
        answer.expect(url)
        return self._web.digest(answer.url, hub.headers, what=url)[0]

    def _resolved(self, hub: _Hub, url: str, *, body: bool) -> Answer:
        """The hub's answer for a file: its content, or a redirect away from the hub. Those within it are followed."""
        at = _url(hub, url)
        for _ in range(MOST_REDIRECTS):
            answer = self._web.ask("GET", at, hub.headers, body=body)
            if not answer.moved_to or _host(answer.moved_to) != _host(hub.endpoint):
                return answer
            at = answer.moved_to
        raise SourceError("Unreachable", f"{url}: the hub redirects in a circle")


def _parts(source: Source) -> tuple[str, str, str]:
    """Repository, revision and folder. Raises SourceError."""
    match = URI.fullmatch(source.uri)
    if match is None:
        raise SourceError("UnsupportedSource", f"{source.uri}: write hf://ORG/NAME, hf://ORG/NAME@REVISION or …/PATH")
    named = unquote(match["revision"] or "")
    if named and source.revision not in (None, named):
        raise refuse_field(source, "revision", f"the URI names {named} already: leave one of them out")
    return match["repository"], named or source.revision or "main", unquote(match["path"] or "").strip("/")


def _url(hub: _Hub, url: str) -> str:
    """Where the hub serves a file that is named `hf://REPOSITORY@COMMIT/PATH`."""
    match = URI.fullmatch(url)
    assert match is not None, url  # `find` made it
    return f"{hub.endpoint}/{match['repository']}/resolve/{match['revision']}/{quote(match['path'])}"


def _host(url: str) -> str:
    return urlsplit(url).netloc.lower()
