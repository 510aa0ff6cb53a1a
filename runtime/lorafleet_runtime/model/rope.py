"""Rotary position embeddings: the tables, with the scalings that the supported families use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lorafleet_runtime.model.config import DecoderConfig, RopeScaling


def inverse_frequencies(config: DecoderConfig) -> Tensor:
    """`[head_dim / 2]` float32, after scaling."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    return _llama3(frequencies, scaling)


def tables(config: DecoderConfig, length: int) -> tuple[Tensor, Tensor]:
    """cos and sin for positions 0 .. length, each `[length, 1, head_dim]` float32."""
    angles = torch.outer(torch.arange(length, dtype=torch.int64).float(), inverse_frequencies(config))
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)
    return angles.cos(), angles.sin()


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, a smooth ramp between."""
    wavelengths = 2 * math.pi / frequencies
    longest = scaling.original_max_position_embeddings / scaling.low_freq_factor
    shortest = scaling.original_max_position_embeddings / scaling.high_freq_factor
    ramp = (scaling.original_max_position_embeddings / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - ramp) * frequencies / scaling.factor + ramp * frequencies
    scaled = torch.where(wavelengths > longest, frequencies / scaling.factor, frequencies)
    return torch.where((wavelengths <= longest) & (wavelengths >= shortest), blended, scaled)
