"""One replica as a process: the engine, two ports on one event loop, signals, and the end of the parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import threading
import time
from dataclasses import replace

import structlog

from lorafleet_runtime.errors import ArtifactError
from lorafleet_runtime.frontend.adapters import Adapters
from lorafleet_runtime.frontend.admin import Fence, create_admin_app
from lorafleet_runtime.frontend.artifact_files import revision_of
from lorafleet_runtime.frontend.artifact_volumes import ArtifactVolumes
from lorafleet_runtime.frontend.artifacts import ArtifactStore, default_cache, read_folder
from lorafleet_runtime.frontend.engine_client import EngineClient
from lorafleet_runtime.frontend.listeners import address, listen, new_server
from lorafleet_runtime.frontend.metrics import Metrics
from lorafleet_runtime.frontend.model_order import ModelOrder
from lorafleet_runtime.frontend.model_store import ModelStore
from lorafleet_runtime.frontend.model_wait import wait_for_model
from lorafleet_runtime.frontend.options import ServeOptions
from lorafleet_runtime.frontend.restarts import Restarts
from lorafleet_runtime.frontend.server import create_app
from lorafleet_runtime.frontend.service import Service, Settings
from lorafleet_runtime.frontend.tokenizer import load_tokenizer

log = structlog.get_logger("runtime")

_LAST_WORDS_SECONDS = 0.5
_HARD_EXIT_SECONDS = 5.0
_LOOPBACK = "127.0.0.1"


async def serve(options: ServeOptions) -> int:
    """Run until a signal, the parent's end, or one death of the engine too many. Returns the process's exit code."""
    stop = _StopRequest(options.exit_with_parent)
    incarnation, fence = secrets.token_hex(8), Fence()
    admin_host = options.host if options.admin_token else _LOOPBACK
    listeners = [
        listen(options.host, options.port, "--port"),
        listen(admin_host, options.admin_port, "--admin-port"),
    ]
    serving, admin = (address(listener) for listener in listeners)
    if options.model_from_operator:
        log.info("listening for the operator", serving=serving, admin=admin)
        order = ModelOrder(ModelStore(default_cache().parent / "model"))
        path = await wait_for_model(order, listeners, options.admin_token, fence, incarnation, stop.asked)
        if path is None:
            return 0
        options = replace(options, engine=replace(options.engine, model=str(path)).check())
    disk = str(default_cache().parent)
    options = replace(options, engine=replace(options.engine, incarnation=incarnation, disk=disk))
    engine = EngineClient(options.engine, options.log_format, restarts=Restarts())
    await engine.start()
    try:
        service = await _service(engine, options)
        servers = [new_server(create_app(service)), new_server(create_admin_app(service, fence))]
        tasks = [
            asyncio.create_task(server.serve(sockets=[listener]))
            for server, listener in zip(servers, listeners, strict=True)
        ]
        log.info("listening", serving=serving, admin=admin, model=options.engine.model)
        load = asyncio.create_task(_load_adapters(service, options))
        watch = asyncio.create_task(_announce(engine))
        follow = asyncio.create_task(service.adapters.follow_engine())
        code = await _until_the_end(engine, service, stop, options.drain_seconds)
        for server in servers:
            server.should_exit = True
        await asyncio.wait(tasks, timeout=_LAST_WORDS_SECONDS)
        for server in servers:
            server.force_exit = True
        for task in (load, watch, follow):
            task.cancel()
        await asyncio.wait([*tasks, load, watch, follow], timeout=_LAST_WORDS_SECONDS)
        return code
    finally:
        await engine.stop()


async def _service(engine: EngineClient, options: ServeOptions) -> Service:
    tokenizer = await asyncio.to_thread(load_tokenizer, options.engine.model)
    engine.speak(tokenizer.vocabulary)
    served_name = options.engine.served_name
    return Service(
        engine=engine,
        tokenizer=tokenizer,
        adapters=Adapters(engine, ArtifactStore(default_cache())),
        settings=Settings(served_name, options.serving_token, options.admin_token),
        metrics=Metrics(engine, served_name),
        volumes=ArtifactVolumes(options.artifacts),
    )


async def _until_the_end(engine: EngineClient, service: Service, stop: _StopRequest, drain_seconds: float) -> int:
    died = asyncio.create_task(engine.died.wait())
    asked = asyncio.create_task(stop.asked.wait())
    await asyncio.wait([died, asked], return_when=asyncio.FIRST_COMPLETED)
    if engine.died.is_set():
        # It died too often, or never was Ready. Streams end by their own error events; then the supervisor starts this
        # replica anew.
        await _drained(service, _LAST_WORDS_SECONDS)
        return 1
    if not stop.at_once:
        service.draining = True
        log.info("draining", open_requests=service.open_requests, seconds=drain_seconds)
        drained = asyncio.create_task(_drained(service, drain_seconds))
        again = asyncio.create_task(stop.again.wait())
        await asyncio.wait([drained, again, died], return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
        again.cancel()
    died.cancel()
    return 0


async def _drained(service: Service, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while service.open_requests and time.monotonic() < deadline:
        await asyncio.sleep(0.02)


class _StopRequest:
    """`asked`: by a signal, or by the parent's end (`at_once`: nobody to drain for). `again`: insisted on."""

    def __init__(self, exit_with_parent: bool) -> None:
        self.asked = asyncio.Event()
        self.again = asyncio.Event()
        self.at_once = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        if exit_with_parent:
            threading.Thread(target=self._watch_parent, args=(loop,), daemon=True).start()

    def _on_signal(self) -> None:
        (self.again if self.asked.is_set() else self.asked).set()

    def _watch_parent(self, loop: asyncio.AbstractEventLoop) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        self.at_once = True
        with contextlib.suppress(RuntimeError):  # the loop may be gone already
            loop.call_soon_threadsafe(self.asked.set)
            loop.call_soon_threadsafe(self.again.set)
        time.sleep(_HARD_EXIT_SECONDS)
        os._exit(1)


async def _load_adapters(service: Service, options: ServeOptions) -> None:
    for name, folder in options.adapters:
        try:
            files = await asyncio.to_thread(read_folder, folder)
        except ArtifactError as error:
            log.error("an adapter was not loaded", adapter=name, reason=error.message)
            continue
        service.adapters.put(name, revision_of(files), files, pinned=False)


async def _announce(engine: EngineClient) -> None:
    """Say "ready" whenever the replica has become so."""
    phase = ""
    while True:
        if engine.state.phase != phase:
            phase = engine.state.phase
            if phase == "Ready":
                log.info("ready")
        await engine.wait_newer(engine.version)
