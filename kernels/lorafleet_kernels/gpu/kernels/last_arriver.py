"""How programs that share a row find out which of them is the last, and may read what the others wrote."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrives_last(arrived, programs):
    """Whether all of a row's `programs` but this one have come here before. `arrived`, int32, is 0 before the first and
    after the last. What others stored is to be loaded from L2 (".cg"): other processors wrote it."""
    # All threads' stores come before the one atomic of the program, whose release covers them.
    tl.debug_barrier()
    last = tl.atomic_add(arrived, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(arrived, 0)
    return last
