"""What a card's pool may have, and a card with too little memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lorafleet_runtime.config import EngineConfig
from lorafleet_runtime.engine.gpu.memory import check_weights_fit, pool_bytes, step_bytes, weight_bytes
from lorafleet_runtime.errors import ConfigError
from lorafleet_runtime.model.tiny import tiny_config

CONFIG = EngineConfig("m", "m", dtype="bfloat16", device="cuda", max_num_seqs=8, max_batched_tokens=64)
MIB = 2**20


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


def test_a_pool_larger_than_the_card_is_refused_with_what_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = tiny_config("llama")
    free = 1024 * MIB + step_bytes(CONFIG, decoder)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 16384 * MIB))
    assert pool_bytes(replace(CONFIG, memory_bytes=1024 * MIB), decoder) == 1024 * MIB
    with pytest.raises(ConfigError, match=r"--memory 1074790400 is 1025 MiB, and the card has 16384 MiB.*to 942Mi, or"):
        pool_bytes(replace(CONFIG, memory_bytes=1025 * MIB), decoder)


def test_weights_that_a_card_does_not_hold_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, free = tiny_config("llama", hidden_size=4096), [0]
    needed = weight_bytes(CONFIG, decoder)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free[0], 16384 * MIB))
    free[0] = needed + MIB
    check_weights_fit(CONFIG, decoder)
    free[0] = needed - MIB
    with pytest.raises(ConfigError, match=rf"m has {needed >> 20} MiB of weights .* {free[0] >> 20} are free"):
        check_weights_fit(CONFIG, decoder)


@pytest.mark.parametrize("field", ["max_num_seqs", "max_batched_tokens", "max_lora_rank"])
def test_larger_steps_are_given_more(field: str) -> None:
    decoder = tiny_config("llama")
    larger = replace(CONFIG, **{field: 4 * getattr(CONFIG, field)})
    assert step_bytes(larger, decoder) > step_bytes(CONFIG, decoder)


def test_several_ranks_on_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="--device 'cuda' needs --tensor-parallel 1"):
        replace(CONFIG, model="", tensor_parallel=2).check()
