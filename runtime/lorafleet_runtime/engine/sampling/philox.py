"""Philox4x32-10: random numbers as a pure function of (seed, position), on every machine and in any batch.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011). Computed on the host: a step needs one
number a row, which costs less than launching ten rounds of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ROUNDS = 10


def philox4x32(counters: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Ten rounds. `counters [n, 4]`, `keys [n, 2]` → `[n, 4]`, all of them 32-bit words held in uint64."""
    c0, c1, c2, c3 = counters.T
    k0, k1 = keys.T
    for _ in range(_ROUNDS):
        even, odd = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (odd >> _32) ^ c1 ^ k0, odd & _LOW, (even >> _32) ^ c3 ^ k1, even & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack((c0, c1, c2, c3), axis=1)


def uniforms(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, position), with 53 random bits; seeds are taken modulo 2⁶⁴."""
    seed = np.array([s & 0xFFFFFFFFFFFFFFFF for s in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    zeros = np.zeros_like(position)
    counters = np.stack((position & _LOW, position >> _32, zeros, zeros), axis=1)
    words = philox4x32(counters, np.stack((seed & _LOW, seed >> _32), axis=1))
    bits = (words[:, 0] << _32 | words[:, 1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
