"""The quickstart's base model as a folder of safetensors: what systems read that do not read GGUF."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from bench.peers.environment import cache


def dequantised(gguf: Path) -> Path:
    """A folder with `gguf`'s weights in bfloat16 and its tokenizer, made once, by transformers.

    The runtime dequantises the same numbers from the same file, so that all systems multiply by equal weights."""
    folder = cache() / f"{gguf.stem}-bf16"
    if folder.is_dir():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        model = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        model.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder
