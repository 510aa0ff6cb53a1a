"""Files of adapters that are more than pairs of projections, as PEFT and its older versions write them."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.oracle import Oracle
from bench.peft_adapters import BIAS_KINDS, KINDS, TIED_KINDS, save_with_peft
from lorafleet_runtime.model.adapter import AdapterWeights, read_adapter
from lorafleet_runtime.model.checkpoint import load_weights
from lorafleet_runtime.model.config import DecoderConfig
from lorafleet_runtime.model.decoder import Decoder
from lorafleet_runtime.model.decoder_weights import DecoderWeights
from lorafleet_runtime.model.errors import InvalidAdapter
from lorafleet_runtime.model.tiny import save_tiny_model, tiny_config

CONFIG = tiny_config("qwen2")
TIED = tiny_config("llama", tie_word_embeddings=True)
EMBED = "base_model.model.model.embed_tokens"
HEAD = "base_model.model.lm_head"

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The folders of CONFIG (False) and of TIED (True)."""
    folder = tmp_path_factory.mktemp("models")
    return {tied: save_tiny_model(folder / str(tied), TIED if tied else CONFIG, seed=9) for tied in (False, True)}


def read(folder: Path, model: Path, config: DecoderConfig) -> AdapterWeights:
    base = Decoder(config, load_weights(model, config, torch.float32), 64)
    return read_adapter(folder, config, 64, DecoderWeights(base))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: Any) -> Path:
    """Change an adapter's tensors, and fields of its config."""
    file = folder / "adapter_model.safetensors"
    save_file({k: t.contiguous() for k, t in change(load_file(file)).items()}, file)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def tensors_of(value: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors in an adapter's weights, by the way to them."""
    if isinstance(value, Tensor):
        return {name: value}
    items: list[tuple[Any, Any]] = []
    if isinstance(value, Mapping):
        items = list(value.items())
    elif dataclasses.is_dataclass(value):
        items = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    return {k: t for key, inner in items for k, t in tensors_of(inner, f"{name}.{key}").items()}


def named(key: str) -> str:
    """With the adapter's name where PEFT's own dictionaries have it."""
    for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"):
        key = key.replace(f".{part}", f".{part}.default")
    return key.replace("trainable_tokens_delta", "trainable_tokens_delta.default")


RENAMED: dict[str, Callable[[str], str]] = {
    "names kept": named,
    "magnitudes of older versions": lambda k: f"{k}.weight" if k.endswith("magnitude_vector") else k,
    "both": lambda k: f"{named(k)}.weight" if k.endswith("magnitude_vector") else named(k),
    "no prefix": lambda k: k.removeprefix("base_model.model."),
    "compiled": lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
}


@pytest.mark.parametrize("change", RENAMED.values(), ids=RENAMED)
@pytest.mark.parametrize("kind", ["embedding-dora", "tokens-dora", "bias-all"])
def test_older_names_mean_the_same(
    kind: str, change: Callable[[str], str], models: dict[bool, Path], tmp_path: Path
) -> None:
    folder = save_with_peft(models[False], tmp_path / "a", {**KINDS, **BIAS_KINDS}[kind], seed=1)
    plain = read(folder, models[False], CONFIG)
    renamed = read(rewrite(folder, lambda t: {change(k): v for k, v in t.items()}), models[False], CONFIG)

    assert renamed.targets == plain.targets
    got = tensors_of(renamed)
    assert {name: bool(torch.equal(got[name], t)) for name, t in tensors_of(plain).items()} == dict.fromkeys(got, True)


def test_whole_modules_may_keep_the_wrappers_name(models: dict[bool, Path], tmp_path: Path) -> None:
    folder = save_with_peft(models[False], tmp_path / "a", KINDS["saved-lm-head"], seed=1)
    plain = read(folder, models[False], CONFIG)
    wrapped = "lm_head.modules_to_save.default."
    rewrite(folder, lambda t: {named(k).replace("lm_head.", wrapped): v for k, v in t.items()})
    kept = read(folder, models[False], CONFIG)

    assert plain.lm_head is not None and plain.lm_head.full is not None
    assert kept.lm_head is not None and kept.lm_head.full is not None
    assert torch.equal(kept.lm_head.full, plain.lm_head.full)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["saved-all", "embedding-dora", "bias-all"])
