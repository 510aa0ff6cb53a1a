"""Of `bench.cuda`: the sizes that it measures at, on a card and in tiny form, and the files that it makes for them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from bench.adapters_scale_load import Shape
from bench.engine_adapters import make_adapters
from bench.kernels_cases import LLAMA_3_8B, SMALL, base_bytes
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.safetensors_checkpoint import INDEX_FILE
from lorafleet_runtime.model.tiny import hf_config, tiny_config
from lorafleet_runtime.model.weights import expected_shapes

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
IN_MEMORY = Path("/dev/shm")
SPARE = 1.3


@dataclass(frozen=True, slots=True)
class Scale:
    """`context`: tokens of each row of a decode step; `prompts`: lengths to prefill; `timed`: steps of a case;
    `few` and `distinct`: adapters of rank 16 in a batch, `mixed`: ranks of those of another; `registered`, `loop`,
    `turn_seconds`: of the section with many adapters; `probes`: requests on cold ones; `memory`: of the engines that
    are not to have the `whole_card`."""

    config: DecoderConfig
    dtype: str
    batches: tuple[int, ...]
    context: int
    prompts: tuple[int, ...]
    timed: int
    few: int
    distinct: int
    mixed: tuple[int, ...]
    registered: tuple[int, ...]
    loop: Shape
    turn_seconds: float
    probes: int
    max_model_len: int
    max_batched_tokens: int
    memory: int
    whole_card: bool = False

    @property
    def rows(self) -> int:
        """The largest batch."""
        return max(self.batches)


LARGE = Scale(
    LLAMA_3_8B, "bfloat16", batches=(1, 8, 32, 64, 128), context=1024, prompts=(512, 2048, 8000), timed=60, few=8,
    distinct=64, mixed=(8, 16, 32, 64) * 2, registered=(5, 100, 1000, 2000), loop=Shape(64, (32, 160)),
    turn_seconds=4.0, probes=16, max_model_len=8192, max_batched_tokens=8192, memory=24 * 2**30,
    whole_card=True,
)  # fmt: skip
TINY = Scale(
    tiny_config("llama", num_layers=1, hidden_size=32, intermediate_size=32, num_heads=2, num_kv_heads=1), "float32",
    batches=(1, 2), context=4, prompts=(3,), timed=3, few=2, distinct=2, mixed=(3, 20), registered=(2, 4),
    loop=Shape(2, (2, 3), 3, 264), turn_seconds=0.1, probes=1, max_model_len=32, max_batched_tokens=16,
    memory=33 * 2**11,
)  # fmt: skip
"""For Triton's interpreter: all sections within a minute or two. Two adapters and two prompts fill the pool."""


def tiny_on(device: torch.device) -> Scale:
    """`TINY`; on a card with a model of its kernels' usual shapes."""
    if device.type != "cuda":
        return TINY
    return replace(
        TINY, config=replace(SMALL, max_position_embeddings=128), dtype="bfloat16", batches=(1, 8, 64), context=20,
        prompts=(30,), timed=12, few=8, distinct=64, registered=(5, 40), loop=Shape(16, (4, 16), 10, 264), probes=4,
        max_model_len=128, max_batched_tokens=128, memory=24 * 2**20,
    )  # fmt: skip


def of_model(config: DecoderConfig) -> Scale:
    """`LARGE` for a model that is there, as far as its context goes."""
    length = min(LARGE.max_model_len, config.max_position_embeddings)
    prompts = tuple(tokens for tokens in LARGE.prompts if tokens < length)
    return replace(LARGE, config=config, max_model_len=length, context=min(LARGE.context, length // 2), prompts=prompts)


def write_model(folder: Path, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Path:
    """A checkpoint of random weights, a file a layer. They are drawn on the device: on a CPU eight billion of them take
    minutes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(hf_config(config)))
    torch.manual_seed(0)
    files: dict[str, dict[str, Tensor]] = {}
    index: dict[str, str] = {}
    for name, shape in expected_shapes(config).items():
        part = name.split(".")[1] if name.startswith("layers.") else "rest"
        key = name if name.startswith("lm_head") else f"model.{name}"
        index[key] = f"model-{part}.safetensors"
        files.setdefault(index[key], {})[key] = _noise(name, shape, device).to(dtype).cpu()
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": index}))
    return folder


def _noise(name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    noise = torch.randn(shape, device=device)
    return 1 + 0.1 * noise if name.endswith("norm.weight") else noise * shape[-1] ** -0.5


def folder_for(config: DecoderConfig) -> Path | None:
    """Where to put a model: in memory where it fits there, else None, where temporary files go."""
    needed = SPARE * base_bytes(config)
    fits = IN_MEMORY.is_dir() and shutil.disk_usage(IN_MEMORY).free > needed
    if not fits and shutil.disk_usage(tempfile.gettempdir()).free < needed:
        raise OSError(
            f"the random model has {base_bytes(config) >> 30} GiB, and neither {IN_MEMORY} nor {tempfile.gettempdir()} "
            "has room for it: set TMPDIR, or give a model with --model"
        )
    return IN_MEMORY if fits else None


@dataclass(frozen=True, slots=True)
class Files:
    """`alike`: of rank 16 on all linear layers; `mixed`: of `Scale.mixed` there; `small`: rank 8 on attention's."""

    alike: Sequence[Path]
    mixed: Sequence[Path]
    small: Sequence[Path]


def write_adapters(folder: Path, scale: Scale) -> Files:
    """A few files; every adapter of an engine is a revision of its own, with pages of its own."""
    config = scale.config

    def made(name: str, ranks: Sequence[int], targets: Sequence[str] = LORA_TARGETS) -> list[Path]:
        return list(make_adapters(folder, config, ranks, name, targets=targets).values())

    return Files(made("alike", (16,) * 4), made("mixed", scale.mixed), made("small", (8,) * 4, ATTENTION))
