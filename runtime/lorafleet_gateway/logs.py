"""One log line per event: readable on a terminal, the same fields as JSON for machines. Never a key or a
prompt."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import structlog

from lorafleet_gateway.config import LogFormat


class _ToStructlog(logging.Handler):
    """Warnings and errors of the HTTP server and client, as lines of the same shape as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        log.log(record.levelno, record.getMessage(), exc_info=record.exc_info)


def configure(log_format: LogFormat, *, stream: TextIO | None = None) -> None:
    """Set up structlog for this process; lines go to `stream`, standard error by default."""
    out = stream or sys.stderr
    machine = log_format == "json"
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer()
        if machine
        # The default prints the locals of a traceback, and those hold prompts and keys.
        else structlog.dev.ConsoleRenderer(
            colors=out.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso" if machine else "%H:%M:%S", utc=machine),
            *([structlog.processors.format_exc_info] if machine else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    for name in ("uvicorn", "aiohttp", "asyncio"):
        library = logging.getLogger(name)
        library.handlers = [_ToStructlog(logging.WARNING)]
        library.propagate = False
