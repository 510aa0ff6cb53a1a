"""The tokens of a step whose last ones the host did not know when it laid the step out."""

from __future__ import annotations

import triton
import triton.language as tl

from lorafleet_kernels.gpu.specialization import Specialization

BLOCK = 1024
WARPS = 4


@triton.jit(do_not_specialize=["count"])
def known_tokens(out, tokens, sampled, count, BLOCK: tl.constexpr):
    """Grid: blocks of tokens. `out` int64, `tokens` int32 `[count]`: -1 - i stands for `sampled[i]`, and for token 0
    where that is -1: what could not be sampled."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    token = tl.load(tokens + at, mask=inside, other=0)
    stands = token < 0
    found = tl.load(sampled - 1 - token, mask=inside & stands, other=0)
    tl.store(out + at, tl.where(stands, tl.maximum(found, 0), token).to(tl.int64), mask=inside)


def specializations() -> list[Specialization]:
    """One form."""
    return [
        Specialization(
            name="known tokens",
            kernel=known_tokens,
            arguments={"out": "*i64", "tokens": "*i32", "sampled": "*i32", "count": "i32"},
            constants={"BLOCK": BLOCK},
            warps=WARPS,
            stages=2,
        )
    ]
