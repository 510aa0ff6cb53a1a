"""Adapters read as PEFT reads them, and refused by name where they cannot be served."""

from __future__ import annotations

import dataclasses
import json
import math
import re
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
from lorafleet_runtime.model.errors import AdapterError, InvalidAdapter, RankTooHigh
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, save_tiny_model, tiny_config
from lorafleet_runtime.model.weights import BLOCKS

CONFIG = tiny_config()
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({change(key): tensor for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def edit_tensors(folder: Path, **changes: Any) -> None:
    """Replace, add or (with ...) drop tensors; `Q0` stands for layer 0's q_proj in names."""
    tensors = load_file(folder / "adapter_model.safetensors")
    for name, value in changes.items():
        key = name.replace("Q0", Q0).replace("__", ".")
        if value is ...:
            del tensors[key]
        else:
            tensors[key] = value
    save_file(tensors, folder / "adapter_model.safetensors")


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
def test_updates_are_those_that_peft_merges(architecture: Any, case: dict[str, Any], tmp_path: Path) -> None:
    import peft
    import transformers

    config = tiny_config(architecture)
    save_tiny_model(tmp_path / "model", config)
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    torch.manual_seed(7)
    model = peft.get_peft_model(base, peft.LoraConfig(**case, task_type="CAUSAL_LM", init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
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


@settings(deadline=None, max_examples=200)
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported yet"),
        ({"peft_type": ...}, "peft_type None is not supported yet"),
        ({"use_dora": True}, "DoRA .*not supported yet; train with use_dora=false"),
        ({"lora_bias": True}, r"\(lora_bias\) is not supported yet"),
        ({"bias": "lora_only"}, "bias='lora_only'.* not supported yet"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "trainable_token_indices"),
        ({"target_parameters": ["mlp.experts"]}, "target_parameters"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"arrow_config": {"top_k": 3}}, "arrow_config"),
        ({"kasa_config": {"beta": 1}}, "kasa_config"),
        ({"lora_alpha": "16"}, "lora_alpha must be a finite number, got '16'"),
        ({"lora_alpha": True}, "lora_alpha must be a finite number"),
        ({"alpha_pattern": {"q_proj": None}}, "q_proj must be a finite number, got None"),
        ({"alpha_pattern": {"q_(proj": 3}}, r"alpha_pattern key 'q_\(proj' is not a regular expression"),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
        ({"alpha_pattern": {"(?:[a-z._0-9]{1,9}){9,99}[jx][xy]": 3}}, "takes too long; write it plainly"),
    ],
    ids=str,
)
def test_configs_that_would_be_served_wrongly_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG))
    edit_config(tmp_path, **changes)

    with pytest.raises(InvalidAdapter, match=says) as caught:
        read_adapter(tmp_path, CONFIG, 64)
    assert caught.value.reason == "InvalidAdapter"


