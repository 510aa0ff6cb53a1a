"""How a kernel is started: the options that every form shares."""

from __future__ import annotations

from lorafleet_kernels.gpu.forms.lora import Tiles

FUSED = {"enable_fp_fusion": True}
"""A multiplication and an addition may be one instruction, as the gate compiles them; named, as Triton's default is to
change."""


def in_step(dependent: bool) -> dict[str, bool]:
    """Keyword arguments of a launch among those of a step, whose kernels may start before those ahead of them have
    ended where that is `dependent` (`kernels.dependence`). A step begins with a launch without these: what it is told
    has then arrived for all."""
    return FUSED | ({"DEPENDENT": True, "launch_pdl": True} if dependent else {"DEPENDENT": False})


def options(tiles: Tiles, dependent: bool) -> dict[str, int | bool]:
    """The same of that form."""
    return {"num_warps": tiles.warps, "num_stages": tiles.stages} | in_step(dependent)
