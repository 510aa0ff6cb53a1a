"""Listening sockets that outlive the servers on them, and servers that share one event loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

from lorafleet_runtime.errors import ConfigError

KEEP_ALIVE_SECONDS = 75
"""Longer than gateways and the operator keep an idle connection: no request meets one that was just closed here."""


class Server(uvicorn.Server):
    """Several of these share one loop, so signals are not theirs."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def new_server(app: FastAPI) -> Server:
    """A server of `app`, for sockets that are given to its `serve`."""
    return Server(
        uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", http="httptools", ws="none",
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )  # fmt: skip


def listen(host: str, port: int, flag: str) -> socket.socket:
    """A socket that takes connections from now on. Raises ConfigError naming `flag`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ConfigError(f"{flag} {port}: cannot listen on {host}: {error.strerror}") from None
    listener.listen(2048)
    listener.setblocking(False)
    return listener


def address(listener: socket.socket) -> str:
    """The URL at which a socket listens."""
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"
