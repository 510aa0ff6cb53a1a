"""A typed client of one runtime's admin port (docs/contracts.md).

Knows no policy: no retry, no backoff, no state but an ETag.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from lorafleet_operator import errors
from lorafleet_operator.core.objects import Artifact, ArtifactFile
from lorafleet_operator.core.usage import Report
from lorafleet_operator.tenant_report import parse_tenants

CONNECTIONS = 16
KEEP_ALIVE_SECONDS = 60.0
"""Less than the runtimes' own, so that it is this side that closes."""
Phase = Literal["Loading", "Ready", "Draining", "Failed"]
REFUSALS: dict[tuple[int, str], type[errors.RuntimeRefused]] = {
    (409, "stale_epoch"): errors.StaleEpoch,
    (409, "digest_mismatch"): errors.AdapterRefused,
    (422, "invalid_adapter"): errors.AdapterRefused,
    (422, "invalid_model"): errors.AdapterRefused,
    (422, "rank_too_high"): errors.AdapterRefused,
    (502, "fetch_failed"): errors.FetchFailed,
    (507, "disk_full"): errors.DiskFull,
    (507, "no_room"): errors.NoRoom,
}


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """One adapter revision as the runtime reports it; `id` is the wire id."""

    id: str
    revision: str
    state: str
    reason: str = ""
    message: str = ""
    rank: int = 0
    pages: int = 0
    bytes: int = 0
    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class RuntimeState:
    """`GET /admin/state`, the part that the operator decides on."""

    incarnation: str
    phase: Phase
    message: str = ""
    progress: float = 0.0
    epoch: int = 0
    pages_total: int = 0
    pages_free: int = 0
    running: int = 0
    waiting: int = 0
    adapters: tuple[AdapterReport, ...] = ()
    wants: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response with its whole body, and what it answers."""

    where: str
    status: int
    headers: Mapping[str, str]
    body: bytes


class RuntimeClient:
    """Calls one runtime. A call that fails raises a subclass of RuntimeCallError, and nothing else."""

    def __init__(
        self, admin_url: str, token: str, *, epoch: int = 1, timeout: float = 5.0
    ) -> None:  # fmt: skip
        self.epoch = epoch
        self._etag = ""
        self._last: RuntimeState | None = None
        self._url = admin_url
        self._headers = {"Authorization": f"Bearer {token}"}
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._http: aiohttp.ClientSession | None = None

    async def state(self) -> RuntimeState:
        """What the runtime reports. Unchanged since the last call, it is the same object, at the price of a 304."""
        headers = {"If-None-Match": self._etag} if self._etag else {}
        response = await self._call("GET", "/admin/state", headers=headers)
        if response.status == 304 and self._last is not None:
            return self._last
        self._last = parse_state(_json(response))
        self._etag = response.headers.get("ETag", "")
        return self._last

    async def tenants(self) -> Report:
        """What the runtime's tenants have received."""
        return parse_tenants(_json(await self._call("GET", "/admin/tenants")))

    async def put_adapter(self, adapter_id: str, artifact: Artifact, *, pinned: bool = False) -> str:
        """Ask for a load and return the state it is in now, Loading or Ready. Idempotent by revision."""
        body = {
            "revision": artifact.revision,
            "pinned": pinned,
            "files": [_file(file) for file in artifact.files],
        }
        response = await self._call("PUT", f"/admin/adapters/{adapter_id}", json=body, headers=self._fence())
        return str(_json(response).get("state", "Loading"))

    async def delete_adapter(self, adapter_id: str) -> bool:
        """Ask for an unload: True when it is gone (or never was), False while requests still hold it."""
        response = await self._call("DELETE", f"/admin/adapters/{adapter_id}", headers=self._fence())
        return response.status == 204

    async def put_model(self, artifact: Artifact) -> None:
        """Say where the model is that this runtime waits for."""
        body = {"revision": artifact.revision, "files": [_file(file) for file in artifact.files]}
        await self._call("PUT", "/admin/model", json=body, headers=self._fence())

    async def describe_artifact(self, path: str) -> tuple[ArtifactFile, ...] | None:
        """The files of the adapter at `path`, VOLUME/PATH, on a volume of this runtime; None while it reads them."""
        response = await self._call("POST", "/admin/artifacts/describe", json={"path": path})
        if response.status == 202:
            return None
        try:
            files = _json(response)["files"]
            return tuple(ArtifactFile(str(f["name"]), str(f["url"]), str(f["sha256"]), int(f["size"])) for f in files)
        except (KeyError, TypeError, ValueError) as error:
            raise errors.RuntimeProtocolError(f"describe does not follow the contract: {error!r}") from error

    async def drain(self) -> None:
        """Stop admission; running requests finish."""
        await self._call("POST", "/admin/drain", headers=self._fence())

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _fence(self) -> dict[str, str]:
        return {"Lorafleet-Epoch": str(self.epoch)}

    def _session(self) -> aiohttp.ClientSession:
        """Made by the first call: a session belongs to the loop that runs then. Reads no proxy from the environment."""
        if self._http is None:
            # A new connection costs more than a poll.
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEP_ALIVE_SECONDS)
            self._http = aiohttp.ClientSession(
                connector=connector, headers=self._headers, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        return self._http

    async def _call(self, method: str, path: str, **options: Any) -> _Answer:
        where = f"{method} {self._url}{path}"
        try:
            async with self._session().request(method, f"{self._url}{path}", **options) as response:
                answer = _Answer(where, response.status, response.headers, await response.read())
        except TimeoutError as error:
            raise errors.RuntimeUnreachable(f"{where}: no answer in time ({type(error).__name__})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise errors.RuntimeUnreachable(f"{where}: {error or type(error).__name__}") from error
        if answer.status == 304 or 200 <= answer.status < 300:
            return answer
        raise _refusal(answer)


def _file(file: ArtifactFile) -> dict[str, Any]:
    body = dataclasses.asdict(file)
    return body if file.authorization else {name: body[name] for name in body if name != "authorization"}


def _refusal(answer: _Answer) -> errors.RuntimeRefused:
    try:
        detail = json.loads(answer.body)["error"]
        code, message = str(detail.get("code") or ""), str(detail.get("message") or "")
    except (ValueError, KeyError, TypeError, AttributeError):
        code, message = "", answer.body[:200].decode(errors="replace")
    status = answer.status
    kind = REFUSALS.get((status, code), errors.RuntimeRefused)
    if status in (401, 403):
        kind = errors.Unauthorized
    return kind(message or f"{answer.where}: HTTP {status} without a message", status=status, code=code)


def _json(answer: _Answer) -> dict[str, Any]:
    try:
        body = json.loads(answer.body)
    except ValueError as error:
        shown = answer.body[:80].decode(errors="replace")
        raise errors.RuntimeProtocolError(f"{answer.where}: no JSON but {shown!r}") from error
    if not isinstance(body, dict):
        raise errors.RuntimeProtocolError(f"{answer.where}: the answer is not a JSON object")
    return body


def parse_state(body: dict[str, Any]) -> RuntimeState:
    """The state in a `GET /admin/state` body; unknown fields are ignored. Raises RuntimeProtocolError."""
    try:
        pages, load = body.get("pages") or {}, body.get("load") or {}
        return RuntimeState(
            incarnation=str(body["incarnation"]),
            phase=body["phase"],
            message=str(body.get("message") or ""),
            progress=float(body.get("progress") or 0.0),
            epoch=int(body.get("epoch") or 0),
            pages_total=int(pages.get("total", 0)),
            pages_free=int(pages.get("free", 0)),
            running=int(load.get("running", 0)),
            waiting=int(load.get("waiting", 0)),
            adapters=tuple(_adapter(item) for item in body.get("adapters") or ()),
            wants=str(body.get("wants") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise errors.RuntimeProtocolError(f"/admin/state does not follow the contract: {error!r}") from error


def _adapter(item: dict[str, Any]) -> AdapterReport:
    return AdapterReport(
        id=str(item["id"]),
        revision=str(item["revision"]),
        state=str(item["state"]),
        reason=str(item.get("reason") or ""),
        message=str(item.get("message") or ""),
        rank=int(item.get("rank") or 0),
        pages=int(item.get("pages") or 0),
        bytes=int(item.get("bytes") or 0),
        running=int(item.get("running") or 0),
        waiting=int(item.get("waiting") or 0),
    )
