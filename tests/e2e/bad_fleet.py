"""What users get wrong, in a fleet's folder: broken objects, and adapters that cannot be served."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from lorafleet_runtime.model.tiny import random_adapter, save_adapter
from tests.e2e import tiny_fleet

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@dataclass(frozen=True)
class BadObject:
    """An object that is refused: the field and the words of its one message."""

    name: str
    changes: dict[str, Any]
    reason: str
    says: str

    @property
    def document(self) -> dict[str, Any]:
        return tiny_fleet.adapter("acme", self.name, "", **self.changes)


OBJECTS = (
    BadObject("unknown-field", {"copys": {"min": 1}}, "Invalid",
              ".spec.copys: unknown field; did you mean copies?"),
    BadObject("unknown-inner-field", {"source": {"uri": "file:x", "sha265": "0"}}, "Invalid",
              ".spec.source.sha265: unknown field; did you mean sha256?"),
    BadObject("wrong-type", {"pinned": "yes"}, "Invalid",
              ".spec.pinned: must be true or false, not the text 'yes'"),
    BadObject("wrong-number", {"copies": {"min": "two"}}, "Invalid",
              ".spec.copies.min: must be a whole number, not the text 'two'"),
    BadObject("twice-served", {"servedName": "alpha"}, "ServedNameConflict",
              ".spec.servedName: 'alpha' is already served by LoRAAdapter acme/alpha"),
    BadObject("served-as-base", {"servedName": "tiny"}, "ServedNameConflict",
              ".spec.servedName: 'tiny' is the served name of BaseModel models/tiny"),
    BadObject("missing-base", {"baseModelRef": {"namespace": "models", "name": "tinny"}}, "BaseModelNotFound",
              ".spec.baseModelRef: there is no BaseModel models/tinny"),
    BadObject("named-pickle", {"source": {"uri": "file:adapters/adapter_model.bin"}}, "Invalid",
              ".spec.source.uri: pickle files run code when they are loaded"),
    BadObject("no-scheme", {"source": {"uri": "adapters/acme-alpha"}}, "Invalid",
              ".spec.source.uri: must start with one of hf://, s3://"),
)  # fmt: skip


@dataclass(frozen=True)
class BadArtifact:
    """An adapter whose object is sound and whose files are not; `make` spoils a good adapter's folder."""

    name: str
    make: Callable[[Path], object]
    reason: str
    says: str
    spec: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        fields = {"source": {"uri": f"file:adapters/acme-{self.name}", **self.spec}}
        return tiny_fleet.adapter("acme", self.name, "", **fields)


def of_rank(rank: int) -> Callable[[Path], object]:
    return lambda folder: save_adapter(folder, random_adapter(tiny_fleet.CONFIG, rank))


def of_a_larger_model(folder: Path) -> None:
    save_adapter(folder, random_adapter(dataclasses.replace(tiny_fleet.CONFIG, hidden_size=96)))


def as_pickle(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut_short(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def with_nan(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[f"{Q0}.lora_A.weight"][0, 0] = math.nan
    save_file(tensors, weights)


def with_config(**fields: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return change


def with_tensor(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        weights = folder / "adapter_model.safetensors"
        save_file({**load_file(weights), name: torch.ones(264, 64)}, weights)

    return change


def emptied(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def untouched(folder: Path) -> None:
    """Its files are good; the spec asks for others."""


ARTIFACTS = (
    BadArtifact("rank", of_rank(33), "RankTooHigh", "rank 33, above this base model's maximum of 32"),
    BadArtifact("architecture", of_a_larger_model, "InvalidAdapter",
                f"{Q0}.lora_A.weight has shape [8, 96], and the base model's q_proj takes [r, 64]"),
    BadArtifact("pickle", as_pickle, "PickleRefused", "adapter_model.bin is a pickle"),
    BadArtifact("truncated", cut_short, "InvalidAdapter", "adapter_model.safetensors is damaged or cut short"),
    BadArtifact("nan", with_nan, "InvalidAdapter", f"{Q0}.lora_A.weight has NaN or infinite values"),
    BadArtifact("digest", untouched, "DigestMismatch", "but the content is sha256:", {"sha256": "0" * 64}),
    BadArtifact("dora", with_config(use_dora=True), "InvalidAdapter",
                f"{Q0}.lora_A.weight has no lora_magnitude_vector beside it, and use_dora is set"),
    BadArtifact("dora-tensor", with_tensor(f"{Q0}.lora_magnitude_vector"), "InvalidAdapter",
                f"{Q0}.lora_magnitude_vector has shape [264, 64], and the base model's q_proj takes [64]"),
    BadArtifact("whole-modules", with_config(modules_to_save=["lm_head"]), "InvalidAdapter",
                "no weight for lm_head, which modules_to_save names"),
    BadArtifact("whole-module-tensor", with_tensor("base_model.model.model.layers.0.mlp.up_proj.weight"),
                "InvalidAdapter", "replacing a whole projection is not supported"),
    BadArtifact("alora", with_config(alora_invocation_tokens=[1, 2]), "InvalidAdapter",
                "activated LoRA (alora_invocation_tokens) is not supported"),
    BadArtifact("absent", emptied, "NotAnAdapter",
                "lacks adapter_config.json and adapter_model.safetensors"),
)  # fmt: skip


def write_artifacts(folder: Path) -> None:
    """The files of all ARTIFACTS, each a good adapter that has been spoilt."""
    for bad in ARTIFACTS:
        bad.make(tiny_fleet.weights(folder, "acme", bad.name, rank=8, seed=5))
