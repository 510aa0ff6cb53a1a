"""The engine as a process of its own: ZeroMQ in, ZeroMQ out, one loop.

`python -m lorafleet_runtime.engine.process --endpoint ipc://… --config JSON [--exit-with-parent]`. The front end binds
`ENDPOINT.in` (it pushes) and `ENDPOINT.out` (it pulls).
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import zmq

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.memory import give_back
from lorafleet_runtime.engine.pulse import Pulse
from lorafleet_runtime.engine.ranks.ranks import Ranks
from lorafleet_runtime.errors import LorafleetError, StepFailed
from lorafleet_runtime.logs import configure_logs
from lorafleet_runtime.protocol import Deltas, EngineState, Shutdown, decode_to_engine, encode

if TYPE_CHECKING:
    from lorafleet_runtime.engine.engine import Engine

log = structlog.get_logger("engine")

STATE_SECONDS = 0.1
IDLE_STATE_SECONDS = 1.0


def serve(config: EngineConfig, endpoint: str) -> None:
    """Load, then run until a Shutdown message or the end of the process."""
    context = zmq.Context()
    inbox, outbox, alarm = context.socket(zmq.PULL), context.socket(zmq.PUSH), context.socket(zmq.PULL)
    for socket in (inbox, outbox):
        socket.setsockopt(zmq.LINGER, 200)
    inbox.connect(f"{endpoint}.in")
    outbox.connect(f"{endpoint}.out")
    alarm.bind("inproc://loaded")
    pulse = Pulse(context, f"{endpoint}.out")
    try:
        ranks = Ranks(config.tensor_parallel, _last_words(endpoint)) if config.tensor_parallel > 1 else None
        # Imported late: torch takes seconds, in which the other ranks import theirs.
        from lorafleet_runtime.engine.start import start
        from lorafleet_runtime.model.threads import threads

        engine = start(config, _report_to(outbox), ranks)
    except Exception as error:
        outbox.send(encode(EngineState("Failed", message=f"{error}")))
        raise
    engine.wake_on_loaded(_alarm_bell(context))
    log.info("the engine is ready", threads=threads())
    try:
        _loop(engine, inbox, outbox, alarm, pulse)
    except StepFailed as error:
        log.error("a step failed", exc_info=error)
        outbox.send(encode(EngineState("Failed", message=f"{error}")))
        pulse.stop()
        context.destroy(linger=500)
        os._exit(1)  # nothing is closed: a device that failed may never answer whoever tries
    except Exception as error:
        reason = f"{error}" if isinstance(error, LorafleetError) else f"{type(error).__name__}: {error}"
        outbox.send(encode(EngineState("Failed", message=reason)))
        raise
    finally:
        engine.close()
        pulse.stop()
        context.destroy(linger=200)


def _loop(
    engine: Engine, inbox: zmq.Socket[bytes], outbox: zmq.Socket[bytes], alarm: zmq.Socket[bytes], pulse: Pulse
) -> None:
    poller = zmq.Poller()
    poller.register(inbox, zmq.POLLIN)
    poller.register(alarm, zmq.POLLIN)
    reported_at = 0.0
    stepped = True
    worked = True
    while True:
        pulse.turned()
        busy = engine.has_work and not engine.only_reads
        ready = dict(poller.poll(0 if busy or engine.changed else int(1000 * IDLE_STATE_SECONDS)))
        if engine.has_work:
            worked = True
        elif worked and not ready:
            worked = False
            give_back()
        if alarm in ready:
            _drain(alarm)
        if inbox in ready:
            for raw in _drain(inbox):
                message = decode_to_engine(raw)
                if isinstance(message, Shutdown):
                    return
                engine.handle(message)
        deltas = engine.step()
        if deltas:
            outbox.send(encode(Deltas(deltas)))
        stepped = stepped or bool(deltas)
        now = time.monotonic()
        due = now - reported_at >= (STATE_SECONDS if stepped else IDLE_STATE_SECONDS)
        if engine.changed or due:
            engine.told()
            stepped = False
            reported_at = now
            if (news := engine.adapter_news()) is not None:
                outbox.send(encode(news))
            outbox.send(encode(engine.state(adapters=False)))
            if (sharing := engine.sharing()) is not None:
                outbox.send(encode(sharing))


def _drain(socket: zmq.Socket[bytes]) -> list[bytes]:
    messages: list[bytes] = []
    while True:
        try:
            messages.append(socket.recv(zmq.NOBLOCK))
        except zmq.Again:
            return messages


def _alarm_bell(context: zmq.Context[zmq.Socket[bytes]]) -> Callable[[], None]:
    """A callable for the loader's thread; its socket is made there, since sockets belong to one thread."""
    local = threading.local()

    def ring() -> None:
        if not hasattr(local, "socket"):
            local.socket = context.socket(zmq.PUSH)
            local.socket.connect("inproc://loaded")
        local.socket.send(b"")

    return ring


def _report_to(outbox: zmq.Socket[bytes]) -> Callable[[str, float], None]:
    """Progress to the front end, at most ten times a second."""
    last = 0.0

    def report(message: str, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last >= STATE_SECONDS:
            last = time.monotonic()
            outbox.send(encode(EngineState("Loading", message=message, progress=fraction)))

    return report


def _last_words(endpoint: str) -> Callable[[str], None]:
    """What to do when another rank has ended: tell the front end why, and end at once. The loop may be waiting in a
    collective for good; so this takes place in the thread that noticed, on a socket of its own."""

    def end(reason: str) -> None:
        log.error("a rank is gone", reason=reason)
        context = zmq.Context()
        outbox = context.socket(zmq.PUSH)
        outbox.connect(f"{endpoint}.out")
        outbox.send(encode(EngineState("Failed", message=reason)))
        context.destroy(linger=500)
        os._exit(1)

    return end


def _exit_with_parent() -> None:
    """End at once when standard input ends: only the parent holds the other end."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="lorafleet_runtime.engine.process", description=__doc__)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--log-format", choices=("console", "json"), default="console")
    parser.add_argument("--exit-with-parent", action="store_true")
    arguments = parser.parse_args()
    configure_logs(arguments.log_format)
    # The front end ends the engine by message or by the pipe; a Ctrl-C in the terminal reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if arguments.exit_with_parent:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        serve(EngineConfig.from_json(arguments.config), arguments.endpoint)
    except Exception:
        log.exception("the engine failed")
        sys.exit(1)


if __name__ == "__main__":
    main()
