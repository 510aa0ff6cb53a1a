"""One log line per event: readable on a terminal, the same fields as JSON for machines."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal, Protocol

import structlog

LogFormat = Literal["console", "json"]


class LogStream(Protocol):
    """What lines are written to."""

    def write(self, text: str, /) -> int: ...

    def flush(self) -> None: ...

    def isatty(self) -> bool: ...


def configure(log_format: LogFormat, *, level: int = logging.INFO, stream: LogStream | None = None) -> None:
    """Set up structlog for this process; lines go to `stream`, by default standard error."""
    out: Any = stream or sys.stderr
    machine = log_format == "json"
    renderer: structlog.types.Processor
    if machine:
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0)
    for library in ("httpx", "httpcore", "botocore", "urllib3"):  # they repeat URLs, and those may be presigned
        logging.getLogger(library).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if machine else "%H:%M:%S", utc=machine),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
