"""The reference for everything that the runtime computes: transformers + PEFT, one adapter at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

CLOSE_CALL = 1e-4
"""Two best logits this near may change places with the shape of the batch: such a token is counted, not failed."""


class Oracle:
    """transformers with PEFT; adapters are switched, never mixed."""

    def __init__(self, path: Path) -> None:
        """`path`: a folder of safetensors, or a GGUF file."""
        from transformers import AutoModelForCausalLM

        folder, file = (path.parent, path.name) if path.suffix == ".gguf" else (path, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._base: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
        self._peft: Any = None

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], adapter: Path | None) -> torch.Tensor:
        """`[len(tokens), vocabulary]`."""
        ids = torch.tensor([tokens])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if adapter is None:
                if self._peft is None:
                    return _last(self._base(ids))
                with self._peft.disable_adapter():
                    return _last(self._peft(ids))
            return _last(self.adapted(adapter)(ids))

    def adapted(self, adapter: Path) -> Any:
        """The PEFT model with `adapter` switched on."""
        from peft import PeftModel

        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self._base, adapter, adapter_name=adapter.name)
        elif adapter.name not in self._peft.peft_config:
            self._peft.load_adapter(adapter, adapter_name=adapter.name)
        self._peft.set_adapter(adapter.name)
        return self._peft.eval()

    def explains(self, prompt: Sequence[int], output: Sequence[int], adapter: Path | None) -> int:
        """Assert that greedy decoding gives `output`; returns how many close calls went the other way."""
        logits = self.logits([*prompt, *output], adapter)[len(prompt) - 1 : -1]
        close = 0
        for position, token in enumerate(output):
            best = int(logits[position].argmax())
            if token != best:
                gap = float(logits[position, best] - logits[position, token])
                assert gap <= CLOSE_CALL, f"token {position}: {token} instead of {best}, logits differ by {gap}"
                close += 1
        return close


def _last(output: Any) -> torch.Tensor:
    logits: torch.Tensor = output.logits[0]
    return logits
