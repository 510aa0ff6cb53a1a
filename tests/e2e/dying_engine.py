"""A replica whose engine breaks in a step as a GPU would: `python -m tests.e2e.dying_engine serve …` takes the
runtime's own arguments. Its engine is the runtime's, on a runner that raises

* when a step reads a prompt with `POISON` in it, every time;
* once, when the file that `FAULT_ONCE` names is there, and a step has a row on an adapter and one on none.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from lorafleet_runtime.engine.runner import Runner
from lorafleet_runtime.engine.sampling.sampler import Sampled
from lorafleet_runtime.engine.step_plan import BASE, Plan

POISON = "\x07\x06\x07"
FAULT_ONCE = "FAULT_ONCE"
WORDS = (
    "CUDA error: an illegal memory access was encountered\n"
    "CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)


class DyingRunner(Runner):
    """Computes as its parent does, until it does not."""

    def launch(self, plan: Plan) -> Callable[[], list[Sampled]]:
        rows = plan.step.rows
        once = Path(os.environ[FAULT_ONCE])
        if any(POISON.encode() in bytes(token % 256 for token in row.tokens) for row in rows):
            raise torch.AcceleratorError(WORDS)
        if once.exists() and len({row.adapter == BASE for row in rows}) == 2:
            once.unlink()
            raise torch.AcceleratorError(WORDS)
        return super().launch(plan)


def main() -> None:
    """The replica; or with `--endpoint`, its engine."""
    if "--endpoint" in sys.argv:
        from lorafleet_runtime.engine import process, start

        vars(start)["Runner"] = DyingRunner
        process.main()
        return
    from lorafleet_runtime import cli
    from lorafleet_runtime.frontend import serve
    from lorafleet_runtime.frontend.engine_client import EngineClient

    command = (sys.executable, "-m", "tests.e2e.dying_engine")
    vars(serve)["EngineClient"] = functools.partial(EngineClient, command=command)
    cli.main()


if __name__ == "__main__":
    main()
