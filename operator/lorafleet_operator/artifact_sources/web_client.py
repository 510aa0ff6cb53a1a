"""HTTP for sources: bounded in time and size, errors as SourceErrors that name no query and no header."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import httpx

from lorafleet_operator.artifact_sources.content_digests import BLOCK, Digest, digest_of
from lorafleet_operator.errors import SourceError

SECONDS = 30.0
IDLE_SECONDS = 60.0
"""A connection outlives the pause between two rounds of looks: a new one costs more than a look."""
MOST_ANSWER = 8 << 20
"""Bytes of an answer that is read into memory: a manifest, a listing, a small file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with its whole body. `shown` is its URL as messages may say it."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def shown(self) -> str:
        return shown(self.url)

    @property
    def moved_to(self) -> str:
        """Where a redirect points, absolute; "" for any other answer."""
        location = self.headers.get("location", "") if self.status in (301, 302, 303, 307, 308) else ""
        return urljoin(self.url, location) if location else ""

    def expect(self, what: str = "") -> Answer:
        """This answer, or the SourceError that its status means."""
        if self.ok:
            return self
        raise failure(self.status, what or self.shown)


class WebClient:
    """Thread safe; `with` closes its connections. `transport` replaces the network in tests."""

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        # Digests are of files as they are stored, not of what a server makes of them on the way.
        headers = {"Accept-Encoding": "identity"}
        self._http = httpx.Client(
            timeout=SECONDS, transport=transport, follow_redirects=False, headers=headers,
            limits=httpx.Limits(keepalive_expiry=IDLE_SECONDS),
        )  # fmt: skip
        # One tenant's session must not open another's files.
        self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, *, follow: bool = False,
        body: bool = True, **options: Any,
    ) -> Answer:  # fmt: skip
        """The answer, whatever its status. `body` False: its head only. Raises SourceError Unreachable or TooLarge."""
        with self._stream(method, url, headers, follow, options) as response:
            content = bytearray()
            # The answer to a HEAD is read to its end, where nothing is: else its connection could not be used again.
            for block in response.iter_bytes(BLOCK) if body or method == "HEAD" else ():
                content += block
                if len(content) > MOST_ANSWER:
                    raise SourceError("TooLarge", f"{shown(url)}: the answer has more than {MOST_ANSWER >> 20} MiB")
            return Answer(response.status_code, response.headers, bytes(content), str(response.url))

    def digest(self, url: str, headers: Mapping[str, str] | None = None, *, what: str = "") -> tuple[Digest, str]:
        """Of the content at `url`, redirects followed, and its ETag. Raises SourceError."""
        with self._stream("GET", url, headers, True, {}) as response:
            if not response.is_success:
                raise failure(response.status_code, what or shown(url))
            return digest_of(response.iter_bytes(BLOCK), shown(url)), response.headers.get("etag", "")

    @contextlib.contextmanager
    def _stream(
        self, method: str, url: str, headers: Mapping[str, str] | None, follow: bool, options: dict[str, Any]
    ) -> Iterator[httpx.Response]:  # fmt: skip
        try:
            with self._http.stream(method, url, headers=headers, follow_redirects=follow, **options) as response:
                yield response
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise SourceError("Unreachable", f"{shown(url)}: {error or type(error).__name__}") from None


def failure(status: int, what: str) -> SourceError:
    """What an error status means; `what` says what was asked for."""
    if status in (401, 403):
        return SourceError("AccessDenied", f"{what}: HTTP {status}: the credentials do not open it, or it is not there")
    if status in (404, 410):
        return SourceError("NotFound", f"{what} does not exist")
    if status == 429:
        return SourceError("RateLimited", f"{what}: HTTP 429: the server wants fewer requests; tried again later")
    return SourceError("Unreachable", f"{what}: HTTP {status}")


def shown(url: str) -> str:
    """A URL without user, password, query and fragment: those may be credentials."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
