"""One HTTP attempt at one replica: what it answered, or in which of few ways it failed.

Knows nothing of clients or of other replicas. Nothing that a client sent goes to a replica except its body:
the headers are the gateway's own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Mapping
from types import TracebackType

import aiohttp
import msgspec
import yarl

from lorafleet_gateway.config import SERVING_TOKEN, Limits
from lorafleet_gateway.core.fleet_model import Replica
from lorafleet_gateway.errors import ApiError, Lost, NotHere, Unreachable

# Under the five seconds after which uvicorn closes an idle connection: a pooled one that closes as we write
# to it looks like a dead replica.
_IDLE_SECONDS = 4.0
OVERLOADED = "slo_unattainable"
ENGINE_FAILED = "engine_failed"  # it died with the request in its hands
_LARGE = 256 * 1024
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)


class Upstream:
    """The connections to all replicas. `start` on the event loop before use, `close` after."""

    def __init__(self, token: str, limits: Limits) -> None:
        self._limits = limits
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the pool. It has no size limit: the runtime queues fairly, a connection pool would not."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._limits.connect_seconds),
            cookie_jar=aiohttp.DummyCookieJar(),  # a cookie would travel from one tenant to another
            headers=self._headers,
            skip_auto_headers=("User-Agent",),
            read_bufsize=self._limits.read_bytes,
            auto_decompress=False,
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def attempt(self, replica: Replica, path: str, body: bytes, headers: Mapping[str, str]) -> HttpAttempt:
        """A request to `replica` that has not been sent yet."""
        assert self._session is not None, "start() first"
        return HttpAttempt(self._session, replica, path, body, headers)

    async def exchange(self, replica: Replica, body: bytes) -> tuple[int, bytes]:
        """Status and body of `POST /fairness`. Raises Lost, also for an answer of more than
        `Limits.exchange_bytes`."""
        assert self._session is not None, "start() first"
        timeout = aiohttp.ClientTimeout(total=self._limits.connect_seconds)
        posting = self._session.post(
            _url(replica.url, "/fairness"), data=body, timeout=timeout, allow_redirects=False
        )
        try:
            async with posting as response:
                parts: list[bytes] = []
                size = 0
                async for part in response.content.iter_any():
                    parts.append(part)
                    size += len(part)
                    if size > self._limits.exchange_bytes:
                        raise Lost(f"replica {replica.name} answers an exchange without an end", accepted=False)
                return response.status, b"".join(parts)
        except _FAILURES as error:
            raise Lost(f"replica {replica.name} exchanges nothing ({type(error).__name__})", accepted=False) from None


class HttpAttempt:
    """`async with` sends the request and reads the answer's head; then `read` until it returns b"".

    Entering raises NotHere, Lost, or ApiError for an answer that is the client's fault; `read` raises Lost.
    Leaving before the end closes the connection, by which the replica learns that nobody listens.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        replica: Replica,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
    ) -> None:
        self._session = session
        self._replica = replica
        self._path = path
        self._body = body
        self._headers = headers
        self._abandoned = ""
        self._opening: asyncio.Timeout | None = None
        self._response: aiohttp.ClientResponse | None = None

    def abandon(self, why: str) -> None:
        """End the attempt as if the connection had broken: whoever waits in it gets Lost."""
        self._abandoned = why
        if self._response is not None:
            self._response.close()
        elif self._opening is not None:
            self._opening.reschedule(0)

    async def __aenter__(self) -> HttpAttempt:
        data: bytes | AsyncIterator[bytes] = self._body
        headers = dict(self._headers)
        if len(self._body) > _LARGE:  # in slices: one write of megabytes would hold up every other stream
            data = _slices(self._body)
            headers["Content-Length"] = str(len(self._body))
        try:
            async with asyncio.timeout(None) as self._opening:
                response = await self._session.post(
                    _url(self._replica.url, self._path), data=data, headers=headers, allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(self._loss("cannot be reached", error)) from None
        except _FAILURES as error:
            raise Lost(self._loss("failed before it answered", error), accepted=True) from None
        self._response = response
        if response.status != 200:
            try:
                raise await self._refusal(response)
            finally:
                response.release()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.release()  # keeps the connection only if the answer was read to its end

    async def read(self) -> bytes:
        """Some of the answer's bytes as they come, b"" at its end."""
        assert self._response is not None, "enter the attempt first"
        try:
            return await self._response.content.readany()
        except _FAILURES as error:
            raise Lost(self._loss("failed in the middle of its answer", error), accepted=True) from None

    async def read_all(self) -> bytes:
        """The rest of the answer."""
        assert self._response is not None, "enter the attempt first"
        try:
            return await self._response.read()
        except _FAILURES as error:
            raise Lost(self._loss("failed in the middle of its answer", error), accepted=True) from None

    async def settle(self) -> None:
        """Read the end of a finished stream, so that the connection can serve the next request."""
        try:
            async with asyncio.timeout(1.0):
                while await self.read():
                    pass
        except (TimeoutError, Lost):
            pass  # the client has everything; only the connection is lost

    def _loss(self, what: str, error: BaseException) -> str:
        return f"replica {self._replica.name} {what} ({self._abandoned or type(error).__name__})"

    async def _refusal(self, response: aiohttp.ClientResponse) -> Exception:
        status, name = response.status, self._replica.name
        body = await self.read_all()
        error = _error_fields(body)
        message = str(error.get("message") or f"HTTP {status}")
        retry_after = response.headers.get("Retry-After", "")
        seconds = int(retry_after) if retry_after.isdecimal() else None
        if status in (401, 403):
            return Lost(f"replica {name} refused the gateway's token; set the same {SERVING_TOKEN}", accepted=False)
        if status == 503 and error.get("code") == OVERLOADED:
            # It has waited its time out, and replicas are chosen by load: another one would be no better now.
            return ApiError(status, message, OVERLOADED, retry_after=seconds or 1)
        if status == 503 and error.get("code") == ENGINE_FAILED:
            return Lost(f"replica {name} lost it: {message}", accepted=True)
        if status in (404, 503):  # 404: the replica has restarted, and the fleet document does not know yet
            return NotHere(f"replica {name} cannot serve it ({error.get('code') or status})", seconds)
        if status >= 500 or status < 400:
            return Lost(f"replica {name} answered {status}", accepted=True)
        param = error.get("param")
        return ApiError(
            status,
            message,
            str(error.get("code") or "invalid_value"),
            param if isinstance(param, str) else None,
            retry_after=seconds,
        )


def _error_fields(body: bytes) -> dict[str, object]:
    try:
        error = msgspec.json.decode(body, type=dict[str, object]).get("error")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    return error if isinstance(error, dict) else {}


@functools.lru_cache(maxsize=4096)
def _url(base: str, path: str) -> yarl.URL:
    return yarl.URL(base.rstrip("/") + path)


async def _slices(body: bytes) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(body), _LARGE):
        yield bytes(view[start : start + _LARGE])
