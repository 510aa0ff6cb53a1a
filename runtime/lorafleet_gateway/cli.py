"""`lorafleet-gateway serve`: flags to one running server, and an orderly end."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import structlog
import uvicorn

from lorafleet_gateway import __version__, logs
from lorafleet_gateway.app import create_app
from lorafleet_gateway.config import Limits, Settings, serving_token
from lorafleet_gateway.errors import ConfigError
from lorafleet_gateway.fleet import FleetFolder
from lorafleet_gateway.mirror import Mirror, access

_BACKLOG = 2048
_MOST_DESCRIPTORS = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status. 2 is a wrong flag, folder or port."""
    arguments = _parser().parse_args(argv)
    settings = Settings(
        fleet=arguments.fleet,
        host=arguments.host,
        port=arguments.port,
        log_format=arguments.log_format,
        exit_with_parent=arguments.exit_with_parent,
        serving_token=serving_token(os.environ),
    )
    logs.configure(settings.log_format)
    try:
        settings = settings.check()
        namespace = arguments.cluster_namespace
        serve(settings, mirror=Mirror(access(namespace, os.environ), settings.fleet) if namespace else None)
    except ConfigError as error:
        print(f"lorafleet-gateway: {error}", file=sys.stderr)
        return 2
    return 0


def serve(settings: Settings, limits: Limits | None = None, mirror: Mirror | None = None) -> None:
    """Serve until SIGTERM or SIGINT: then accept nothing more, and let streams finish for
    `limits.stop_seconds`.

    How many connections there may be at once is the process's limit of file descriptors, of which an admitted request
    takes two. Beyond it a connection is closed as soon as it is accepted (or waits to be, without uvloop): the limit is
    there for all tenants together, because before its key a connection is nobody's. A tenant's own bound is its quota
    `maxConcurrentRequests`; what is refused over it costs its headers, and an idle connection is closed after 5 s.

    Raises ConfigError when the port cannot be had.
    """
    limits = limits or Limits()
    _raise_descriptor_limit()
    listener = _listen(settings.host, settings.port)
    if settings.exit_with_parent:
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    fleet = FleetFolder(settings.fleet, limits.poll_seconds)
    app = create_app(fleet, token=settings.serving_token, limits=limits, mirror=mirror)
    config = uvicorn.Config(
        app,
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(limits.stop_seconds),
    )
    host, port = listener.getsockname()[:2]
    structlog.get_logger("lorafleet_gateway").info(
        "listening",
        host=host,
        port=port,
        fleet=str(settings.fleet),
        replica_token=bool(settings.serving_token),
    )
    uvicorn.Server(config).run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lorafleet-gateway", description="API keys to tenants, names to adapters, requests to replicas."
    )
    parser.add_argument("--version", action="version", version=f"lorafleet-gateway {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("serve", help="serve OpenAI's routes over a fleet")
    command.add_argument(
        "--fleet", type=Path, required=True, metavar="DIR", help="folder of fleet and tenants documents"
    )
    command.add_argument(
        "--cluster-namespace", metavar="NAME",
        help="in a pod: keep the folder equal to what the operator publishes in this namespace",
    )  # fmt: skip
    command.add_argument("--host", default="127.0.0.1")
    command.add_argument("--port", type=int, default=8080, help="0 takes a free one and logs it")
    command.add_argument("--log-format", choices=("console", "json"), default="console")
    command.add_argument(
        "--exit-with-parent",
        action="store_true",
        help="exit when standard input ends, as it does when the parent dies",
    )
    return parser


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port} cannot be had: {error.strerror}") from None


def _raise_descriptor_limit() -> None:
    """As far as this process may: the usual soft limit of 1,024 is one for programs that use select()."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _exit_at_end_of_input() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    structlog.get_logger("lorafleet_gateway").info("the parent has gone, exiting")
    # At once: the replicas have ended with the same parent, so there is nothing left to finish or to resume.
    os._exit(0)
