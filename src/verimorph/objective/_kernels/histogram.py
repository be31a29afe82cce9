"""Joint histogram with B-spline Parzen windows, and its adjoint, without a voxels-by-bins array.

Bin ``k`` of the table belongs to centre ``k - 1``: one bin of padding on each side takes what the cubic window spreads
beyond the range. Histograms are counted in fixed chunks in float64 and added in order.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

_FAST = {"reassoc", "contract", "arcp", "nsz"}
_CHUNKS = 32


@njit(fastmath=_FAST, inline="always")
def _position(value, low, scale, bins):
    """Position in bins, held inside the range."""
    return min(max((value - low) * scale, np.float32(0.0)), np.float32(bins - 1))


@njit(fastmath=_FAST, inline="always")
def _cubic(f):
    """Cubic B-spline weights of the four bins around a fraction ``f`` of the way from the second to the third."""
    g = np.float32(1.0) - f
    sixth = np.float32(1.0 / 6.0)
    half, two_thirds = np.float32(0.5), np.float32(2.0 / 3.0)
    return (
        g * g * g * sixth,
        two_thirds - f * f * (np.float32(1.0) - half * f),
        two_thirds - g * g * (np.float32(1.0) - half * g),
        f * f * f * sixth,
    )


@njit(fastmath=_FAST, inline="always")
def _cubic_slope(f):
    """Derivatives of the four weights by the position."""
    g = np.float32(1.0) - f
    half, three_halves, two = np.float32(0.5), np.float32(1.5), np.float32(2.0)
    return -half * g * g, f * (three_halves * f - two), g * (two - three_halves * g), half * f * f


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def joint_histogram(fixed, moved, share, shared, low, scale, bins, cubic_fixed):
    """Table (bins + 2, bins + 2) of window products summed over voxels; rows are bins of the fixed image."""
    n = fixed.size
    size = bins + 2
    step = (n + _CHUNKS - 1) // _CHUNKS
    partial = np.zeros((_CHUNKS, size, size), np.float64)
    for chunk in prange(_CHUNKS):
        table = partial[chunk]
        for i in range(chunk * step, min(n, (chunk + 1) * step)):
            weight = share[i] if shared else np.float32(1.0)
            if weight == 0.0:
                continue
            p = _position(moved[i], low[1], scale[1], bins)
            c = min(int(p), bins - 2)
            w0, w1, w2, w3 = _cubic(p - np.float32(c))
            q = _position(fixed[i], low[0], scale[0], bins)
            r = min(int(q), bins - 2)
            if cubic_fixed:
                v = _cubic(q - np.float32(r))
                for k in range(4):
                    a = v[k] * weight
                    row = table[r + k]
                    row[c] += a * w0
                    row[c + 1] += a * w1
                    row[c + 2] += a * w2
                    row[c + 3] += a * w3
            else:
                row = table[r + 1]
                row[c] += weight * w0
                row[c + 1] += weight * w1
                row[c + 2] += weight * w2
                row[c + 3] += weight * w3
    total = np.zeros((size, size), np.float64)
    for chunk in range(_CHUNKS):
        total += partial[chunk]
    return total


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def histogram_gradient(fixed, moved, share, shared, low, scale, bins, cubic_fixed, slope, gradient):
    """Derivative by every ``moved`` voxel of a function whose derivative by the table is ``slope`` (float32)."""
    n = fixed.size
    step = (n + _CHUNKS - 1) // _CHUNKS
    for chunk in prange(_CHUNKS):
        for i in range(chunk * step, min(n, (chunk + 1) * step)):
            weight = share[i] if shared else np.float32(1.0)
            raw = (moved[i] - low[1]) * scale[1]
            if weight == 0.0 or raw < 0.0 or raw > bins - 1:
                gradient[i] = 0.0
                continue
            c = min(int(raw), bins - 2)
            d0, d1, d2, d3 = _cubic_slope(raw - np.float32(c))
            q = _position(fixed[i], low[0], scale[0], bins)
            r = min(int(q), bins - 2)
            if cubic_fixed:
                v = _cubic(q - np.float32(r))
                total = np.float32(0.0)
                for k in range(4):
                    row = slope[r + k]
                    total += v[k] * (row[c] * d0 + row[c + 1] * d1 + row[c + 2] * d2 + row[c + 3] * d3)
            else:
                row = slope[r + 1]
                total = row[c] * d0 + row[c + 1] * d1 + row[c + 2] * d2 + row[c + 3] * d3
            gradient[i] = weight * scale[1] * total
