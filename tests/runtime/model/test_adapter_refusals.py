"""Adapters that cannot be served are refused, naming the field or the tensor, and what to do."""

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
from safetensors.torch import load_file, save_file

from lorafleet_runtime.model.adapter import read_adapter
from lorafleet_runtime.model.errors import AdapterError, InvalidAdapter, RankTooHigh
from lorafleet_runtime.model.tiny import random_adapter, save_adapter, tiny_config

CONFIG = tiny_config()
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({k: v for k, v in (json.loads(path.read_text()) | changes).items() if v is not ...}))


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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3' is not supported; only LORA"),
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported; only LORA"),
        ({"peft_type": ...}, "peft_type None is not supported"),
        ({"use_dora": True}, r"q_proj\.lora_A\.weight has no lora_magnitude_vector beside it, and use_dora is set"),
        ({"lora_bias": True}, r"q_proj\.lora_A\.weight has no lora_B\.bias beside it, and lora_bias is set"),
        ({"use_dora": True, "lora_bias": True}, "use_dora and lora_bias are both set"),
        ({"bias": "some"}, "bias must be one of none, all, lora_only, got 'some'"),
        ({"modules_to_save": ["lm_head"]}, "no weight for lm_head, which modules_to_save names; copy"),
        ({"modules_to_save": ["norm"]}, r"no weight for model\.layers\.0\.input_layernorm, which modules_to_save"),
        ({"modules_to_save": ["mlp.up_proj"]}, "replacing a projection is not supported"),
        ({"modules_to_save": "lm_head"}, "modules_to_save must be a list of module names, got 'lm_head'"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "tokens of embed_tokens are trained, and .* has no rows"),
        ({"trainable_token_indices": [1, 2, 1]}, "names a token of embed_tokens twice"),
        ({"trainable_token_indices": {"lm_head": ["a"]}}, r"must be token ids, got \['a'\] for lm_head"),
        ({"trainable_token_indices": {"mlp.up_proj": [1]}}, "tokens of up_proj; only embed_tokens and lm_head"),
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
        ({"Q0__lora_B__weight": torch.ones(128, 8)}, r"lora_B\.weight has shape \[128, 8\].*\[64, r\].*tiny-llama"),
        ({"Q0__lora_A__weight": torch.ones(8)}, r"has shape \[8\]"),
        ({"Q0__lora_A__weight": torch.ones(4, 64)}, r"has shape \[4, 64\] and .* has \[64, 8\].*ranks must be equal"),
        ({"Q0__lora_A__weight": torch.ones(8, 64).index_fill(1, torch.tensor(3), math.nan)}, "lora_A.weight has NaN"),
        ({"Q0__lora_B__weight": torch.full((64, 8), math.inf)}, "lora_B.weight has NaN or infinite"),
        ({"Q0__lora_A__weight": torch.ones(8, 64, dtype=torch.int8)}, r"dtype torch\.int8"),
        ({"Q0__lora_magnitude_vector": torch.ones(64)}, "lora_magnitude_vector says nothing without .*use_dora"),
        ({"Q0__lora_B__bias": torch.ones(64)}, r"lora_B\.bias says nothing without .*lora_bias"),
        ({"Q0__base_layer__bias": torch.ones(64)}, r"base_layer\.bias: the base model's q_proj has no bias"),
        ({"Q0__weight": torch.ones(64, 64)}, "replacing a whole projection is not supported"),
        ({"Q0__lora_C__weight": torch.ones(8, 64)}, "is part of no module that can be replaced"),
        ({"Q0__lora_D": torch.ones(8, 64)}, "is no tensor that LoRA adapters have"),
        ({"base_model__model__lm_head__lora_A__weight": torch.ones(8, 64)}, "has no lora_B beside it"),
        ({"base_model__model__lm_head__bias": torch.ones(264)}, "bias is no part of lm_head"),
        ({"base_model__model__model__embed_tokens__lora_embedding_A": torch.ones(8, 264)},
         "lora_embedding_A has no lora_embedding_B beside it"),
        ({"base_model__model__model__embed_tokens__lora_embedding_A": torch.ones(8, 264),
          "base_model__model__model__embed_tokens__lora_embedding_B": torch.ones(60, 8)},
         r"lora_embedding_B has shape \[8, 60\].*embed_tokens takes \[r, 64\]"),
        ({"base_model__model__lm_head__weight": torch.ones(264, 64)}, "can only be read beside the base model"),
        ({"base_model__model__lm_head__weight": torch.ones(270, 64)},
         r"has shape \[270, 64\], and the base model's vocabulary has 264 entries.*trained after tokens were added"),
        ({"base_model__model__model__norm__weight": torch.ones(63)}, r"has shape \[63\].*norm takes \[64\]"),
        ({"base_model__model__model__layers__0__self_attn__q_norm__weight": torch.ones(16)}, "has no q_norm"),
        ({"base_model__model__score__weight": torch.ones(2, 64)}, "is part of no module that can be replaced"),
        ({"base_model__model__model__embed_tokens__token_adapter__trainable_tokens_delta": torch.ones(1, 64)},
         r"tokens of embed_tokens are trained, and adapter_config\.json does not name them"),
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
    with pytest.raises(RankTooHigh, match=r"layers\.1\.self_attn\.v_proj\.lora_A.* rank 33.*maximum of 32") as e:
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
