"""Compiled separable symmetric filter (Gaussian, box).

Along any axis a symmetric filter of a zero-padded volume is a sum of shifted copies of one flat array, so that one
primitive, :func:`_convolve`, serves all three: long loops in vector registers, three pairs of taps at a time. Axes 2
and 1 are filtered a slab at a time while it is in cache, axis 0 a few rows at a time. ``norm`` holds the reciprocal
of the weight inside at every position of an axis (ones where the border is zero).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_PIECE = 2048  # values filtered at once: the output stays in the first cache while taps are added
_ROWS = 8  # rows of axis 1 filtered at once along axis 0


@kernel(fastmath=FAST)
def _first_taps(source, centre, step, half, out, begin, count):
    """``out = w0 s(t) + sum over k = 1..3 of wk (s(t - k step) + s(t + k step))``."""
    c, o = np.uintp(centre), np.uintp(begin)
    a1, a2, a3 = np.uintp(centre - step), np.uintp(centre - 2 * step), np.uintp(centre - 3 * step)
    b1, b2, b3 = np.uintp(centre + step), np.uintp(centre + 2 * step), np.uintp(centre + 3 * step)
    w0, w1, w2, w3 = half[0], half[1], half[2], half[3]
    for t in range(np.uintp(count)):
        out[o + t] = (
            w0 * source[c + t]
            + w1 * (source[a1 + t] + source[b1 + t])
            + w2 * (source[a2 + t] + source[b2 + t])
            + w3 * (source[a3 + t] + source[b3 + t])
        )


@kernel(fastmath=FAST)
def _more_taps(source, centre, step, half, k, out, begin, count):
    """Add taps ``k``, ``k + 1`` and ``k + 2``."""
    o = np.uintp(begin)
    a1, a2, a3 = np.uintp(centre - k * step), np.uintp(centre - (k + 1) * step), np.uintp(centre - (k + 2) * step)
    b1, b2, b3 = np.uintp(centre + k * step), np.uintp(centre + (k + 1) * step), np.uintp(centre + (k + 2) * step)
    w1, w2, w3 = half[k], half[k + 1], half[k + 2]
    for t in range(np.uintp(count)):
        out[o + t] += (
            w1 * (source[a1 + t] + source[b1 + t])
            + w2 * (source[a2 + t] + source[b2 + t])
            + w3 * (source[a3 + t] + source[b3 + t])
        )


@kernel(fastmath=FAST)
def _convolve(source, centre, step, half, out, begin, count):
    """Filter ``count`` values of a flat array around ``centre``; taps lie ``step`` apart; ``len(half) % 3 == 1``."""
    for s in range(0, count, _PIECE):
        n = min(_PIECE, count - s)
        _first_taps(source, centre + s, step, half, out, begin + s, n)
        for k in range(4, half.shape[0], 3):
            _more_taps(source, centre + s, step, half, k, out, begin + s, n)


@kernel(fastmath=FAST)
def _scale(values, begin, count, factor):
    for t in range(np.uintp(count)):
        values[np.uintp(begin) + t] *= factor


@kernel(parallel=True, fastmath=FAST)
def separable_filter(x, half0, half1, half2, norm0, norm1, norm2, pieces, out):
    """Filter every volume of ``x`` ``(C, X, Y, Z)`` along its three axes.

    Rows are kept ``radius`` zeros apart, so that a row's taps along axis 2 never reach its neighbour's values.
    """
    channels, nx, ny, nz = x.shape
    r0, r1, r2 = half0.shape[0] - 1, half1.shape[0] - 1, half2.shape[0] - 1
    pitch = nz + r2
    slab = ny * pitch
    padded = np.empty((nx + 2 * r0) * slab, np.float32)
    padded[: r0 * slab] = 0
    padded[(nx + r0) * slab :] = 0
    for c in range(channels):
        for piece in prange(pieces):
            rows = np.zeros(slab + 2 * r2, np.float32)
            filtered = np.zeros(slab + 2 * r1 * pitch, np.float32)
            for i in range(nx * piece // pieces, nx * (piece + 1) // pieces):
                for y in range(ny):
                    begin, source = np.uintp(r2 + y * pitch), x[c, i, y]
                    for z in range(np.uintp(nz)):
                        rows[begin + z] = source[z]
                _convolve(rows, r2, 1, half2, filtered, r1 * pitch, slab)
                for y in range(ny):
                    begin = np.uintp((r1 + y) * pitch)
                    for z in range(min(r2, nz)):
                        filtered[begin + np.uintp(z)] *= norm2[z]
                    for z in range(max(nz - r2, r2), nz):
                        filtered[begin + np.uintp(z)] *= norm2[z]
                target = (r0 + i) * slab
                _convolve(filtered, r1 * pitch, pitch, half1, padded, target, slab)
                for y in range(ny):
                    if y < r1 or y >= ny - r1:
                        _scale(padded, target + y * pitch, nz, norm1[y])
        for job in prange((ny + _ROWS - 1) // _ROWS):
            first, last = job * _ROWS, min(ny, (job + 1) * _ROWS)
            block = np.empty((last - first) * pitch, np.float32)
            for i in range(nx):
                _convolve(padded, (r0 + i) * slab + first * pitch, slab, half0, block, 0, (last - first) * pitch)
                for y in range(first, last):
                    begin, target = np.uintp((y - first) * pitch), out[c, i, y]
                    for z in range(np.uintp(nz)):
                        target[z] = norm0[i] * block[begin + z]
