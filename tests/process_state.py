"""What a test does to the process it runs in is undone: the next one, of whatever file, finds what a first one would.

Engines turn gradients off, commands take over the log lines, libraries are told to say less, and all of it is meant
for a process of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator

import structlog
import torch

from lorafleet_runtime.model import threads

LIBRARIES = ("uvicorn", "aiohttp", "asyncio", "httpx", "httpcore", "botocore", "urllib3")
"""Whose loggers our commands set up."""
PYTESTS_OWN = "PYTEST_CURRENT_TEST"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD, signal.SIGUSR1)


def start_afresh() -> None:
    """Random numbers as at the start of any test, and one thread: the workers beside this one have cores to use, and
    a sum in another order is another sum."""
    random.seed(0)
    torch.manual_seed(0)
    threads.set_threads(1)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Everything below is at the end what it was at the beginning."""
    back = [_logging(), _structlog(), _torch(), _environment(), _process()]
    try:
        yield
    finally:
        for restore in back:
            restore()


def _logging() -> Callable[[], None]:
    """A command sends this process's log lines to the output that pytest caught for one test: a later one would write
    to a closed file."""
    loggers = [logging.root, *map(logging.getLogger, LIBRARIES)]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]

    def restore() -> None:
        for logger, handlers, level, propagate in before:
            logger.handlers[:] = handlers
            logger.propagate = propagate
            if logger.level != level:
                logger.setLevel(level)

    return restore


def _structlog() -> Callable[[], None]:
    configured = structlog.get_config() if structlog.is_configured() else None

    def restore() -> None:
        structlog.contextvars.clear_contextvars()
        if configured is not None:
            structlog.configure(**configured)
        else:
            structlog.reset_defaults()

    return restore


def _torch() -> Callable[[], None]:
    gradients, dtype, device = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    large = threads.threads()

    def restore() -> None:
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        threads.set_threads(large)

    return restore


def _environment() -> Callable[[], None]:
    before = dict(os.environ)

    def restore() -> None:
        for name in os.environ.keys() - before.keys() - {PYTESTS_OWN}:
            del os.environ[name]
        for name, value in before.items():
            if os.environ.get(name) != value and name != PYTESTS_OWN:
                os.environ[name] = value

    return restore


def _process() -> Callable[[], None]:
    folder, mask, timeout = os.getcwd(), os.umask(0o077), socket.getdefaulttimeout()
    os.umask(mask)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        os.chdir(folder)
        os.umask(mask)
        socket.setdefaulttimeout(timeout)
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)

    return restore
