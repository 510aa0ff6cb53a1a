"""Adapters read as PEFT reads them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorafleet_runtime.model.adapter import AdapterWeights, read_adapter
from lorafleet_runtime.model.adapter_config import AdapterConfig
from lorafleet_runtime.model.config import LORA_TARGETS
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.model.weights import BLOCKS

CONFIG = tiny_config()


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({change(key): tensor for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def deltas(adapter: AdapterWeights) -> dict[tuple[int, str], Tensor]:
    return {place: pair.b @ pair.a for place, pair in adapter.modules.items()}


PEFT_CASES: dict[str, dict[str, Any]] = {
    "one scale": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "rsLoRA": {"r": 9, "lora_alpha": 3, "use_rslora": True, "target_modules": list(LORA_TARGETS)},
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(LORA_TARGETS),
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 7, "^model.layers.0.self_attn.k_proj": 3},
        "alpha_pattern": {"q_proj": 1, r".*layers\.1\..*": 5, "layers.1.mlp.up_proj": 99, ".*proj": 50},
    },
    "patterns and rsLoRA": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "target_modules": r".*layers\.1\..*(q_proj|down_proj)",
        "rank_pattern": {"self_attn.q_proj": 5},
        "alpha_pattern": {"model.layers.1.self_attn.q_proj": 2.5},
    },
    "some layers": {"r": 2, "lora_alpha": 2, "target_modules": ["o_proj"], "layers_to_transform": [1]},
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("case", PEFT_CASES.values(), ids=PEFT_CASES.keys())
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_updates_are_those_that_peft_loads(architecture: Any, case: dict[str, Any], tmp_path: Path) -> None:
    import peft
    import transformers

    config = tiny_config(architecture)
    save_tiny_model(tmp_path / "model", config)
    load_base = functools.partial(
        transformers.AutoModelForCausalLM.from_pretrained, tmp_path / "model", dtype=torch.float32
    )
    torch.manual_seed(7)
    settings = peft.LoraConfig(**case, task_type="CAUSAL_LM", init_lora_weights=False)
    peft.get_peft_model(load_base(), settings).save_pretrained(tmp_path / "adapter")
    # Loaded again: PEFT sorts patterns when it saves them, and of two that match, the first counts.
    model = peft.PeftModel.from_pretrained(load_base(), tmp_path / "adapter")
    theirs = {
        (layer, target): module.get_delta_weight("default")
        for layer, block in enumerate(model.base_model.model.model.layers)
        for target in LORA_TARGETS
        if hasattr(module := block.get_submodule(f"{BLOCKS[target]}.{target}"), "lora_A")
    }
    got = read_adapter(tmp_path / "adapter", config, 64)

    assert sorted(got.modules) == sorted(theirs)
    assert got.targets == tuple(t for t in LORA_TARGETS if any(t == target for _, target in theirs))
    assert got.rank == max(pair.a.shape[0] for pair in got.modules.values())
    for place, delta in deltas(got).items():
        torch.testing.assert_close(delta, theirs[place], rtol=1e-5, atol=1e-6)


PATTERN_PARTS = ["q_proj", "proj", "layers.1", "self_attn.q_proj", ".*", "^model", r"layers\.[01]\..*q_proj", "model"]


@settings(max_examples=200)
@given(
    st.dictionaries(
        st.lists(st.sampled_from(PATTERN_PARTS), min_size=1, max_size=3).map(".".join), st.integers(1, 90), max_size=4
    ),
    st.sampled_from([f"model.layers.{i}.{BLOCKS[t]}.{t}" for i in (0, 1, 11) for t in ("q_proj", "up_proj")]),
    st.booleans(),
)
def test_patterns_are_resolved_as_peft_resolves_them(patterns: dict[str, float], module: str, rslora: bool) -> None:
    from peft.utils.other import get_pattern_key

    alpha = patterns.get(get_pattern_key(list(patterns), module), 8)
    got = AdapterConfig(8, rslora, patterns, "", ()).scale(module, 16)

    assert got == pytest.approx(alpha / (4 if rslora else 16))


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.replace(".weight", ".default.weight"),
        lambda key: key.removeprefix("base_model.model."),
        lambda key: key.removeprefix("base_model.model.model."),
        lambda key: key.replace("model.model.layers", "model.model.language_model.layers"),
        lambda key: key.replace("model.model.layers", "model.language_model.model.layers"),
        lambda key: key.replace("model.model.layers", "model._orig_mod.model.layers"),
    ],
)
def test_names_that_wrappers_changed_are_understood(change: Callable[[str], str], tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG, 4, LORA_TARGETS, seed=3)
    plain = deltas(read_adapter(save_adapter(tmp_path / "plain", adapter), CONFIG, 8))
    save_adapter(tmp_path / "renamed", adapter)
    rename(tmp_path / "renamed", change)
    renamed = deltas(read_adapter(tmp_path / "renamed", CONFIG, 8))

    assert all(torch.equal(renamed[place], delta) for place, delta in plain.items())
    assert len(renamed) == len(plain) == 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_of_any_float_become_float32_of_their_own(dtype: torch.dtype, tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG, 8, ("q_proj", "down_proj"), seed=1, alpha=4.0, dtype=dtype)
    folder = save_adapter(tmp_path, adapter)
    got = read_adapter(folder, CONFIG, 8)
    file = folder / "adapter_model.safetensors"
    with file.open("r+b") as mapped:
        mapped.write(bytes(file.stat().st_size))

    for (layer, target), pair in got.modules.items():
        assert pair.a.dtype == pair.b.dtype == torch.float32
        torch.testing.assert_close(pair.b @ pair.a, adapter.delta(layer, target))


def test_tensors_and_not_the_config_say_the_rank(tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG, 6, alpha=3.0)
    save_adapter(tmp_path, adapter)
    edit_config(tmp_path, r=2, rank_pattern={"q_proj": 1})
    got = read_adapter(tmp_path, CONFIG, 6)

    assert got.rank == 6
    torch.testing.assert_close(deltas(got)[0, "q_proj"], adapter.delta(0, "q_proj"))


def test_fields_that_old_configs_lack_have_pefts_defaults(tmp_path: Path) -> None:
    adapter = random_adapter(CONFIG, 4, alpha=8.0)
    save_adapter(tmp_path, adapter)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')

    torch.testing.assert_close(deltas(read_adapter(tmp_path, CONFIG, 4))[1, "v_proj"], adapter.delta(1, "v_proj"))


@pytest.mark.parametrize(
    ("init", "warns"),
    [("pissa", True), ("pissa_niter_4", True), ("olora", True), ("corda", True), ("loftq", True), ("lora_ga", True),
     ("gaussian", False), ("eva", False), ("orthogonal", False), (True, False), (False, False), (None, False)],
)  # fmt: skip
def test_initialisations_that_change_the_base_model_are_warned_of(init: Any, warns: bool, tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG))
    edit_config(tmp_path, init_lora_weights=init)
    warnings = read_adapter(tmp_path, CONFIG, 64).warnings

    assert [("init_lora_weights" in w, repr(init) in w) for w in warnings] == ([(True, True)] if warns else [])
