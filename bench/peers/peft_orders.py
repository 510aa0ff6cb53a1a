"""What the bench and `peft_worker` say to each other, as JSON lines, and the bench's end of the line."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

import msgspec

from bench.load_client import Answer, Ask
from bench.load_client import Outcome as LoadOutcome

Mode = Literal["mixed", "swap", "single"]
"""One batch of all adapters (`adapter_names=`); one adapter at a time, its requests as one batch; one request at a
time. The latter two switch adapters with `set_adapter`."""


class Generate(msgspec.Struct, frozen=True, tag=True):
    mode: Mode
    dtype: str
    threads: int
    prompts: list[list[int]]
    adapters: list[str]
    tokens: int


class Generated(msgspec.Struct, frozen=True, tag=True):
    """Seconds in all, and by request from the start to the sending and to its first token."""

    seconds: float
    sent: list[float]
    first: list[float]
    outputs: list[list[int]]


class Judge(msgspec.Struct, frozen=True, tag=True):
    dtype: str
    prompts: list[list[int]]
    outputs: list[list[int]]
    adapters: list[str]


class Agreement(msgspec.Struct, frozen=True, tag=True):
    tokens: list[int]


Order = Generate | Judge
Outcome = Generated | Agreement


class Peft:
    """A running worker."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._decode = msgspec.json.Decoder(Outcome).decode

    def judge(self, dtype: str, asked: list[Ask], outputs: list[list[int]], base: str) -> list[int]:
        """For each request, how many of its output's tokens PEFT would have chosen too; `base` is the base's name."""
        names = ["" if ask.model == base else ask.model for ask in asked]
        outcome = self._ask(Judge(dtype, [a.prompt for a in asked], outputs, names))
        assert isinstance(outcome, Agreement)
        return outcome.tokens

    def generate(self, mode: Mode, dtype: str, threads: int, asked: list[Ask]) -> LoadOutcome:
        """The requests' outcome as the load client would report it. In "single" each request is sent when the one
        before has ended; otherwise all are sent at the start."""
        order = Generate(mode, dtype, threads, [a.prompt for a in asked], [a.model for a in asked], asked[0].tokens)
        outcome = self._ask(order)
        assert isinstance(outcome, Generated)
        sent = outcome.sent if mode == "single" else [0.0] * len(asked)
        ends = [*outcome.sent[1:], outcome.seconds] if mode == "single" else [outcome.seconds] * len(asked)
        answers: list[Answer | None] = [
            Answer(*given) for given in zip(sent, outcome.first, ends, outcome.outputs, strict=True)
        ]
        return LoadOutcome(answers, outcome.seconds, cut=False)

    def _ask(self, order: Order) -> Outcome:
        into, out = self._process.stdin, self._process.stdout
        assert into is not None
        assert out is not None
        into.write(msgspec.json.encode(order) + b"\n")
        into.flush()
        line = out.readline()
        if not line:
            sys.exit(f"the PEFT worker ended with {self._process.wait()}; its log says why")
        answer: Outcome = self._decode(line)
        return answer


@contextlib.contextmanager
def peft(model: Path, adapters: Mapping[str, Path], log: IO[bytes]) -> Iterator[Peft]:
    """A worker with `adapters` on `model`, a folder of safetensors."""
    command = [sys.executable, "-m", "bench.peers.peft_worker", str(model)]
    command += [f"{name}={folder}" for name, folder in adapters.items()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
        try:
            yield Peft(process)
        finally:
            process.kill()
