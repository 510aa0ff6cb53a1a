"""What one replica is told at start, checked once. Knows no HTTP, no tensors and no environment."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorafleet_runtime.core.fairness.policies import read_spec
from lorafleet_runtime.core.speculation import MOST_DRAFTS
from lorafleet_runtime.errors import ConfigError

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "float32", "bfloat16", "float16")
PARTITIONS = ("replicated", "slora")
OVERLAPS = ("auto", "on", "off")
MOST_TUNING = 3600
"""Seconds that a start may be held up by it."""
_DECIMAL = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS = _DECIMAL | {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([A-Za-z]*)")


def parse_size(text: str, flag: str = "--memory") -> int:
    """Bytes of a Kubernetes quantity (`1Gi`, `1.5G`, `1048576`). Raises ConfigError naming `flag`."""
    match = _SIZE.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"{flag} {text!r} is not a size; write it as 1Gi, 512Mi, 2G or a number of bytes")
    return int(float(match[1]) * _UNITS[match[2]])


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; `check()` has been called on every one that a process is started with.

    `model` is "" while it is not known yet. Zero stands for "decide for me": `max_model_len` takes what the model was
    trained for, `memory_bytes` and `host_memory_bytes` a share of what is left, `threads` the cores that it may use.
    """

    model: str
    served_name: str
    dtype: str = "auto"
    device: str = "auto"
    max_model_len: int = 0
    max_num_seqs: int = 64
    max_batched_tokens: int = 512
    memory_bytes: int = 0
    max_lora_rank: int = 64
    threads: int = 0
    prefix_caching: bool = True
    host_memory_bytes: int = 0
    disk: str = ""  # folder for what host memory has no room for; "": where temporary files go
    fairness: str = ""  # JSON, `spec.fairness` of the base model
    tensor_parallel: int = 1  # ranks; `memory_bytes` and `threads` are each one's
    lora_partition: str = "replicated"
    overlap: str = "auto"  # of a step with the scheduling of the next; auto: where no core that computes pays for it
    speculate: int = 0  # guesses at further tokens that a request may have in a step
    autotune: int = 0  # seconds at a start on a card for which adapters' kernels are not tuned yet
    incarnation: str = ""  # names this replica's column among the counters; "" for one that shares them with nobody

    def check(self) -> EngineConfig:
        """The same config, or ConfigError naming the flag, its value and what would do."""
        rules: list[tuple[bool, str, object, str]] = [
            (self.served_name != "", "--served-name", self.served_name, "must not be empty"),
            (self.model == "" or Path(self.model).exists(), "--model", self.model,
             "does not exist; give a .gguf file, or a folder with config.json and safetensors"),
            (self.device in DEVICES, "--device", self.device, f"must be one of {', '.join(DEVICES)}"),
            (self.device != "cuda" or self.tensor_parallel == 1, "--device", self.device,
             "needs --tensor-parallel 1: several ranks run on CPUs only as yet"),
            (self.dtype in DTYPES, "--dtype", self.dtype, f"must be one of {', '.join(DTYPES)}"),
            (self.max_model_len >= 0, "--max-model-len", self.max_model_len, "must not be negative"),
            (self.max_num_seqs >= 1, "--max-num-seqs", self.max_num_seqs, "must be at least 1"),
            (self.max_batched_tokens >= self.max_num_seqs, "--max-batched-tokens", self.max_batched_tokens,
             f"must be at least --max-num-seqs ({self.max_num_seqs}): a step decodes one token of each"),
            (self.memory_bytes == 0 or self.memory_bytes >= 2**20, "--memory", self.memory_bytes,
             "must be at least 1Mi"),
            (self.host_memory_bytes == 0 or self.host_memory_bytes >= 2**20, "--host-memory", self.host_memory_bytes,
             "must be at least 1Mi"),
            (0 <= self.max_lora_rank <= 1024, "--max-lora-rank", self.max_lora_rank, "must be in 0..1024"),
            (self.threads >= 0, "--threads", self.threads, "must not be negative"),
            (1 <= self.tensor_parallel <= 64, "--tensor-parallel", self.tensor_parallel, "must be in 1..64"),
            (self.lora_partition in PARTITIONS, "--lora-partition", self.lora_partition,
             f"must be one of {', '.join(PARTITIONS)}"),
            (self.overlap in OVERLAPS, "--overlap", self.overlap, f"must be one of {', '.join(OVERLAPS)}"),
            (self.overlap != "on" or self.tensor_parallel == 1, "--overlap", self.overlap,
             "needs --tensor-parallel 1: of several ranks one alone knows the tokens that a step samples"),
            (0 <= self.speculate <= MOST_DRAFTS, "--speculate", self.speculate, f"must be in 0..{MOST_DRAFTS}"),
            (self.autotune == 0 or self.device != "cpu", "--autotune", self.autotune,
             "needs a GPU: leave out --device cpu, or --autotune"),
            (0 <= self.autotune <= MOST_TUNING, "--autotune", self.autotune, f"must be in 0..{MOST_TUNING} seconds"),
        ]  # fmt: skip
        for holds, flag, value, problem in rules:
            if not holds:
                raise ConfigError(f"{flag} {value!r} {problem}")
        try:
            read_spec(self.fairness)
        except ValueError as error:
            raise ConfigError(f"--fairness {error}") from None
        return self

    @property
    def partition(self) -> Literal["replicated", "slora"]:
        """`lora_partition`, checked."""
        return "slora" if self.lora_partition == "slora" else "replicated"

    def to_json(self) -> str:
        """One line, for the engine process's argv; it holds no secret."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> EngineConfig:
        """Inverse of `to_json`. Raises ConfigError for unknown, missing or mistyped fields."""
        try:
            config = cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--config is not an engine config: {error}") from None
        for field in dataclasses.fields(cls):
            value = getattr(config, field.name)
            if type(value).__name__ != field.type:
                raise ConfigError(f"--config: {field.name} must be {field.type}, got {value!r}")
        return config
