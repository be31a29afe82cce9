"""MIND-SSC descriptors: patch distances of shifted copies, fused slab by slab."""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_FAST = FAST | {"nnan", "ninf"}
_SLAB = 8


@kernel(fastmath=_FAST, inline="never")
def _plane(image, z, first, second, reach, across, target, ry, rx, scale):
    """In-plane box sum, borders repeated, of the squared difference of two shifted copies.

    ``image`` is padded by ``reach`` on every side with its border values.
    """
    ny, nx = target.shape
    line = np.empty(nx + 2 * rx, np.float32)
    for y in range(ny):
        # Slices instead of x + p: an index that might be negative would be wrapped, and the loop not vectorised.
        a = image[z + reach[0] + first[0], y + reach[1] + first[1], reach[2] + first[2] :]
        b = image[z + reach[0] + second[0], y + reach[1] + second[1], reach[2] + second[2] :]
        middle = line[rx : rx + nx]
        for x in range(nx):
            d = a[x] - b[x]
            middle[x] = d * d * scale
        line[:rx] = middle[0]
        line[rx + nx :] = middle[nx - 1]
        out = across[y]
        for x in range(nx):
            out[x] = line[x]
        for d in range(1, 2 * rx + 1):
            right = line[d : d + nx]
            for x in range(nx):
                out[x] += right[x]
    for y in range(ny):
        out = target[y]
        for x in range(nx):
            out[x] = 0.0
        for k in range(y - ry, y + ry + 1):
            row = across[min(max(k, 0), ny - 1)]
            for x in range(nx):
                out[x] += row[x]


@kernel(parallel=True, fastmath=_FAST)
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


@kernel(parallel=True, fastmath=_FAST)
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


@kernel(parallel=True, fastmath=_FAST)
def pulls(outer, result, distances, held, free, shared_slope, least, at_least):
    """What all channels of a voxel share in the backward pass.

    With pull_k = outer_k E_k / V: ``shared_slope`` is the derivative through V, ``least`` the channel of the smallest
    distance, ``at_least`` what that channel gets for having been subtracted from all.
    """
    pairs, nz, ny, nx = outer.shape
    for z in prange(nz):
        inverse, total, through, smallest = np.empty((4, nx), np.float32)
        index = np.empty(nx, np.int32)
        for y in range(ny):
            variance, first = held[z, y], distances[0, z, y]
            for x in range(nx):
                inverse[x] = np.float32(1.0) / variance[x]
                total[x] = 0.0
                through[x] = 0.0
                smallest[x] = first[x]
                index[x] = 0
            for k in range(pairs):
                slope, value, distance = outer[k, z, y], result[k, z, y], distances[k, z, y]
                for x in range(nx):
                    pull = slope[x] * value[x] * inverse[x]
                    total[x] += pull
                    through[x] += pull * distance[x]
                for x in range(nx):
                    index[x] = k if distance[x] < smallest[x] else index[x]
                    smallest[x] = min(smallest[x], distance[x])
            through_row, least_row, at_least_row = shared_slope[z, y], least[z, y], at_least[z, y]
            moves = free[z, y]
            for x in range(nx):
                common = through[x] * inverse[x] / pairs if moves[x] else np.float32(0.0)
                through_row[x] = common
                least_row[x] = index[x]
                at_least_row[x] = total[x] - pairs * common


@kernel(fastmath=_FAST, inline="never")
def _adjoint_row(source, out, r):
    """Adjoint of a box sum with repeated borders, along a row."""
    n = source.size
    if n == 1:
        out[0] = source[0] * (2 * r + 1)
        return
    for x in range(n):
        out[x] = source[x]
    for d in range(1, min(r, n - 1) + 1):
        right, later = source[d:], out[d:]
        for x in range(n - d):
            out[x] += right[x]
        for x in range(n - d):
            later[x] += source[x]
    # Positions beyond the border were read from the border voxel.
    for i in range(min(r, n)):
        out[0] += source[i] * (r - i)
        out[n - 1] += source[n - 1 - i] * (r - i)


@kernel(fastmath=_FAST, inline="never")
def _add_rows(rows, out, j, n, r):
    """``out`` becomes row ``j`` of the adjoint box over the first axis of ``rows``."""
    for x in range(out.size):
        out[x] = 0.0
    for i in range(max(0, j - r), min(n, j + r + 1)):
        count = np.float32(1.0)
        if j == 0:
            count += r - i
        if j == n - 1:
            count += r - (n - 1 - i)
        row = rows[i]
        for x in range(out.size):
            out[x] += count * row[x]


@kernel(parallel=True, fastmath=_FAST)
def channel_slope(outer, result, held, shared_slope, least, at_least, channel, radius, scale, target):
    """Derivative by the distances of one channel, and the in-plane part of the box's adjoint, into ``target``."""
    nz, ny, nx = outer.shape
    for z in prange(nz):
        across = np.empty((ny, nx), np.float32)
        line = np.empty(nx, np.float32)
        for y in range(ny):
            for x in range(nx):
                value = shared_slope[z, y, x] - outer[z, y, x] * result[z, y, x] / held[z, y, x]
                if least[z, y, x] == channel:
                    value += at_least[z, y, x]
                line[x] = value * scale
            _adjoint_row(line, across[y], radius[2])
        for y in range(ny):
            _add_rows(across, target[z, y], y, ny, radius[1])


@kernel(parallel=True, fastmath=_FAST)
def channel_change(planes, image, first, second, reach, radius, change):
    """Finish the adjoint of the box across planes and multiply by twice the difference of the shifted copies."""
    nz, ny, nx = planes.shape
    for z in prange(nz):
        for y in range(ny):
            out = change[z, y]
            _add_rows(planes[:, y], out, z, nz, radius[0])
            a = image[z + reach[0] + first[0], y + reach[1] + first[1], reach[2] + first[2] :]
            b = image[z + reach[0] + second[0], y + reach[1] + second[1], reach[2] + second[2] :]
            for x in range(nx):
                out[x] *= np.float32(2.0) * (a[x] - b[x])


@kernel(parallel=True, fastmath=_FAST)
def gather_change(change, first, second, reach, gradient):
    """Add a channel's change to the padded gradient, at the voxels that both shifted copies read (no two write one)."""
    nz, ny, nx = change.shape
    for z in prange(gradient.shape[0]):
        for side in range(2):
            oz, oy, ox = (first[0], first[1], first[2]) if side == 0 else (second[0], second[1], second[2])
            sign = np.float32(1.0 - 2.0 * side)
            source = z - reach[0] - oz
            if source < 0 or source >= nz:
                continue
            start = reach[2] + ox
            for y in range(ny):
                row, out = change[source, y], gradient[z, y + reach[1] + oy, start:]
                for x in range(nx):
                    out[x] += sign * row[x]
