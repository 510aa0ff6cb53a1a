"""What `bench.soak` soaks: the scheduler and the pool alone, and the engine with its tensors."""

from __future__ import annotations

import random
import time
import zlib
from pathlib import Path

import torch

from bench.soak_device import TaggedDevice
from bench.soak_traffic import Ask
from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.core.batch import Row
from lorafleet_runtime.core.invariants import leaks, violations
from lorafleet_runtime.core.limits import Limits
from lorafleet_runtime.core.room import Room
from lorafleet_runtime.core.scheduler import Scheduler
from lorafleet_runtime.core.sequence import Sequence
from lorafleet_runtime.engine.start import start
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.protocol import AbortRequest, AddRequest, LoadAdapter, Sampling, UnloadAdapter

CONTEXT = 128
RANKS = (2, 4, 8, 16)
DRAFTS = 4


class CoreTarget:
    """No tensors: a load is there at once, and the device samples what a seed says, or often what it said before."""

    def __init__(self, pages: int = 64, seqs: int = 16) -> None:
        self._room = Room(pages, CONTEXT)
        self._scheduler = Scheduler(self._room, Limits(CONTEXT, seqs, 96, DRAFTS))
        self._rng = random.Random(pages)
        self._device = TaggedDevice()

    def ask(self, request: Ask) -> None:
        sampling = Sampling(max_tokens=request.max_tokens, stop_token_ids=(0,))
        adapter = self._room.residency.get(request.adapter)
        tokens = list(request.prompt)
        self._scheduler.add(Sequence(request.name, tokens, len(tokens), sampling, adapter, request.tenant))

    def abort(self, name: str) -> None:
        self._scheduler.abort(name)
        self._room.residency.collect()

    def load(self, adapter: str, revision: int, pinned: bool) -> None:
        residency, held = self._room.residency, self._room.residency.get(adapter)
        pages = 1 + (hash_of(adapter) + 5 * revision) % 12
        pinned = pinned and residency.pinned_pages + pages + CONTEXT // 16 + 12 <= self._room.pool.total
        if held is not None and held.revision == f"r{revision}":
            residency.pin(held, pinned)
        else:
            residency.register(adapter, f"r{revision}", 8, pages, 100 * pages, (), pinned)

    def unload(self, adapter: str) -> None:
        self._room.residency.unregister(adapter)

    def usable(self) -> list[str]:
        return [adapter.id for adapter in self._room.residency.all() if not adapter.draining]

    def step(self) -> list[str]:
        batch = self._scheduler.schedule()
        if batch is None:
            return []
        self._device.run(batch)
        tokens = [token for row in batch.sampling for token in self._samples(row)]
        ended = [s.request_id for s, _ in self._scheduler.commit(batch, tokens) if s.finish_reason]
        self._room.residency.collect()
        return ended

    def _samples(self, row: Row) -> list[int]:
        """One token in five is new, the others follow what they followed before."""
        said = [*row.sequence.tokens[: row.end], *row.drafts]
        tokens = []
        for end in range(row.end, row.end + row.sampled):
            before = [at for at in range(1, end) if said[at - 1] == said[end - 1]]
            repeats = before and self._rng.random() < 0.8
            tokens.append(said[before[-1]] if repeats else self._rng.randrange(20))
        return tokens

    def settle(self) -> None:
        self._room.residency.collect()

    def violations(self) -> list[str]:
        return violations(self._room, self._scheduler) + self._device.problems

    def leaks(self) -> list[str]:
        return leaks(self._room, self._scheduler)

    def hardships(self) -> dict[str, int]:
        return _hardships(self._room, self._scheduler)


READING_SECONDS = 0.003
"""Granted to the reader at every load: this model's steps are so short that files would never come in time."""


class EngineTarget:
    """A tiny model and real adapters, in this process. Some of the files are no adapters: their loads must fail alone.
    Host memory has room for a few: the others go to disk and come back."""

    def __init__(self, folder: Path, adapters: int, pages: int = 48, host_bytes: int = 150_000) -> None:
        torch.set_num_threads(1)
        config = tiny_config("llama")
        model = save_tiny_model(folder / "model", config, seed=4)
        for adapter in range(adapters):
            for revision in range(3):
                path = folder / f"adapter-{adapter}-{revision}"
                rank = RANKS[(adapter + revision) % len(RANKS)]
                save_adapter(path, random_adapter(config, rank, ("q_proj", "down_proj"), seed=3 * adapter + revision))
                if (adapter + revision) % 10 == 7:
                    (path / "adapter_model.safetensors").write_bytes(b"no tensors")
        page_bytes = config.num_layers * 16 * 2 * config.kv_dim * 4
        self._folder = folder
        self._engine = start(
            EngineConfig(
                str(model), "tiny", dtype="float32", max_model_len=CONTEXT, max_num_seqs=16, max_batched_tokens=96,
                memory_bytes=pages * page_bytes, disk=str(folder), threads=1, speculate=DRAFTS,
            ),
            lambda message, fraction: None,
        )  # fmt: skip
        self._engine._adapters.memory.tier.budget = host_bytes  # less than a config may say

    def ask(self, request: Ask) -> None:
        seed = hash_of(request.name)
        says = {seed % 256: 1000.0, 7: 1000.0} if seed % 3 == 0 else {}  # two things over and over
        sampling = Sampling(max_tokens=request.max_tokens, temperature=1.0, seed=seed, logit_bias=says)
        prompt = list(request.prompt)
        self._engine.handle(AddRequest(request.name, prompt, sampling, request.adapter or None, tenant=request.tenant))

    def abort(self, name: str) -> None:
        self._engine.handle(AbortRequest(name))

    def load(self, adapter: str, revision: int, pinned: bool) -> None:
        folder = self._folder / f"{adapter}-{revision}"
        self._engine.handle(LoadAdapter(adapter, f"r{revision}", str(folder), pinned))
        time.sleep(READING_SECONDS)

    def unload(self, adapter: str) -> None:
        self._engine.handle(UnloadAdapter(adapter))

    def usable(self) -> list[str]:
        """Also those whose load has failed or is under way: such a request ends with an error at once."""
        return [state.id for state in self._engine.state().adapters]

    def step(self) -> list[str]:
        return [delta.request_id for delta in self._engine.step() if delta.finish_reason]

    def settle(self) -> None:
        deadline = time.monotonic() + 60
        while any(state.state == "Loading" for state in self._engine.state().adapters):
            if time.monotonic() > deadline:
                raise TimeoutError("a load does not end")
            self._engine.step()

    def violations(self) -> list[str]:
        return violations(self._engine._room, self._engine._scheduler)

    def leaks(self) -> list[str]:
        return leaks(self._engine._room, self._engine._scheduler)

    def hardships(self) -> dict[str, int]:
        reads = {"adapters read from disk": self._engine._adapters.memory.reads}
        return _hardships(self._engine._room, self._engine._scheduler) | reads

    def close(self) -> None:
        self._engine.close()


def _hardships(room: Room, scheduler: Scheduler) -> dict[str, int]:
    return {
        "preemptions": scheduler.preemptions,
        "adapters evicted": room.residency.evicted.total(),
        "prefix pages evicted": room.prefixes.evicted.total(),
        "prompt tokens from the prefix cache": room.prefixes.hits,
        "guesses that were right": scheduler.speculation.accepted,
        "guesses that were wrong": scheduler.speculation.drafted - scheduler.speculation.accepted,
    }


def hash_of(name: str) -> int:
    """The same in every run."""
    return zlib.crc32(name.encode())
