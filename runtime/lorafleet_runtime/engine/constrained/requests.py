"""The constrained requests of an engine: set aside until their constraint is compiled, then a mask for every token.

Masks are made in a child process, at the same time as the model's forward pass. What hangs or eats memory there ends
one request: the process is killed, and another one takes up the others where they are. Knows tokens as numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from lorafleet_runtime.constraints.constraint import Vocabulary
from lorafleet_runtime.constraints.messages import Advance, Close, FromWorker, Made, Open, Opened
from lorafleet_runtime.engine.constrained.asked import Asked
from lorafleet_runtime.engine.constrained.masks import Masks, Place
from lorafleet_runtime.engine.constrained.process import ConstraintProcess
from lorafleet_runtime.engine.constrained.request import Request
from lorafleet_runtime.engine.constrained.turns import Turns
from lorafleet_runtime.protocol import AddRequest

log = structlog.get_logger("engine")

MASK_SECONDS = 1.0
"""How long a step waits for any one mask; usually all are there before the logits are."""
LOOK_SECONDS = 0.1
"""How often it looks whose mask is being made: masks of a step come together."""
RESTART_SECONDS = 20.0
"""How long it waits for a process that has been started anew."""
COMPILE_SECONDS = 20.0
"""Longer than a trial and a start may last together."""


class Constraints:
    """`heard` is called by another thread when an answer has come; the rest belongs to the engine's thread."""

    def __init__(self) -> None:
        self._vocabulary: Vocabulary | None = None
        self._process: ConstraintProcess | None = None
        self._requests: dict[str, Request] = {}
        self._asked = Asked(self._answered)
        self._turns: Turns[AddRequest] = Turns()
        self._compiling: AddRequest | None = None
        self._unwanted = False  # what is being compiled is for a request that has ended
        self._since = 0.0
        self._ready: list[AddRequest] = []
        self._refused: list[tuple[str, str]] = []
        self.heard: Callable[[], None] = lambda: None
        self.compiled = 0
        self.compile_seconds = 0.0

    @property
    def opening(self) -> bool:
        """Whether requests are set aside, or have just ceased to be."""
        return bool(self._compiling or self._turns or self._ready or self._refused)

    @property
    def pid(self) -> int | None:
        """Of the child process, once there is one."""
        return self._process.pid if self._process else None

    def speak(self, vocabulary: Vocabulary) -> None:
        """What the tokens mean; before the first request."""
        self._vocabulary = vocabulary

    def open(self, request: AddRequest) -> None:
        """Set a request aside until `opened` gives it back. One is compiled at a time; tenants take turns."""
        if self._vocabulary is None or not self._vocabulary.ends:
            error = "constraints_unavailable: this engine was not told what its tokens mean, or which one ends a text"
            self._refused.append((request.request_id, error))
            return
        self._turns.add(request.tenant, request)
        self._compile_next()

    def opened(self) -> tuple[list[AddRequest], list[tuple[str, str]]]:
        """Requests whose first mask is made, and (request id, error) of those that get none."""
        self._hear()
        if self._compiling is not None and time.monotonic() - self._since > COMPILE_SECONDS:
            self._replace(None, "the process that knows constraints does not answer")
        ready, self._ready = self._ready, []
        refused, self._refused = self._refused, []
        return ready, refused

    def close(self, request_ids: Iterable[str]) -> None:
        """These requests have ended or were given up; ids of others change nothing."""
        ended = set(request_ids)
        known = [request_id for request_id in ended if self._requests.pop(request_id, None)]
        if known and self._process is not None:
            self._process.send(Close(known))
        if self._compiling is not None and self._compiling.request_id in ended:
            self._unwanted = True
        if ended and self.opening:
            self._ready = [request for request in self._ready if request.request_id not in ended]
            self._turns.drop(lambda request: request.request_id in ended)

    def prepare(self, rows: Iterable[tuple[str, Sequence[int]]]) -> None:
        """Before a forward pass: (request id, output tokens so far) of the rows whose next token will be chosen."""
        news: list[tuple[str, list[int]]] = []
        for request_id, output in rows:
            request = self._requests.get(request_id)
            new = list(output[len(request.output) :]) if request is not None else []
            if request is not None and new and not request.error:
                request.output += new
                request.mask = b""
                news.append((request_id, new))
        if news and self._process is not None:
            self._asked.add([request_id for request_id, _ in news])
            self._process.send(Advance(news))

    def foreseen(self) -> Mapping[str, Sequence[int]]:
        """By request, its output with the tokens that must come next, as far as they are known by now."""
        self._hear()
        return {request_id: request.output for request_id, request in self._requests.items()}

    def masks(self, places: Sequence[Place]) -> Masks:
        """After a pass: what may come at those places, of requests that `prepare` was told. Waits for what is not there
        yet."""
        masks = Masks()
        if not places:
            return masks
        request_ids = list(dict.fromkeys(request_id for request_id, _ in places))
        self._hear()
        if not self._await(request_ids, MASK_SECONDS):
            self._replace(self._slow(), f"the mask of a token took more than {MASK_SECONDS:g} s")
            self._await(request_ids, RESTART_SECONDS)
        for place in places:
            request = self._requests.get(place[0])
            if request is not None and (mask := request.mask_at(place[1])):
                masks.allowed[place] = mask
            else:  # also one that was given up while its step ran: nobody reads what it gets
                lost = "constraint_lost: nothing makes its masks any more"
                masks.errors[place] = (request and request.error) or lost
        return masks

    def shut(self) -> None:
        """End the child process."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    def _answered(self, request_id: str) -> bool:
        request = self._requests.get(request_id)
        return request is None or request.answered

    def _compile_next(self) -> None:
        if self._compiling is None and self._turns:
            self._compiling, self._unwanted = self._turns.next(), False
            self._send_compiling()

    def _send_compiling(self) -> None:
        request = self._compiling
        assert request is not None and request.sampling.constraint is not None
        self._since = time.monotonic()
        self._running().send(Open(request.request_id, request.sampling.constraint, request.output_token_ids))

    def _running(self) -> ConstraintProcess:
        if self._process is None:
            assert self._vocabulary is not None, "`open` has looked"
            self._process = ConstraintProcess(lambda: self.heard())
            self._process.send(self._vocabulary)
        return self._process

    def _hear(self) -> None:
        """Take every answer that has come."""
        while self._process is not None:
            answer = self._process.next(0.0)
            if answer is not None:
                self._take(answer)
            elif self._process.ended:
                self._replace(self._slow(), "the process that made masks has ended")
            else:
                return

    def _await(self, request_ids: Sequence[str], seconds: float) -> bool:
        """Whether all of them have a mask or an error, each within that time of the one before."""
        making, since = -1, 0.0
        while not all(self._answered(request_id) for request_id in request_ids):
            if self._process is None or self._process.ended:
                return False
            if self._process.making != making:
                making, since = self._process.making, time.monotonic()
            left = since + seconds - time.monotonic()
            if left <= 0:
                return False
            answer = self._process.next(min(left, LOOK_SECONDS))
            if answer is not None:
                self._take(answer)
                making = -1
        return True

    def _take(self, answer: FromWorker) -> None:
        match answer:
            case Made(masks):
                for mask in masks:
                    if (request := self._requests.get(mask.request_id)) is not None:  # else it has ended
                        request.take(mask)
            case Opened() if self._compiling is not None and answer.request_id == self._compiling.request_id:
                self._took_compiled(self._compiling, answer)
            case Opened() if (request := self._requests.get(answer.request_id)) is not None:
                request.take(answer)

    def _took_compiled(self, request: AddRequest, answer: Opened) -> None:
        self._compiling = None
        if self._unwanted:
            self._running().send(Close([request.request_id]))
        elif answer.error:
            self._refused.append((request.request_id, f"invalid_constraint: {answer.error}"))
        else:
            assert request.sampling.constraint is not None
            self.compiled += answer.seconds > 0
            self.compile_seconds += answer.seconds
            self._requests[request.request_id] = Request(
                request.sampling.constraint, [*request.output_token_ids, *answer.run], answer.mask
            )
            self._ready.append(request)
        self._compile_next()

    def _slow(self) -> str | None:
        """Whose mask the process is at, or was."""
        return self._asked.slow(self._process.making if self._process is not None else 0)

    def _replace(self, guilty: str | None, reason: str) -> None:
        """Another process in place of one that hangs or has ended; who was at fault gets an error."""
        log.warning("constraints: another process", reason=reason, request=guilty)
        self.shut()
        if guilty is not None:
            self._requests[guilty].error = f"constraint_too_slow: {reason}"
        going_on = {request_id: request for request_id, request in self._requests.items() if not request.error}
        self._asked.begin(going_on)
        for request_id, request in going_on.items():
            request.mask = b""
            self._running().send(Open(request_id, request.constraint, request.output, trusted=True))
        if self._compiling is None:
            return
        if guilty is None:
            self._refused.append((self._compiling.request_id, f"invalid_constraint: {reason}"))
            self._compiling = None
            self._compile_next()
        else:
            self._send_compiling()
