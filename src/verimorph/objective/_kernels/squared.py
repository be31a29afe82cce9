"""Mean squared difference: value and gradient in one pass."""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_CHUNK = 1 << 16


@kernel(parallel=True, fastmath=FAST)
def squared_difference(fixed, moved, share, shared, scale, gradient, wanted):
    """Sum of ``share * (moved - fixed)**2`` over flat images; ``gradient`` gets ``scale * share * (moved - fixed)``."""
    n = fixed.size
    chunks = (n + _CHUNK - 1) // _CHUNK
    partial = np.zeros(chunks, np.float64)
    for chunk in prange(chunks):
        total = 0.0
        first, last = chunk * _CHUNK, min(n, (chunk + 1) * _CHUNK)
        for low in range(first, last, 256):
            line = np.float32(0.0)
            for i in range(low, min(last, low + 256)):
                difference = moved[i] - fixed[i]
                weighted = difference * share[i] if shared else difference
                line += weighted * difference
                if wanted:
                    gradient[i] = scale * weighted
            total += line
        partial[chunk] = total
    total = 0.0
    for chunk in range(chunks):
        total += partial[chunk]
    return total
