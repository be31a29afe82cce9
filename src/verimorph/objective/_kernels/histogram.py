"""Joint histogram with B-spline Parzen windows, and its adjoint, without a voxels-by-bins array.

Bin ``k`` of the table belongs to centre ``k - 1``: one bin of padding on each side takes what the cubic window spreads
beyond the range. Images come flat, one row an item (an image, or one of thousands of patches). Tables are counted in
float64 by pieces of an item, and added in order.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from verimorph.field.kernels.compiling import FAST, kernel

_JOBS = 32


@njit(fastmath=FAST, inline="always")
def _position(value, low, scale, bins):
    """Position in bins, held inside the range."""
    return min(max((value - low) * scale, np.float32(0.0)), np.float32(bins - 1))


@njit(fastmath=FAST, inline="always")
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


@njit(fastmath=FAST, inline="always")
def _cubic_slope(f):
    """Derivatives of the four weights by the position."""
    g = np.float32(1.0) - f
    half, three_halves, two = np.float32(0.5), np.float32(1.5), np.float32(2.0)
    return -half * g * g, f * (three_halves * f - two), g * (two - three_halves * g), half * f * f


@kernel(parallel=True, fastmath=FAST)
def joint_histograms(fixed, moved, share, shared, low, scale, bins, cubic_fixed):
    """Tables (items, bins + 2, bins + 2) of window products summed over voxels; rows are bins of the fixed image.

    ``low`` and ``scale`` hold the range's start and the bins per intensity of both images, (items, 2).
    """
    items, n = fixed.shape
    size = bins + 2
    pieces = max(1, _JOBS // items)
    step = (n + pieces - 1) // pieces
    partial = np.zeros((items * pieces, size, size), np.float64)
    for job in prange(items * pieces):
        item, piece = job // pieces, job % pieces
        table = partial[job]
        for i in range(piece * step, min(n, (piece + 1) * step)):
            weight = share[item, i] if shared else np.float32(1.0)
            if weight == 0.0:
                continue
            p = _position(moved[item, i], low[item, 1], scale[item, 1], bins)
            c = min(int(p), bins - 2)
            w0, w1, w2, w3 = _cubic(p - np.float32(c))
            q = _position(fixed[item, i], low[item, 0], scale[item, 0], bins)
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
    total = np.zeros((items, size, size), np.float64)
    for job in range(items * pieces):
        total[job // pieces] += partial[job]
    return total


@kernel(parallel=True, fastmath=FAST)
def histogram_gradients(fixed, moved, share, shared, low, scale, bins, cubic_fixed, slope, gradient):
    """Derivative by every ``moved`` voxel of a function whose derivative by the tables is ``slope`` (float32)."""
    items, n = fixed.shape
    pieces = max(1, _JOBS // items)
    step = (n + pieces - 1) // pieces
    for job in prange(items * pieces):
        item, piece = job // pieces, job % pieces
        table = slope[item]
        rate = scale[item, 1]
        for i in range(piece * step, min(n, (piece + 1) * step)):
            weight = share[item, i] if shared else np.float32(1.0)
            raw = (moved[item, i] - low[item, 1]) * rate
            if weight == 0.0 or raw < 0.0 or raw > bins - 1:
                gradient[item, i] = 0.0
                continue
            c = min(int(raw), bins - 2)
            d0, d1, d2, d3 = _cubic_slope(raw - np.float32(c))
            q = _position(fixed[item, i], low[item, 0], scale[item, 0], bins)
            r = min(int(q), bins - 2)
            if cubic_fixed:
                v = _cubic(q - np.float32(r))
                total = np.float32(0.0)
                for k in range(4):
                    row = table[r + k]
                    total += v[k] * (row[c] * d0 + row[c + 1] * d1 + row[c + 2] * d2 + row[c + 3] * d3)
            else:
                row = table[r + 1]
                total = row[c] * d0 + row[c + 1] * d1 + row[c + 2] * d2 + row[c + 3] * d3
            gradient[item, i] = weight * rate * total


@kernel(parallel=True, fastmath=FAST)
def binned_moments(values, given, share, shared, low, scale, bins):
    """Per bin of ``given``: summed window weight, and that times ``values``, (items, bins + 2, 2)."""
    items, n = values.shape
    pieces = max(1, _JOBS // items)
    step = (n + pieces - 1) // pieces
    partial = np.zeros((items * pieces, bins + 2, 2), np.float64)
    for job in prange(items * pieces):
        item, piece = job // pieces, job % pieces
        table = partial[job]
        for i in range(piece * step, min(n, (piece + 1) * step)):
            weight = share[item, i] if shared else np.float32(1.0)
            if weight == 0.0:
                continue
            p = _position(given[item, i], low[item], scale[item], bins)
            c = min(int(p), bins - 2)
            w = _cubic(p - np.float32(c))
            for k in range(4):
                a = w[k] * weight
                table[c + k, 0] += a
                table[c + k, 1] += a * values[item, i]
    total = np.zeros((items, bins + 2, 2), np.float64)
    for job in range(items * pieces):
        total[job // pieces] += partial[job]
    return total


@kernel(parallel=True, fastmath=FAST)
def binned_moments_gradients(values, given, share, shared, low, scale, bins, slope, to_values, to_given):
    """Derivatives by ``values`` and ``given`` of a function whose derivative by the table is ``slope`` (float32)."""
    items, n = values.shape
    pieces = max(1, _JOBS // items)
    step = (n + pieces - 1) // pieces
    for job in prange(items * pieces):
        item, piece = job // pieces, job % pieces
        table = slope[item]
        for i in range(piece * step, min(n, (piece + 1) * step)):
            weight = share[item, i] if shared else np.float32(1.0)
            raw = (given[item, i] - low[item]) * scale[item]
            p = _position(given[item, i], low[item], scale[item], bins)
            c = min(int(p), bins - 2)
            w = _cubic(p - np.float32(c))
            d = _cubic_slope(p - np.float32(c))
            first, second, third = np.float32(0.0), np.float32(0.0), np.float32(0.0)
            for k in range(4):
                first += w[k] * table[c + k, 1]
                second += d[k] * table[c + k, 0]
                third += d[k] * table[c + k, 1]
            to_values[item, i] = weight * first
            inside = raw >= 0.0 and raw <= bins - 1
            to_given[item, i] = weight * scale[item] * (second + third * values[item, i]) if inside else 0.0
