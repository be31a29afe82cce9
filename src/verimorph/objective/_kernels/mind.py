"""MIND-SSC descriptors: patch distances of shifted copies, fused slab by slab."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

_FAST = {"reassoc", "contract", "arcp", "nsz", "nnan", "ninf"}
_SLAB = 8


@njit(fastmath=_FAST, cache=True, nogil=True, inline="never")
def _plane(image, z, first, second, reach, across, target, ry, rx, scale):
    """In-plane box sum, borders repeated, of the squared difference of two shifted copies.

    ``image`` is padded by ``reach`` on every side with its border values.
    """
    ny, nx = target.shape
    line = np.empty(nx + 2 * rx, np.float32)
    for y in range(ny):
        a = image[z + reach[0] + first[0], y + reach[1] + first[1]]
        b = image[z + reach[0] + second[0], y + reach[1] + second[1]]
        p, q = reach[2] + first[2], reach[2] + second[2]
        for x in range(nx):
            d = a[x + p] - b[x + q]
            line[x + rx] = d * d * scale
        for x in range(rx):
            line[x] = line[rx]
            line[nx + rx + x] = line[nx + rx - 1]
        out = across[y]
        for x in range(nx):
            out[x] = line[x]
        for d in range(1, 2 * rx + 1):
            for x in range(nx):
                out[x] += line[x + d]
    for y in range(ny):
        out = target[y]
        for x in range(nx):
            out[x] = 0.0
        for k in range(y - ry, y + ry + 1):
            row = across[min(max(k, 0), ny - 1)]
            for x in range(nx):
                out[x] += row[x]


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def patch_distances(image, firsts, seconds, reach, radius, scale, distances, variance):
    """Fill ``distances`` (pairs, *space) with D_k less its minimum over k, and ``variance`` with the mean over k.

    Returns the mean of ``variance``.
    """
    pairs, nz, ny, nx = distances.shape
    rz, ry, rx = radius
    slabs = (nz + _SLAB - 1) // _SLAB
    partial = np.zeros(slabs, np.float64)
    for slab in prange(slabs):
        low, high = slab * _SLAB, min(nz, (slab + 1) * _SLAB)
        across = np.empty((ny, nx), np.float32)
        ring = np.empty((_SLAB + 2 * rz, ny, nx), np.float32)
        for k in range(pairs):
            bottom, top = max(0, low - rz), min(nz, high + rz)
            for z in range(bottom, top):
                _plane(image, z, firsts[k], seconds[k], reach, across, ring[z - bottom], ry, rx, scale)
            for z in range(low, high):
                for y in range(ny):
                    out = distances[k, z, y]
                    for x in range(nx):
                        out[x] = 0.0
                    for step in range(z - rz, z + rz + 1):
                        row = ring[min(max(step, 0), nz - 1) - bottom, y]
                        for x in range(nx):
                            out[x] += row[x]
        least = np.empty(nx, np.float32)
        total = 0.0
        for z in range(low, high):
            for y in range(ny):
                mean = variance[z, y]
                for x in range(nx):
                    least[x] = distances[0, z, y, x]
                    mean[x] = distances[0, z, y, x]
                for k in range(1, pairs):
                    row = distances[k, z, y]
                    for x in range(nx):
                        least[x] = min(least[x], row[x])
                        mean[x] += row[x]
                line = np.float32(0.0)
                for x in range(nx):
                    mean[x] = max(mean[x] / pairs - least[x], np.float32(0.0))
                    line += mean[x]
                total += line
                for k in range(pairs):
                    row = distances[k, z, y]
                    for x in range(nx):
                        row[x] -= least[x]
        partial[slab] = total
    total = 0.0
    for slab in range(slabs):
        total += partial[slab]
    return total / (nz * ny * nx)


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def descriptors(distances, variance, low, high):
    """Turn distances into exp(-D / V) in place, V held between ``low`` and ``high``.

    The exponential is 2^k times a polynomial on [-ln2/2, ln2/2] (relative error 2e-7): written out so that it
    vectorises, which the library call does not.
    """
    pairs, nz, ny, nx = distances.shape
    for z in prange(nz):
        bits = np.empty(nx, np.int32)
        power = bits.view(np.float32)
        rest = np.empty(nx, np.float32)
        inverse = np.empty(nx, np.float32)
        for y in range(ny):
            for x in range(nx):
                inverse[x] = np.float32(-1.0) / min(max(variance[z, y, x], low), high)
            for k in range(pairs):
                row = distances[k, z, y]
                for x in range(nx):
                    t = max(row[x] * inverse[x], np.float32(-87.0))
                    whole = np.int32(t * np.float32(1.4426950408889634) - np.float32(0.5))
                    rest[x] = t - np.float32(whole) * np.float32(0.6931471805599453)
                    bits[x] = (whole + np.int32(127)) << np.int32(23)
                for x in range(nx):
                    r = rest[x]
                    p = np.float32(1.0 / 720.0) * r + np.float32(1.0 / 120.0)
                    p = p * r + np.float32(1.0 / 24.0)
                    p = p * r + np.float32(1.0 / 6.0)
                    p = p * r + np.float32(0.5)
                    p = p * r + np.float32(1.0)
                    p = p * r + np.float32(1.0)
                    row[x] = p * power[x]
