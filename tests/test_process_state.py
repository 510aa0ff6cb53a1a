"""The negative control of what no test shows by passing: that it leaves nothing behind."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path

import structlog
import torch

from lorafleet_runtime.logs import configure_logs
from lorafleet_runtime.model.threads import set_threads, threads
from tests import process_state


def seen() -> dict[str, object]:
    uvicorn = logging.getLogger("uvicorn")
    mask = os.umask(0o022)
    os.umask(mask)
    return {
        "variables": {name: value for name, value in os.environ.items() if name != process_state.PYTESTS_OWN},
        "folder": os.getcwd(), "mask": mask, "timeout": socket.getdefaulttimeout(),
        "signal": signal.getsignal(signal.SIGUSR1), "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(), "threads": (threads(), torch.get_num_threads()),
        "log": (logging.root.handlers[:], logging.root.level), "library": (uvicorn.handlers[:], uvicorn.propagate),
        "lines": structlog.is_configured(),
    }  # fmt: skip


def test_what_is_done_to_the_process_is_undone(tmp_path: Path) -> None:
    before = seen()
    with process_state.kept():
        os.environ["OF_THIS_TEST"] = "1"
        del os.environ["PATH"]
        os.chdir(tmp_path)
        os.umask(0o077)
        socket.setdefaulttimeout(3)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        set_threads(3)
        torch.set_num_threads(2)
        configure_logs()
        logging.getLogger("uvicorn").handlers = [logging.NullHandler()]
        during = seen()

    assert [name for name in before if during[name] == before[name]] == []
    assert seen() == before


def test_random_numbers_are_those_of_any_test() -> None:
    first = torch.rand(3)
    process_state.start_afresh()

    assert torch.equal(torch.rand(3), first)
