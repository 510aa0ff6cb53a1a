"""A kernel that must not ship, for the gate to find: it holds more than a thread has registers for."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.specialization import Specialization


@triton.jit  # type: ignore[untyped-decorator]
def keeps_all(out, x, N: tl.constexpr):  # type: ignore[no-untyped-def]
    n = tl.arange(0, N)
    tile = tl.load(x + n[:, None] * N + n[None, :]).to(tl.float16)
    tl.store(out + n[:, None] * N + n[None, :], tl.dot(tile, tile))


@triton.jit
def wants_tensor_cores(out, x):  # type: ignore[no-untyped-def]
    tl.store(out + tl.arange(0, 16), tl.load(x + tl.arange(0, 16)))


def specializations() -> list[Specialization]:
    arguments = {"out": "*fp32", "x": "*fp32"}
    return [
        Specialization("spills", keeps_all, arguments, {"N": 128}, warps=2, stages=1),
        Specialization("fits", wants_tensor_cores, arguments, {}, warps=1, stages=1),
        Specialization("no mma", wants_tensor_cores, arguments, {}, 1, 1, expects=frozenset({"mma"})),
        Specialization("misnamed", wants_tensor_cores, {"out": "*fp32"}, {}, warps=1, stages=1),
    ]
