"""Correctness before speed: what each system of `bench.engine` computes, against transformers + PEFT.

In float32 the engine's tokens are PEFT's, one by one, for every adapter and the base in one batch. In the dtype that is
measured, roundings differ between any two implementations; there each token of a served answer is compared with PEFT's
choice after the same tokens, and an adapter's answer must differ from the base's to the same prompt."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.engine_systems import BASE, Served
from bench.in_process import gate, load_adapters, model_path, start_engine
from bench.load_client import Ask, asks
from bench.oracle import Oracle
from bench.peers.peft_orders import Peft

LEAST_AGREEMENT = 0.9
"""Of the tokens: near ties go either way in bfloat16. Without its adapters a system would agree on seven in ten."""
PROMPT, TOKENS = 32, 16


def float32_gate(adapters: Mapping[str, Path]) -> int:
    """The engine's mixed batch in float32 against PEFT, in a child process. Returns close calls; exits on a wrong
    token."""
    child = [sys.executable, "-m", "bench.engine_gate", *map(str, adapters.values())]
    done = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit("the engine's float32 tokens are not PEFT's: nothing was measured")
    return int(done.stdout.split()[-1])


def served_gate(name: str, system: Served, worker: Peft, dtype: str, adapters: Sequence[str]) -> tuple[float, float]:
    """Each adapter and the base answer one prompt of their own, and the base each adapter's prompt too. Returns the
    share of tokens in which PEFT agrees, and in which it would without the adapters; exits if the former is low, the
    latter is not lower, or an adapter is not heard."""
    mine = asks([*adapters, BASE], len(adapters) + 1, PROMPT, TOKENS, seed=70)
    unadapted = [Ask(BASE, ask.prompt, TOKENS) for ask in mine[:-1]]
    outputs, plain = (_outputs(system, asked) for asked in (mine, unadapted))
    for ask, output, base in zip(mine, outputs, plain, strict=False):
        if output == base:
            sys.exit(f"{name} answers with {ask.model} as without it: its adapters do not work")
    agreed = worker.judge(dtype, mine, outputs, BASE)
    without = worker.judge(dtype, [Ask(BASE, ask.prompt, TOKENS) for ask in mine], outputs, BASE)
    share, control = sum(agreed) / (TOKENS * len(mine)), sum(without) / (TOKENS * len(mine))
    if share < LEAST_AGREEMENT or (adapters and control > share):
        sys.exit(
            f"{name} agrees with PEFT in {share:.0%} of the tokens, by request {agreed} of {TOKENS}; at least "
            f"{LEAST_AGREEMENT:.0%} are wanted, and more than with PEFT without adapters ({control:.0%})"
        )
    return share, control


def _outputs(system: Served, asked: Sequence[Ask]) -> list[list[int]]:
    if not asked:
        return []
    outcome = system.run(asked, len(asked), 300.0)
    if outcome.cut:
        sys.exit(f"{system.server.url} did not answer {len(asked)} short requests within 300 s")
    return [answer.token_ids if answer else [] for answer in outcome.answers]


def main() -> None:
    """The child of `float32_gate`: prints the number of close calls."""
    folders = [Path(folder) for folder in sys.argv[1:]]
    engine = start_engine(threads=1)
    load_adapters(engine, folders)
    print(gate(engine, Oracle(model_path()), folders))
    engine.close()


if __name__ == "__main__":
    main()
