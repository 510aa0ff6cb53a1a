"""Tells the front end, once a second, that this process lives, and for how long its loop has not come round.

A thread of its own: a step may last long and says nothing meanwhile; a process that is stopped, or thrashes, is silent.
"""

from __future__ import annotations

import threading
import time

import zmq

from lorafleet_runtime.protocol import Alive, encode

PULSE_SECONDS = 1.0


class Pulse:
    """Beats from its making to `stop`. `turned` is the loop's."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str) -> None:
        self._context = context
        self._endpoint = endpoint
        self._turned_at: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._thread.start()

    def turned(self) -> None:
        """The loop has come round. Before the first time, nothing is expected of it."""
        self._turned_at = time.monotonic()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _beat(self) -> None:
        socket = self._context.socket(zmq.PUSH)  # made here: a socket belongs to one thread
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(self._endpoint)
        while True:
            busy = 0.0 if self._turned_at is None else time.monotonic() - self._turned_at
            socket.send(encode(Alive(busy)))
            if self._stopped.wait(PULSE_SECONDS):
                break
        socket.close()
