"""The device that an engine is given, and what a card's pool may have."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.memory import device_for, pool_bytes, step_bytes
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.tiny import tiny_config

CONFIG = EngineConfig("m", "m", dtype="bfloat16", device="cuda", max_num_seqs=8, max_batched_tokens=64)
MIB = 2**20


@pytest.mark.parametrize(("asked", "ranks", "there", "given"), [
    ("auto", 1, True, "cuda"),
    ("auto", 1, False, "cpu"),
    ("auto", 2, True, "cpu"),  # several ranks run on CPUs only
    ("cpu", 1, True, "cpu"),
    ("cuda", 1, True, "cuda"),
])  # fmt: skip
def test_an_engine_runs_on_a_gpu_where_there_is_one_unless_told(
    asked: str, ranks: int, there: bool, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert device_for(replace(CONFIG, device=asked, tensor_parallel=ranks)) == given


def test_a_gpu_that_is_not_there_is_an_error_that_says_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: torch sees no GPU here: look at `nvidia-smi`"):
        device_for(CONFIG)


def test_the_pool_leaves_room_for_a_step_and_a_card_too_small_is_refused_with_the_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, free = tiny_config("llama"), [8192 * MIB]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 16384 * MIB))
    needed = step_bytes(CONFIG, decoder)
    assert 0 < pool_bytes(CONFIG, decoder) < free[0] - needed

    free[0] = needed - MIB
    with pytest.raises(ConfigError, match=rf"16384 MIB, of which {free[0] >> 20} are free.*lower --max-batched-tokens"
                       .replace("MIB", "MiB")):  # fmt: skip
        pool_bytes(CONFIG, decoder)


@pytest.mark.parametrize("field", ["max_num_seqs", "max_batched_tokens", "max_lora_rank"])
def test_larger_steps_are_given_more(field: str) -> None:
    decoder = tiny_config("llama")
    larger = replace(CONFIG, **{field: 4 * getattr(CONFIG, field)})
    assert step_bytes(larger, decoder) > step_bytes(CONFIG, decoder)


def test_several_ranks_on_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="--device 'cuda' needs --tensor-parallel 1"):
        replace(CONFIG, model="", tensor_parallel=2).check()
