"""A replica that fails on command: the runtime's serving contract on a real socket, and nothing behind it.

Token i of every answer has the id 100 + i and the text `wI `, so that any gap, repetition or disorder shows
in the text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

from tests.gateway.fake_fairness import FakeFairness

FIRST_ID = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request, after so many of its tokens; `before` is before the answer's head."""

    kind: Literal["reset", "cut", "eof", "moved", "hang", "before", "status", "error_event", "no_done"]
    after: int = 0
    status: int = 503
    code: str = "not_ready"
    to: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as the replica got it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class FakeRuntime:
    """Start it with `start`; `faults` are used up one per request, in order."""

    name: str
    tokens: int = 8
    delay: float = 0.0
    padding: str = ""
    linger: float = 0.0  # between the last event of a stream and its end
    faults: list[Fault] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    port: int = 0
    running: int = 0
    cancelled: int = 0
    written: int = 0
    others_waiting: int = 0
    incarnation: str = "one"
    state: str = "Ready"
    fairness_status: int = 200
    fairness_delay: float = 0.0
    fairness: FakeFairness = field(init=False)
    _runner: web.AppRunner | None = None

    def __post_init__(self) -> None:
        self.fairness = FakeFairness(self.incarnation)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def text(self) -> str:
        """The whole answer, as a client must see it."""
        return "".join(self.word(i) for i in range(self.tokens))

    def word(self, index: int) -> str:
        return f"w{index} {self.padding}"

    async def start(self) -> None:
        """Listen, on the same port as before when it has had one."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/fairness", self._fairness)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        """Refuse connections from now on; those that are open are cut."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _fairness(self, request: web.Request) -> web.Response:
        await asyncio.sleep(self.fairness_delay)
        if self.fairness_status != 200:
            return web.Response(status=self.fairness_status)
        if self.fairness.incarnation != self.incarnation:  # a new process remembers nothing
            self.fairness = FakeFairness(self.incarnation)
        load = {"running": self.running, "waiting": self.others_waiting}
        answer = self.fairness.exchange(await request.json(), load)
        return web.Response(text=answer) if isinstance(answer, str) else web.json_response(answer)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.seen.append(Seen(request.path, dict(request.headers), body))
        fault = self.faults.pop(0) if self.faults else None
        self.running += 1
        try:
            return await self._answer(request, body, fault)
        except (asyncio.CancelledError, ConnectionResetError):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def _answer(self, request: web.Request, body: dict[str, Any], fault: Fault | None) -> web.StreamResponse:
        if fault and fault.kind == "before":
            _abort(request)
            return web.Response()
        if fault and fault.kind == "status":
            error = {"message": f"no {body['model']}", "type": "x", "param": "model", "code": fault.code}
            headers = {"Retry-After": "7"} if fault.status in (429, 503) else {}
            return web.json_response({"error": error}, status=fault.status, headers=headers)
        if not body.get("stream"):
            if fault:
                await asyncio.sleep(3600)
            await asyncio.sleep(self.delay * self.tokens)
            return web.json_response(self._whole(request.path, body))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        async for event in self._events(request, body, fault):
            self.written += len(event)
            await response.write(event)
        await asyncio.sleep(self.linger)
        return response

    async def _events(self, request: web.Request, body: dict[str, Any], fault: Fault | None) -> AsyncIterator[bytes]:
        chat = request.path.endswith("/chat/completions")
        done = body.get("resume", {}).get("output_token_ids", [])
        assert done == [FIRST_ID + i for i in range(len(done))], "the gateway resumed with ids it was never given"
        if chat:
            yield self._event(body, chat, {"role": "assistant", "content": ""}, [], prompt=[1, 2, 3])
        for index in range(len(done), self.tokens):
            if fault and fault.kind != "no_done" and index - len(done) == fault.after:
                async for event in _break(request, fault, self._event(body, chat, {"content": "half"}, [1])):
                    yield event
                return
            await asyncio.sleep(self.delay)
            yield self._event(body, chat, {"content": self.word(index)}, [FIRST_ID + index])
        yield self._event(body, chat, {}, [], finish="length")
        if fault and fault.kind == "no_done":
            _abort(request)
            return
        if body.get("stream_options", {}).get("include_usage"):
            yield _data({**_head(body, chat), "choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _event(
        self,
        body: dict[str, Any],
        chat: bool,
        delta: dict[str, Any],
        ids: list[int],
        *,
        finish: str | None = None,
        prompt: list[int] | None = None,
    ) -> bytes:
        choices = []
        for index in range(body.get("n") or 1):
            content = {"delta": delta} if chat else {"text": delta.get("content", "")}
            choice: dict[str, Any] = {"index": index, **content, "logprobs": None, "finish_reason": finish}
            if body.get("return_token_ids"):
                choice["token_ids"] = ids
            choices.append(choice)
        extra = {"prompt_token_ids": prompt} if prompt and body.get("return_token_ids") else {}
        return _data({**_head(body, chat), **extra, "choices": choices})

    def _whole(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        chat = path.endswith("/chat/completions")
        text = self.text()
        content = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        choice = {"index": 0, **content, "finish_reason": "length"}
        return {**_head(body, chat), "choices": [choice], "usage": self._usage()}

    def _usage(self) -> dict[str, int]:
        return {"prompt_tokens": 3, "completion_tokens": self.tokens, "total_tokens": 3 + self.tokens}


def _head(body: dict[str, Any], chat: bool) -> dict[str, Any]:
    # A resumed stream has another id, as from another process.
    suffix = len(body.get("resume", {}).get("output_token_ids", []))
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {"id": f"answer-{suffix}", "object": kind, "created": 1000 + suffix, "model": body["model"]}


def _data(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


async def _break(request: web.Request, fault: Fault, event: bytes) -> AsyncIterator[bytes]:
    """End a stream in the way of `fault`."""
    if fault.kind == "hang":
        await asyncio.sleep(3600)
    if fault.kind == "cut":
        yield event[: len(event) // 2]
        await asyncio.sleep(0.02)  # so that the half has left before the connection breaks
    if fault.kind == "moved":
        yield _data({"error": {"message": "moved", "type": "server_error", "code": "moved", "to": fault.to}})
    if fault.kind == "error_event":
        kind = "server_error" if fault.status >= 500 else "invalid_request_error"
        yield _data({"error": {"message": "broken", "type": kind, "param": None, "code": fault.code}})
    if fault.kind in ("reset", "cut"):
        await asyncio.sleep(0.02)
        _abort(request)