def test_files_of_half_precision_are_read_in_full(
    kind: str, dtype: torch.dtype, models: dict[bool, Path], tmp_path: Path
) -> None:
    folder = save_with_peft(models[False], tmp_path / "a", {**KINDS, **BIAS_KINDS}[kind], seed=1)
    plain = tensors_of(read(folder, models[False], CONFIG))
    half = rewrite(folder, lambda t: {k: v.to(dtype) if "base_layer.weight" not in k else v for k, v in t.items()})

    for name, tensor in tensors_of(read(half, models[False], CONFIG)).items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, plain[name], rtol=0.05, atol=0.02)


def test_a_copy_of_the_base_matrix_costs_nothing(models: dict[bool, Path], tmp_path: Path) -> None:
    folder = save_with_peft(models[False], tmp_path / "a", KINDS["lm-head"], seed=1)
    assert f"{HEAD}.base_layer.weight" in load_file(folder / "adapter_model.safetensors")

    got = read(folder, models[False], CONFIG)

    assert got.lm_head is not None and got.lm_head.full is None
    assert got.warnings == ()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["embedding", "lm-head", "lm-head-dora"])
def test_a_copy_of_another_base_matrix_is_used_where_peft_uses_it(
    kind: str, tied: bool, models: dict[bool, Path], tmp_path: Path
) -> None:
    folder = save_with_peft(models[tied], tmp_path / "a", KINDS[kind], seed=1)
    rewrite(folder, lambda t: {k: v * 1.25 if "base_layer.weight" in k else v for k, v in t.items()})

    got = read(folder, models[tied], TIED if tied else CONFIG)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Oracle(models[tied]).adapted(folder).base_model.model
    for update, module in ((got.embedding, model.model.embed_tokens), (got.lm_head, model.lm_head)):
        theirs = module.weight if hasattr(module, "weight") else module.base_layer.weight
        changed = tied or module is (model.model.embed_tokens if kind == "embedding" else model.lm_head)
        assert (update is not None and update.full is not None) == changed
        if changed and kind != "lm-head-dora":
            assert update is not None and update.full is not None
            assert torch.equal(update.full, theirs)
    assert any("differs from the base model's" in warning for warning in got.warnings)


@pytest.mark.parametrize("kind", ["tied-embedding", "tied-saved"])
def test_what_a_tied_file_does_not_say_of_lm_head_it_says_of_the_embedding(
    kind: str, models: dict[bool, Path], tmp_path: Path
) -> None:
    folder = save_with_peft(models[True], tmp_path / "a", TIED_KINDS[kind], seed=1)
    whole = read(folder, models[True], TIED)
    rewrite(folder, lambda t: {k: v for k, v in t.items() if HEAD not in k})
    cut = read(folder, models[True], TIED)

    got = tensors_of(cut.lm_head)
    assert got
    assert {name: bool(torch.equal(got[name], t)) for name, t in tensors_of(whole.lm_head).items()} == dict.fromkeys(
        got, True
    )


def delta(rows: int) -> dict[str, Tensor]:
    return {f"{EMBED}.token_adapter.trainable_tokens_delta": torch.ones(rows, 64)}


@pytest.mark.parametrize(
    ("kind", "tied", "more", "config", "says"),
    [
        ("embedding", False, delta(1), {"trainable_token_indices": [3]}, "change one module by LoRA and by trainable_"),
        ("saved-embedding", False, delta(1), {"trainable_token_indices": [3]}, "modules_to_save and by trainable"),
        ("lm-head", True, delta(1), {"trainable_token_indices": [3]}, "share, one by LoRA, one by trainable_token"),
        ("plain", False, delta(2), {"trainable_token_indices": [3]}, r"has shape \[2, 64\].*takes \[1, 64\]"),
        ("plain", False, delta(1), {"trainable_token_indices": [264]}, "names token 264 of embed_tokens.*264 entries"),
        ("tokens-of-each", False, {}, {"trainable_token_indices": {"lm_head": [7, 5, 200]}}, "does not name them"),
        ("bias-all", True, {}, {}, r"base_layer\.bias: the base model's q_proj has no bias"),
    ],
)
def test_what_peft_gives_no_meaning_is_refused_by_name(
    kind: str,
    tied: bool,
    more: dict[str, Tensor],
    config: dict[str, Any],
    says: str,
    models: dict[bool, Path],
    tmp_path: Path,
) -> None:
    made = models[tied and kind != "bias-all"]
    folder = save_with_peft(made, tmp_path / "a", {**KINDS, **BIAS_KINDS}[kind], seed=1)
    rewrite(folder, lambda t: t | more, **config)

    with pytest.raises(InvalidAdapter, match=says):
        read(folder, models[tied], TIED if tied else CONFIG)
