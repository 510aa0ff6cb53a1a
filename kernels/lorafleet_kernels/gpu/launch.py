"""How a kernel is started: the options that every form shares."""

from __future__ import annotations

from lorafleet_kernels.gpu.forms.lora import Tiles

FUSED = {"enable_fp_fusion": True}
"""A multiplication and an addition may be one instruction, as the gate compiles them; named, as Triton's default is to
change."""


def options(tiles: Tiles) -> dict[str, int | bool]:
    """Keyword arguments of a launch of that form."""
    return {"num_warps": tiles.warps, "num_stages": tiles.stages} | FUSED
