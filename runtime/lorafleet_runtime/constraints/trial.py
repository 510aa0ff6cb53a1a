"""A first compilation in a copy of this process that may die of it: the library's own limits do not hold everywhere.

`multipleOf: 999983` makes it work for 7 s and take 400 MB; `(a{1000}){1000}`, 0.6 s for one token."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import time
from threading import Lock

from lorafleet_runtime.constraints.constraint import Constraint
from lorafleet_runtime.constraints.language import Language, Unfit, advance, first_token, mask

CPU_SECONDS = 1
WALL_SECONDS = 10.0
MEMORY_BYTES = 256 * 2**20
WALKED = 16
"""Tokens that are looked at, along the lowest ids: some constraints compile and then have no second token."""


def refusal(language: Language, constraint: Constraint, quiet: Lock) -> str:
    """Why a constraint must not be compiled here, or "". While `quiet` is held, no other thread is in the library."""
    read, write = os.pipe()
    with quiet:
        child = os.fork()
    if child == 0:
        _try(language, constraint, write)
    os.close(write)
    try:
        return _outcome(child, read)
    finally:
        os.close(read)


def _try(language: Language, constraint: Constraint, write: int) -> None:
    """In the copy: compile, walk, report, end."""
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        bound_memory(MEMORY_BYTES)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library's last words, when memory ends
        try:
            matcher = language.compile(constraint)
            for _ in range(WALKED):
                bits = mask(matcher)
                if matcher.is_stopped():
                    break
                advance(matcher, [first_token(bits)])
            answer = "ok"
        except Unfit as error:
            answer = f"{error}" or "the grammar library refuses it"
        os.write(write, answer.encode()[:4096])
    finally:
        os._exit(0)


def _outcome(child: int, read: int) -> str:
    deadline = time.monotonic() + WALL_SECONDS
    if not select.select([read], [], [], WALL_SECONDS)[0]:
        os.kill(child, signal.SIGKILL)
    answer = os.read(read, 4096).decode(errors="replace")
    while (done := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.0005)
    if answer:
        return "" if answer == "ok" else answer
    number = os.WTERMSIG(done[1]) if os.WIFSIGNALED(done[1]) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"compiling it takes more than {CPU_SECONDS} s"
    return f"compiling it takes more than {MEMORY_BYTES >> 20} MiB"


def bound_memory(more: int) -> None:
    """From now on this process cannot map more than so many bytes beside what it has. Linux alone counts them."""
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))
