"""An adapter's open file: shapes checked against the base model before anything is read, then tensors in float32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorafleet_runtime.model.adapter_config import AdapterConfig
from lorafleet_runtime.model.adapter_names import EMBEDDING, LM_HEAD, Module, Part
from lorafleet_runtime.model.adapter_weights import LoraPair
from lorafleet_runtime.model.config import LORA_TARGETS, DecoderConfig
from lorafleet_runtime.model.errors import InvalidAdapter, RankTooHigh

_TRANSPOSED = "lora_embedding_"
_EMBEDDING_HALVES = {Part.A: "lora_embedding_B", Part.B: "lora_embedding_A"}
"""PEFT stores an embedding's A and B the other way round: `[r, V]` and `[H, r]`."""


@dataclass(frozen=True, slots=True)
class AdapterTensors:
    """`file` is an open safetensors file."""

    file: Any
    settings: AdapterConfig
    config: DecoderConfig
    max_rank: int

    def check(self, module: Module) -> None:
        """Raises InvalidAdapter or RankTooHigh naming the tensor that does not fit, or whose partner is missing."""
        size = self.config.vocab_size
        made_for = f" (made for {self.settings.base_model})" if self.settings.base_model else ""
        for part, key in module.keys.items():
            shape, wanted = self._shape(key), self._wanted(module.name, part)
            if len(shape) == len(wanted) == 2 and (EMBEDDING in key or LM_HEAD in key) and wanted[0] == size < shape[0]:
                raise InvalidAdapter(
                    f"{key} has shape {shape}, and the base model's vocabulary has {size} entries: the adapter was "
                    "trained after tokens were added, which the base model's tokenizer does not have; "
                    "serve the model with the added tokens as a base model"
                )
            fits = [w in (s, "r", "n") for s, w in zip(shape, wanted, strict=False)]
            if len(shape) != len(wanted) or not all(fits):
                raise InvalidAdapter(
                    f"{key} has shape {shape}, and the base model's {module.name} takes "
                    f"[{', '.join(map(str, wanted))}]; the adapter was trained for another model{made_for}"
                )
        self._check_pair(module)

    def read(self, key: str) -> Tensor:
        """A tensor in float32, a copy, never a view of the mapped file, which may be replaced while it is served."""
        tensor: Tensor = self.file.get_tensor(key)
        if not tensor.is_floating_point():
            raise InvalidAdapter(
                f"{key} has dtype {tensor.dtype}; quantised adapters are not supported, save it in float"
            )
        tensor = tensor.to(torch.float32, copy=True)
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidAdapter(f"{key} has NaN or infinite values; the training diverged or the file is damaged")
        return tensor.t().contiguous() if _TRANSPOSED in key else tensor

    def optional(self, module: Module, part: Part) -> Tensor | None:
        """`read` of a part that the module may lack."""
        return self.read(module.keys[part]) if part in module.keys else None

    def pair(self, module: Module, path: str = "") -> LoraPair | None:
        """The module's pair with the scale that the config gives it, or `path`; None when it has none."""
        if Part.A not in module.keys:
            return None
        a, b = self.read(module.keys[Part.A]), self.read(module.keys[Part.B])
        return LoraPair(a, b.mul_(self.settings.scale(path or module.path, a.shape[0])))

    def tokens(self, name: str) -> tuple[int, ...]:
        """The ids of embed_tokens' or lm_head's replaced rows, in the order of the rows."""
        return self.settings.tokens.get(name, ())

    def _shape(self, key: str) -> list[int]:
        shape: list[int] = list(self.file.get_slice(key).get_shape())
        return shape[::-1] if _TRANSPOSED in key and len(shape) == 2 else shape

    def _wanted(self, name: str, part: Part) -> tuple[int | str, ...]:
        """A shape, with a letter where any size will do."""
        config = self.config
        if name in ("q_norm", "k_norm"):
            return (config.head_dim,)
        if name not in (EMBEDDING, LM_HEAD, *LORA_TARGETS):
            return (config.hidden_size,)
        vocabulary = (config.vocab_size, config.hidden_size)
        out, width = vocabulary if name in (EMBEDDING, LM_HEAD) else config.linear_shape(name)
        shapes: dict[Part, tuple[int | str, ...]] = {
            Part.A: ("r", width),
            Part.B: (out, "r"),
            Part.B_BIAS: (out,),
            Part.BIAS: (out,),
            Part.MAGNITUDE: (width if name == EMBEDDING else out,),
            Part.TOKENS: (len(self.tokens(name)) or "n", width),
            Part.WEIGHT: (out, width),
            Part.BASE_WEIGHT: (out, width),
        }
        return shapes[part]

    def _check_pair(self, module: Module) -> None:
        keys = module.keys
        for half, other in ((Part.A, Part.B), (Part.B, Part.A)):
            if half in keys and other not in keys:
                name = other.value if module.name != EMBEDDING else _EMBEDDING_HALVES[other]
                raise InvalidAdapter(f"{keys[half]} has no {name} beside it; the file is incomplete")
        for part, field, trained in (
            (Part.MAGNITUDE, "use_dora", self.settings.dora),
            (Part.B_BIAS, "lora_bias", self.settings.lora_bias and module.name != EMBEDDING),
        ):
            if Part.A in keys and trained and part not in keys:
                raise InvalidAdapter(f"{keys[Part.A]} has no {part.value} beside it, and {field} is set; copy it again")
            if part in keys and (Part.A not in keys or not trained):
                raise InvalidAdapter(
                    f"{keys[part]} says nothing without lora_A beside it and {field} in the config; copy it again"
                )
        if Part.A not in keys:
            return
        a, b = self._shape(keys[Part.A]), self._shape(keys[Part.B])
        if a[0] != b[1] or a[0] == 0:
            raise InvalidAdapter(
                f"{keys[Part.A]} has shape {a} and {keys[Part.B]} has {b}: their ranks must be equal and above 0"
            )
        if a[0] > self.max_rank:
            raise RankTooHigh(
                f"{keys[Part.A]} has rank {a[0]}, above this base model's maximum of {self.max_rank}; "
                "raise spec.lora.maxRank of the base model (--max-lora-rank), or train with a lower rank"
            )
