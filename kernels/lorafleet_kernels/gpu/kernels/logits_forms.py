"""The forms of kernels that read logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorafleet_kernels.gpu.specialization import Specialization


def logits_forms(
    name: str, kernel: Any, arguments: Mapping[str, str], constants: Mapping[str, Any], warps: int
) -> list[Specialization]:
    """Every element type of logits; vocabularies whose rows are aligned, and those whose are not. `arguments`: what
    there is beside `logits`, `columns` and `row_stride`."""
    return [
        Specialization(
            name=f"{name} {dtype}{'' if aligned else ' unaligned'}",
            kernel=kernel,
            arguments={"logits": f"*{dtype}", **arguments, "columns": "i32", "row_stride": "i32"},
            constants=constants,
            warps=warps,
            stages=3,
            divisible=frozenset({"row_stride"} if aligned else ()),
        )
        for dtype in ("bf16", "fp16", "fp32")
        for aligned in (True, False)
    ]
