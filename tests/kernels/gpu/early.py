"""Kernels that start early, for the gate: one that is right, and others that act before they wait."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.kernels.dependence import let_next_start, wait_for_those_before
from lorafleet_kernels.gpu.specialization import Specialization


@triton.jit  # type: ignore[untyped-decorator]
def scaled(  # type: ignore[no-untyped-def]
    out, x, slots, n,
    LEAVES: tl.constexpr, READS: tl.constexpr, WRITES: tl.constexpr, LOOPS: tl.constexpr, DEPENDENT: tl.constexpr,
):  # fmt: skip
    """`out = x · slots`, but for programs without a slot, which may leave at once."""
    let_next_start(DEPENDENT)
    lanes = tl.arange(0, 128)
    slot = tl.load(slots + tl.program_id(0))
    if LEAVES and slot < 0:
        return
    if READS:
        slot += tl.load(x + slot).to(tl.int32)
    if WRITES:
        tl.store(out + lanes, slot.to(tl.float32))
    if LOOPS:
        for _ in range(n):
            wait_for_those_before(DEPENDENT)
        tl.store(out + lanes, tl.load(x + lanes))
    wait_for_those_before(DEPENDENT)
    if slot >= 0:
        tl.store(out + lanes, tl.load(x + lanes) * slot)


def specializations() -> list[Specialization]:
    arguments = {"out": "*fp32", "x": "*fp32", "slots": "*i32", "n": "i32"}
    bad = ("LEAVES", "READS", "WRITES", "LOOPS")
    forms = [
        Specialization(
            name.lower() or "waits", scaled, arguments, {b: b == name for b in bad} | {"DEPENDENT": True}, 4, 3,
            cards=frozenset({"sm_90"}), dependent=True,
        )
        for name in ("", *bad)
    ]  # fmt: skip
    constants = dict.fromkeys(bad, False)
    return [
        *forms,
        Specialization("no wait", scaled, arguments, constants | {"DEPENDENT": False}, 4, 3, dependent=True),
        Specialization("unasked", scaled, arguments, constants | {"DEPENDENT": True}, 4, 3, cards=frozenset({"sm_90"})),
    ]
