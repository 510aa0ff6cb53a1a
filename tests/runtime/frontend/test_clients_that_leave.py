"""Clients that leave at any moment, from a real replica: pages and adapters' users go back to zero each time."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.runtime.frontend.replica_process import LONG, Replica, ask, running, save_model, state, wait_until

pytestmark = pytest.mark.slow

LONG_PROMPT: dict[str, Any] = {"prompt": "x" * 400, "max_tokens": 100}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("replica")
    with running(save_model(folder), folder) as replica:
        wait_until(lambda: replica.process.poll() is not None or '"ready"' in replica.log.read_text())
        wait_until(lambda: [a["state"] for a in state(replica)["adapters"]] == ["Ready"])
        yield replica


@contextlib.contextmanager
def connected(replica: Replica, *, cut: int = 0, **fields: object) -> Iterator[socket.socket]:
    """A connection with a request for `alpha` sent, but for its last `cut` bytes; closed at the end of the block."""
    body = json.dumps(LONG | {"model": "alpha"} | fields).encode()
    address = urlsplit(replica.address("serving"))
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection((address.hostname, address.port), 30) as connection:
        connection.sendall((head + body)[: len(head) + len(body) - cut])
        yield connection


def half_sent(replica: Replica) -> None:
    with connected(replica, cut=5):
        pass


def before_the_first_byte(replica: Replica) -> None:
    """At once, and at several moments of its prompt's way."""
    for seconds in (0.0, 0.001, 0.003, 0.01, 0.03):
        with connected(replica, **LONG_PROMPT, stream=True):
            time.sleep(seconds)


def in_mid_stream(replica: Replica) -> None:
    with connected(replica, stream=True) as connection:
        connection.recv(4096)


def of_several_choices(replica: Replica) -> None:
    with connected(replica, stream=True, n=5) as connection:
        connection.recv(4096)


def of_a_whole_answer(replica: Replica) -> None:
    with connected(replica, n=16):
        wait_until(lambda: busy(replica))


def by_a_reset(replica: Replica) -> None:
    with connected(replica, stream=True, n=5) as connection:
        connection.recv(4096)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def without_reading(replica: Replica) -> None:
    """Its buffers are full of what it has not read."""
    with connected(replica, stream=True, n=16, return_token_ids=True):
        time.sleep(0.5)


def after_the_last_token(replica: Replica) -> None:
    with connected(replica, stream=True, max_tokens=2) as connection:
        received = b""
        while b"[DONE]" not in received:
            received += connection.recv(4096)


def busy(replica: Replica) -> bool:
    load = state(replica)["load"]
    return bool(load["running"] or load["waiting"])


def at_rest(replica: Replica) -> bool:
    """Nothing runs, waits or holds a page or an adapter."""
    now = state(replica)
    counts = [now["load"]["running"], now["load"]["waiting"], now["pages"]["kv"]]
    counts += [adapter[name] for adapter in now["adapters"] for name in ("running", "waiting")]
    return not any(counts)


LEAVING = [
    half_sent, before_the_first_byte, in_mid_stream, of_several_choices, of_a_whole_answer, by_a_reset,
    without_reading, after_the_last_token,
]  # fmt: skip


@pytest.mark.parametrize("leave", LEAVING)
def test_a_client_that_leaves_takes_everything_with_it(replica: Replica, leave: Callable[[Replica], None]) -> None:
    said = len(replica.log.read_text())
    leave(replica)

    wait_until(lambda: at_rest(replica), 20)
    pages = state(replica)["pages"]
    assert pages["free"] + pages["adapters"] + pages["prefixes"] == pages["total"]
    assert replica.log.read_text()[said:] == ""


def test_a_crowd_that_leaves_in_every_way_at_once_harms_nobody_who_stays(replica: Replica) -> None:
    alone, said = ask(replica, "alpha").json()["choices"], len(replica.log.read_text())
    answers = []
    crowd = [threading.Thread(target=leave, args=(replica,)) for leave in LEAVING for _ in range(4)]
    staying = [threading.Thread(target=lambda: answers.append(ask(replica, "alpha").json())) for _ in range(8)]
    for thread in [*crowd, *staying]:
        thread.start()
    for thread in [*crowd, *staying]:
        thread.join(60)

    assert [answer["choices"] for answer in answers] == [alone] * 8
    wait_until(lambda: at_rest(replica), 20)
    assert replica.log.read_text()[said:] == ""
