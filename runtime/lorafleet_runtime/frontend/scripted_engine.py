"""An engine that recites: to test the front end, and to measure it alone. Knows no model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from lorafleet_runtime.errors import EngineDead
from lorafleet_runtime.frontend.engine_api import Broadcast, Stream
from lorafleet_runtime.frontend.tenant_board import TenantBoard
from lorafleet_runtime.protocol import (
    AdapterState,
    AddRequest,
    Delta,
    EngineState,
    HostInfo,
    LoadAdapter,
    LoadInfo,
    ModelInfo,
    PagesInfo,
    TokenLogprobs,
    UnloadAdapter,
)

_UNLIMITED = 2**30
Reply = Callable[[AddRequest], Sequence[int]]


class ScriptedEngine:
    """Answers every request with `reply(request)`, `at_once` tokens a step; `seconds` is the length of a step.

    Obeys max_tokens, stop ids, resume and logprobs as an engine must, and keeps what it was sent.
    """

    def __init__(self, reply: Reply, *, max_model_len: int = 256, vocab_size: int = 264) -> None:
        self.reply = reply
        self.seconds = 0.0
        self.at_once = 1
        self.requests: list[AddRequest] = []
        self.aborted: list[str] = []
        self.loads: list[LoadAdapter] = []
        self.board = TenantBoard("scripted")
        self.failures: dict[str, tuple[str, str]] = {}  # adapter id -> reason, message
        self._permits = asyncio.Semaphore(_UNLIMITED)
        self._dead = ""
        self._running: dict[str, tuple[Stream, asyncio.Task[None]]] = {}
        self._states = Broadcast(
            EngineState(
                "Ready",
                progress=1.0,
                model=ModelInfo("llama", "float32", max_model_len, 64, 1000, vocab_size),
                pages=PagesInfo(100, 80, 13, 5, 2, 3, 4096),
                host=HostInfo(2**30, 512),
                load=LoadInfo(0, 0, 0, 0.01, 0.0),
            )
        )

    @property
    def state(self) -> EngineState:
        return self._states.state

    @property
    def version(self) -> int:
        return self._states.version

    async def wait_newer(self, version: int) -> None:
        await self._states.wait_newer(version)

    def open(self, requests: Sequence[AddRequest]) -> Stream:
        if self._dead:
            raise EngineDead(self._dead)
        stream = Stream(self, [request.request_id for request in requests])
        for request in requests:
            self.requests.append(request)
            task = asyncio.create_task(self._recite(request, stream))
            self._running[request.request_id] = (stream, task)
        return stream

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if request_id in self._running:
            self._running.pop(request_id)[1].cancel()

    def load_adapter(self, message: LoadAdapter) -> None:
        """Ready at the next turn of the loop, or failed as `failures` says."""
        self.loads.append(message)
        state = AdapterState(
            message.adapter, message.revision, "Ready", rank=8, pages=2, bytes=512, pinned=message.pinned
        )
        if message.adapter in self.failures:
            reason, text = self.failures[message.adapter]
            state = AdapterState(message.adapter, message.revision, "Failed", reason, text)
        asyncio.get_running_loop().call_soon(self._set_adapter, message.adapter, state)

    def unload_adapter(self, message: UnloadAdapter) -> None:
        """Gone at the next turn of the loop; draining as long as a request runs on it."""
        in_use = self._in_use(message.adapter)
        held = next((a for a in self.state.adapters if a.id == message.adapter), None)
        state = msgspec.structs.replace(held, state="Draining") if held is not None and in_use else None
        asyncio.get_running_loop().call_soon(self._set_adapter, message.adapter, state)

    def hold(self) -> None:
        """Make no more tokens until `step` or `go_on`."""
        self._permits = asyncio.Semaphore(0)

    def go_on(self) -> None:
        """End `hold`."""
        held, self._permits = self._permits, asyncio.Semaphore(_UNLIMITED)
        for _ in self._running:
            held.release()

    def step(self) -> None:
        """After `hold`: one token more, for whichever request is first."""
        self._permits.release()

    def become(self, **changes: object) -> None:
        """Report a state that differs from the present one in these fields."""
        self._states.replace(msgspec.structs.replace(self.state, **changes))

    def die(self, reason: str) -> None:
        """End as a process ends: everything open fails at once."""
        self._dead = reason
        self.become(phase="Failed", message=reason)
        for stream, task in list(self._running.values()):
            task.cancel()
            stream.fail(EngineDead(reason))
        self._running.clear()

    def begin_again(self, incarnation: str) -> None:
        """Die, and have another engine in this one's place, which holds nothing yet."""
        self.die("scripted death")
        self._dead = ""
        self.loads.clear()
        self.board.begin(incarnation)
        self.become(phase="Ready", message="", adapters=[])

    def _set_adapter(self, adapter: str, state: AdapterState | None) -> None:
        others = [held for held in self.state.adapters if held.id != adapter]
        self.become(adapters=others if state is None else [*others, state])

    def _in_use(self, adapter: str) -> bool:
        return any(r.adapter == adapter for r in self.requests if r.request_id in self._running)

    def _drop_drained(self, adapter: str | None) -> None:
        draining = any(held.id == adapter and held.state == "Draining" for held in self.state.adapters)
        if adapter is not None and draining and not self._in_use(adapter):
            self._set_adapter(adapter, None)

    async def _recite(self, request: AddRequest, stream: Stream) -> None:
        sampling = request.sampling
        sent = len(request.output_token_ids)
        made: list[int] = []
        for token_id in self.reply(request)[sent:]:
            if not made:
                await asyncio.sleep(self.seconds)
                await self._permits.acquire()
            sent += 1
            made.append(token_id)
            stopped = token_id in sampling.stop_token_ids and sent > sampling.min_tokens
            reason = "stop" if stopped else "length" if sent >= sampling.max_tokens else None
            if reason is None and len(made) < self.at_once:
                continue
            if reason is not None:
                del self._running[request.request_id]
                self._drop_drained(request.adapter)
            logprobs = [_logprobs(each, sampling.logprobs) for each in made] if sampling.logprobs >= 0 else []
            stream.put(Delta(request.request_id, made, reason, token_id if stopped else None, logprobs))
            made = []
            if reason is not None:
                return
        raise AssertionError("the script ended before the request did")


def _logprobs(token_id: int, count: int) -> TokenLogprobs:
    return TokenLogprobs(token_id, -0.25, [(token_id + rank, -0.25 - rank) for rank in range(count)])
