"""Free TCP ports on this machine, and the question whether one is taken."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable

from lorafleet_operator.errors import PortTaken

ATTEMPTS = 64


def free_port(host: str, reserved: Iterable[int] = ()) -> int:
    """A port nobody listens on, and not one of `reserved` (given to a child that has not bound it yet).

    Another program may take it first; the child then ends, and is started again with another port.
    """
    taken = set(reserved)
    for _ in range(ATTEMPTS):
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
    raise PortTaken(f"no free TCP port on {host}: {len(taken)} are reserved by this fleet")


def require_free(host: str, port: int) -> None:
    """Raise PortTaken, with what to do about it, when `host:port` cannot be bound now."""
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(_why(host, port, error)) from error


def _why(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use: stop what listens there, or choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has: choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error.strerror}: --host must be an address of this machine"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
