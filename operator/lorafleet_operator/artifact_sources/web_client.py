"""HTTP for sources: bounded in time and size, errors as SourceErrors that name no query and no header."""

from __future__ import annotations

import contextlib
import os
import ssl
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass_environment  # type: ignore[attr-defined]  # not in typeshed

import certifi
import urllib3
from urllib3.exceptions import HTTPError, MaxRetryError

from lorafleet_operator.artifact_sources.content_digests import BLOCK, Digest, digest_of
from lorafleet_operator.errors import SourceError

SECONDS = 30.0
HOSTS, CONNECTIONS = 64, 16
"""Connections are kept for so many hosts, so many to each: a new one costs more than a look."""
MOST_REDIRECTS = 10
MOST_ANSWER = 8 << 20
"""Bytes of an answer that is read into memory: a manifest, a listing, a small file."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response with its whole body. `shown` is its URL as messages may say it. Header names have no case."""

    status: int
    headers: Mapping[str, str]
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
    """Thread safe; `with` closes its connections.

    It goes through the proxies that the environment names, and keeps no cookies: one tenant's session must not open
    another's files.
    """

    def __init__(self) -> None:
        self._tls = ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
        self._proxies = getproxies()
        self._pools: dict[str, urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, *, follow: bool = False,
        body: bool = True, params: Mapping[str, str] | None = None, form: Mapping[str, str] | None = None,
    ) -> Answer:  # fmt: skip
        """The answer, whatever its status. `body` False: its head only. Raises SourceError Unreachable or TooLarge."""
        where = f"{url}{'&' if urlsplit(url).query else '?'}{urlencode(params)}" if params else url
        with self._stream(method, where, headers, follow, form) as response:
            content = bytearray()
            # The answer to a HEAD is read to its end, where nothing is: else its connection could not be used again.
            for block in response.stream(BLOCK) if body or method == "HEAD" else ():
                content += block
                if len(content) > MOST_ANSWER:
                    raise SourceError("TooLarge", f"{shown(url)}: the answer has more than {MOST_ANSWER >> 20} MiB")
            return Answer(response.status, response.headers, bytes(content), urljoin(where, response.geturl() or where))

    def digest(self, url: str, headers: Mapping[str, str] | None = None, *, what: str = "") -> tuple[Digest, str]:
        """Of the content at `url`, redirects followed, and its ETag. Raises SourceError."""
        with self._stream("GET", url, headers, True, None) as response:
            if not 200 <= response.status < 300:
                raise failure(response.status, what or shown(url))
            return digest_of(response.stream(BLOCK), shown(url)), response.headers.get("etag", "")

    @contextlib.contextmanager
    def _stream(
        self, method: str, url: str, headers: Mapping[str, str] | None, follow: bool, form: Mapping[str, str] | None
    ) -> Iterator[urllib3.BaseHTTPResponse]:  # fmt: skip
        # Digests are of files as they are stored, not of what a server makes of them on the way.
        sent: dict[str, str] = {"Accept-Encoding": "identity", **(headers or {})}
        options: dict[str, Any] = {}
        if form is not None:
            sent["Content-Type"], options["body"] = "application/x-www-form-urlencoded", urlencode(form)
        # A server may have closed a kept connection just now: then it is asked once more.
        retries = urllib3.Retry(
            total=None, connect=0, read=1, status=0, other=0, redirect=MOST_REDIRECTS if follow else 0
        )
        try:
            response = self._pool(url).request(
                method, url, headers=sent, redirect=follow, retries=retries, preload_content=False,
                decode_content=False, **options,
            )  # fmt: skip
            try:
                yield response
            finally:  # a connection on which something is left to read is of no use to the next
                response.release_conn() if response.closed else response.close()
        except MaxRetryError as error:
            raise SourceError("Unreachable", f"{shown(url)}: {_kind(error.reason or error)}") from None
        except HTTPError as error:
            raise SourceError("Unreachable", f"{shown(url)}: {_kind(error)}") from None

    def _pool(self, url: str) -> urllib3.PoolManager:
        """That of the proxy which the environment names for this URL, or that of direct connections."""
        parts = urlsplit(url)
        proxy = self._proxies.get(parts.scheme, "")
        if proxy and proxy_bypass_environment(parts.netloc, self._proxies):
            proxy = ""
        with self._lock:
            pool = self._pools.get(proxy)
            if pool is None:
                timeout = urllib3.Timeout(connect=SECONDS, read=SECONDS)
                settings: dict[str, Any] = {
                    "num_pools": HOSTS, "maxsize": CONNECTIONS, "timeout": timeout, "ssl_context": self._tls,
                }  # fmt: skip
                pool = urllib3.ProxyManager(proxy, **settings) if proxy else urllib3.PoolManager(**settings)
                self._pools[proxy] = pool
            return pool


def _kind(error: Exception) -> str:
    """An error without the URL that urllib3 puts into its words: `NewConnectionError: [Errno 111] …`."""
    cause = error.__cause__ or error.__context__
    said = str(cause) if isinstance(cause, OSError) else ""
    return f"{type(error).__name__}{f': {said}' if said else ''}"


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