def test_explicit_defaults_of_refused_fields_are_no_reason_to_refuse(tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG))
    edit_config(
        tmp_path, use_dora=False, lora_bias=False, bias=None, modules_to_save=[], trainable_token_indices=None,
        target_parameters=[], layer_replication=None, rank_pattern=None, alpha_pattern=None, new_field_of_peft=3,
    )  # fmt: skip

    assert read_adapter(tmp_path, CONFIG, 64).rank == 8


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"Q0__lora_B__weight": ...}, r"q_proj\.lora_A\.weight has no lora_B"),
        ({"Q0__lora_A__weight": ...}, r"q_proj\.lora_B\.weight has no lora_A"),
        ({"Q0__lora_A__weight": torch.ones(8, 65)}, r"q_proj\.lora_A\.weight has shape \[8, 65\].*takes \[r, 64\]"),
        ({"Q0__lora_B__weight": torch.ones(128, 8)}, r"lora_B\.weight has shape \[128, 8\].*takes \[64, r\].*tiny-llama"),
        ({"Q0__lora_A__weight": torch.ones(8)}, r"has shape \[8\]"),
        ({"Q0__lora_A__weight": torch.ones(4, 64)}, r"has shape \[4, 64\] and .* has \[64, 8\].*ranks must be equal"),
        ({"Q0__lora_A__weight": torch.ones(8, 64).index_fill(1, torch.tensor(3), math.nan)}, "lora_A.weight has NaN"),
        ({"Q0__lora_B__weight": torch.full((64, 8), math.inf)}, "lora_B.weight has NaN or infinite"),
        ({"Q0__lora_A__weight": torch.ones(8, 64, dtype=torch.int8)}, r"dtype torch\.int8"),
        ({"Q0__lora_magnitude_vector": torch.ones(64)}, "DoRA is not supported yet"),
        ({"Q0__lora_B__bias": torch.ones(64)}, "lora_bias=false"),
        ({"base_model__model__lm_head__lora_A__weight": torch.ones(8, 64)}, "embeddings or lm_head"),
        ({"base_model__model__model__embed_tokens__lora_embedding_A": torch.ones(8, 264)}, "embeddings or lm_head"),
        ({"base_model__model__lm_head__weight": torch.ones(264, 64)}, "modules_to_save"),
        ({"base_model__model__model__embed_tokens__token_adapter__trainable_tokens_delta": torch.ones(1, 64)},
         "trainable_token_indices"),
        ({"base_model__model__model__layers__0__mlp__q_proj__lora_A__weight": torch.ones(8, 64)},
         "is not a projection of the base model"),
        ({"base_model__model__vision__layers__0__self_attn__q_proj__lora_A__weight": torch.ones(8, 64)},
         "is not a projection of the base model"),
        ({"base_model__model__model__layers__2__self_attn__q_proj__lora_A__weight": torch.ones(8, 64)},
         r"is for layer 2, and the base model has 2 layers \(0 to 1\)"),
        ({"layers__0__self_attn__q_proj__lora_A__weight": torch.ones(8, 64)}, "for the same projection"),
        ({"Q0__lora_A__default__weight": torch.ones(8, 64)}, "for the same projection"),
        ({"base_model__model__model__layers__0__mlp__up_proj__lora_A__second__weight": torch.ones(8, 64)},
         "several adapters"),
    ],
)  # fmt: skip
def test_tensors_that_would_be_served_wrongly_are_refused_by_name(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG))
    edit_tensors(tmp_path, **changes)

    with pytest.raises(InvalidAdapter, match=says):
        read_adapter(tmp_path, CONFIG, 64)


def test_an_adapter_of_a_larger_model_is_refused_with_both_shapes(tmp_path: Path) -> None:
    larger = dataclasses.replace(CONFIG, hidden_size=96)
    save_adapter(tmp_path, random_adapter(larger))

    with pytest.raises(InvalidAdapter, match=rf"{re.escape(Q0)}\.lora_A\.weight has shape \[8, 96\].*takes \[r, 64\]"):
        read_adapter(tmp_path, CONFIG, 64)


def test_a_rank_above_the_maximum_is_its_own_reason(tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG, 8, rank_pattern={"layers.1.self_attn.v_proj": 33}))

    assert read_adapter(tmp_path, CONFIG, 33).rank == 33
    with pytest.raises(
        RankTooHigh, match=r"layers\.1\.self_attn\.v_proj\.lora_A\.weight has rank 33.*maximum of 32"
    ) as e:
        read_adapter(tmp_path, CONFIG, 32)
    assert e.value.reason == "RankTooHigh"


@pytest.mark.parametrize("keep", [0, 5, 200, 2000, -1])
def test_cut_files_are_refused(keep: int, tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG))
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])

    with pytest.raises(InvalidAdapter, match="damaged or cut short"):
        read_adapter(tmp_path, CONFIG, 64)


def test_missing_files_and_pickles_are_refused_by_name(tmp_path: Path) -> None:
    save_adapter(tmp_path, random_adapter(CONFIG))
    file = tmp_path / "adapter_model.safetensors"
    save_file({}, file)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: None, "holds no LoRA tensor"),
        (lambda: file.rename(tmp_path / "adapter_model.bin"), r"adapter_model\.bin is a pickle"),
        (lambda: (tmp_path / "adapter_model.bin").unlink(), r"adapter_model\.safetensors is missing"),
        (lambda: (tmp_path / "adapter_config.json").write_text("{"), r"adapter_config\.json cannot be read"),
        (lambda: (tmp_path / "adapter_config.json").write_text("[]"), "must hold a JSON object"),
        (lambda: (tmp_path / "adapter_config.json").unlink(), r"adapter_config\.json is missing"),
    ]

    for change, says in cases:
        change()
        with pytest.raises(AdapterError, match=says):
            read_adapter(tmp_path, CONFIG, 64)
