"""MIND-SSC: patch distances of shifted copies, descriptors, and their adjoint, tile by tile.

A tile is a few rows of a few planes, so that what a channel needs on its way stays in the cache. Forward, every voxel
is written by one tile. The adjoint adds to voxels beyond its tile; tiles are done in four rounds, no two of one round
within reach of each other, so the order of all sums is fixed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_FAST = FAST | {"nnan", "ninf"}
_PLANES, _ROWS = 32, 16


@kernel(fastmath=_FAST, inline="never")
def _sum_of_rows(rows, indices, out):
    """``out`` becomes the sum of chosen rows, in their order; five, the usual window, in one loop."""
    if indices.size == 5:
        a, b, c = rows[indices[0]], rows[indices[1]], rows[indices[2]]
        d, e = rows[indices[3]], rows[indices[4]]
        for x in range(out.size):
            out[x] = a[x] + b[x] + c[x] + d[x] + e[x]
        return
    first = rows[indices[0]]
    for x in range(out.size):
        out[x] = first[x]
    for i in range(1, indices.size):
        row = rows[indices[i]]
        for x in range(out.size):
            out[x] += row[x]


@kernel(fastmath=_FAST, inline="never")
def _sum_along(line, r, out):
    """``out[x]`` becomes the sum of ``line[x : x + 2 r + 1]``."""
    n = out.size
    # Slices instead of x + p: an index that might be negative would be wrapped, and the loop not vectorised.
    if r == 2:
        a, b, c, d, e = line, line[1:], line[2:], line[3:], line[4:]
        for x in range(n):
            out[x] = a[x] + b[x] + c[x] + d[x] + e[x]
        return
    for x in range(n):
        out[x] = line[x]
    for step in range(1, 2 * r + 1):
        right = line[step:]
        for x in range(n):
            out[x] += right[x]


@kernel(fastmath=_FAST, inline="never")
def _squares_along(a, b, scale, line, r, out):
    """Box sum along a row, border repeated, of the squared difference of two rows."""
    n = out.size
    middle = line[r : r + n]
    for x in range(n):
        d = a[x] - b[x]
        middle[x] = d * d * scale
    line[:r] = middle[0]
    line[r + n :] = middle[n - 1]
    _sum_along(line, r, out)


@kernel(fastmath=_FAST, inline="never")
def _least_and_mean(distances, variance, z, y):
    """Take the smallest distance of every voxel of a row from all, and write the mean of what is left."""
    pairs, _, _, nx = distances.shape
    least = np.empty(nx, np.float32)
    mean, first = variance[z, y], distances[0, z, y]
    for x in range(nx):
        least[x] = first[x]
        mean[x] = first[x]
    for k in range(1, pairs):
        row = distances[k, z, y]
        for x in range(nx):
            least[x] = min(least[x], row[x])
            mean[x] += row[x]
    for x in range(nx):
        mean[x] = max(mean[x] / pairs - least[x], np.float32(0.0))
    for k in range(pairs):
        row = distances[k, z, y]
        for x in range(nx):
            row[x] -= least[x]


@kernel(parallel=True, fastmath=_FAST)
def patch_distances(image, firsts, seconds, reach, radius, scale, distances, variance):
    """Fill ``distances`` (pairs, *space) with D_k less its minimum over k, and ``variance`` with the mean over k.

    ``image`` is padded by ``reach`` on every side with its border values. Returns the mean of ``variance``.
    """
    pairs, nz, ny, nx = distances.shape
    rz, ry, rx = radius
    across_y = (ny + _ROWS - 1) // _ROWS
    tiles = ((nz + _PLANES - 1) // _PLANES) * across_y
    partial = np.zeros(tiles, np.float64)
    for tile in prange(tiles):
        low, start = (tile // across_y) * _PLANES, (tile % across_y) * _ROWS
        high, stop = min(nz, low + _PLANES), min(ny, start + _ROWS)
        bottom, top = max(0, low - rz), min(nz, high + rz)
        before, after = max(0, start - ry), min(ny, stop + ry)
        line = np.empty(nx + 2 * rx, np.float32)
        across = np.empty((_ROWS + 2 * ry, nx), np.float32)
        depth = 2 * rz + 1
        ring = np.empty((_ROWS, depth, nx), np.float32)
        rows, planes = np.empty(2 * ry + 1, np.int64), np.empty(depth, np.int64)
        for k in range(pairs):
            az, ay, ax = reach[0] + firsts[k, 0], reach[1] + firsts[k, 1], reach[2] + firsts[k, 2]
            bz, by, bx = reach[0] + seconds[k, 0], reach[1] + seconds[k, 1], reach[2] + seconds[k, 2]
            filled = bottom
            for z in range(low, high):
                while filled < min(top, z + rz + 1):
                    for y in range(before, after):
                        _squares_along(
                            image[filled + az, y + ay, ax:],
                            image[filled + bz, y + by, bx:],
                            scale,
                            line,
                            rx,
                            across[y - before],
                        )
                    for y in range(start, stop):
                        for i in range(2 * ry + 1):
                            rows[i] = min(max(y - ry + i, 0), ny - 1) - before
                        _sum_of_rows(across, rows, ring[y - start, filled % depth])
                    filled += 1
                for i in range(depth):
                    planes[i] = min(max(z - rz + i, 0), nz - 1) % depth
                for y in range(start, stop):
                    _sum_of_rows(ring[y - start], planes, distances[k, z, y])
        column = np.zeros(nx, np.float32)
        for z in range(low, high):
            for y in range(start, stop):
                _least_and_mean(distances, variance, z, y)
                mean = variance[z, y]
                for x in range(nx):
                    column[x] += mean[x]
        subtotal = 0.0
        for x in range(nx):
            subtotal += column[x]
        partial[tile] = subtotal
    total = 0.0
    for tile in range(tiles):
        total += partial[tile]
    return total / (nz * ny * nx)


@kernel(fastmath=_FAST, inline="never")
def _exponentials(row, inverse, rest, bits, out):
    """``out`` becomes exp(row * inverse), all of it at most 0.

    2^k times a polynomial on [-ln2/2, ln2/2] (relative error 2e-7): written out so that it vectorises, which the
    library call does not.
    """
    power = bits.view(np.float32)
    n = out.size
    for x in range(n):
        t = max(row[x] * inverse[x], np.float32(-87.0))
        whole = np.int32(t * np.float32(1.4426950408889634) - np.float32(0.5))
        rest[x] = t - np.float32(whole) * np.float32(0.6931471805599453)
        bits[x] = (whole + np.int32(127)) << np.int32(23)
    for x in range(n):
        r = rest[x]
        p = np.float32(1.0 / 720.0) * r + np.float32(1.0 / 120.0)
        p = p * r + np.float32(1.0 / 24.0)
        p = p * r + np.float32(1.0 / 6.0)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        p = p * r + np.float32(1.0)
        out[x] = p * power[x]


@kernel(parallel=True, fastmath=_FAST)
def descriptors(distances, variance, low, high):
    """Turn distances into exp(-D / V) in place, V held between ``low`` and ``high``."""
    pairs, nz, ny, nx = distances.shape
    for z in prange(nz):
        bits = np.empty(nx, np.int32)
        rest = np.empty(nx, np.float32)
        inverse = np.empty(nx, np.float32)
        for y in range(ny):
            for x in range(nx):
                inverse[x] = np.float32(-1.0) / min(max(variance[z, y, x], low), high)
            for k in range(pairs):
                _exponentials(distances[k, z, y], inverse, rest, bits, distances[k, z, y])


@kernel(fastmath=_FAST, inline="never")
def _row_slopes(pull, distances, z, y, inverse, moves, target):
    """Derivatives by the patch distances of a row.

    With pull_k = outer_k E_k / V: through V comes sum_k pull_k m_k / V / pairs where V moves, and the channel of the
    smallest distance answers for having been subtracted from all. ``target`` may be ``distances``.
    """
    pairs, nx = pull.shape
    total, through = np.zeros(nx, np.float32), np.zeros(nx, np.float32)
    found = np.zeros(nx, np.float32)
    for k in range(pairs):
        p, distance = pull[k], distances[k, z, y]
        for x in range(nx):
            total[x] += p[x]
            through[x] += p[x] * distance[x]
    for x in range(nx):
        through[x] = through[x] * inverse[x] / pairs if moves[x] else np.float32(0.0)
        total[x] -= pairs * through[x]
    for k in range(pairs):
        p, distance, out = pull[k], distances[k, z, y], target[k, z, y]
        for x in range(nx):
            here = np.float32(1.0) if distance[x] == np.float32(0.0) else np.float32(0.0)
            here = here * (np.float32(1.0) - found[x])
            found[x] += here
            out[x] = through[x] - p[x] + here * total[x]


@kernel(parallel=True, fastmath=_FAST)
def slopes(outer, result, distances, variance, low, high, target):
    """Derivatives by the patch distances, from those by the descriptors ``result``."""
    pairs, nz, ny, nx = outer.shape
    for z in prange(nz):
        inverse, moves = np.empty(nx, np.float32), np.empty(nx, np.bool_)
        pull = np.empty((pairs, nx), np.float32)
        for y in range(ny):
            v = variance[z, y]
            for x in range(nx):
                inverse[x] = np.float32(1.0) / min(max(v[x], low), high)
                moves[x] = v[x] > low and v[x] < high
            for k in range(pairs):
                slope, value, p = outer[k, z, y], result[k, z, y], pull[k]
                for x in range(nx):
                    p[x] = slope[x] * value[x] * inverse[x]
            _row_slopes(pull, distances, z, y, inverse, moves, target)


@kernel(parallel=True, fastmath=_FAST)
def distance_and_slopes(reference, distances, variance, low, high, share, shared, scale, wanted):
    """Sum over voxels and channels of ``share`` times the squared difference of descriptors.

    ``reference`` are the descriptors of one image, ``distances`` and ``variance`` belong to the other. Where
    ``wanted``, the derivatives of ``scale`` times half that sum by the distances take their place.
    """
    pairs, nz, ny, nx = distances.shape
    partial = np.zeros(nz, np.float64)
    for z in prange(nz):
        bits, moves = np.empty(nx, np.int32), np.empty(nx, np.bool_)
        rest, inverse, value = np.empty(nx, np.float32), np.empty(nx, np.float32), np.empty(nx, np.float32)
        column = np.zeros(nx, np.float32)
        pull = np.empty((pairs, nx), np.float32)
        for y in range(ny):
            v = variance[z, y]
            for x in range(nx):
                inverse[x] = np.float32(-1.0) / min(max(v[x], low), high)
                value[x] = 0.0
            for k in range(pairs):
                e, p = reference[k, z, y], pull[k]
                _exponentials(distances[k, z, y], inverse, rest, bits, p)
                for x in range(nx):
                    d = p[x] - e[x]
                    value[x] += d * d
                    p[x] *= -scale * inverse[x] * d
            if shared:
                w = share[z, y]
                for x in range(nx):
                    value[x] *= w[x]
                for k in range(pairs):
                    p = pull[k]
                    for x in range(nx):
                        p[x] *= w[x]
            for x in range(nx):
                column[x] += value[x]
            if wanted:
                for x in range(nx):
                    inverse[x] = -inverse[x]
                    moves[x] = v[x] > low and v[x] < high
                _row_slopes(pull, distances, z, y, inverse, moves, distances)
        subtotal = 0.0
        for x in range(nx):
            subtotal += column[x]
        partial[z] = subtotal
    total = 0.0
    for z in range(nz):
        total += partial[z]
    return total


@kernel(fastmath=_FAST, inline="never")
def _adjoint_along(source, scale, line, r, out):
    """Adjoint of a box sum with repeated borders, along a row, times ``scale``; ``line`` has zeros at both ends."""
    n = out.size
    middle = line[r : r + n]
    for x in range(n):
        middle[x] = source[x] * scale
    _sum_along(line, r, out)
    # Positions beyond the border were read from the border voxel.
    for i in range(min(r, n)):
        out[0] += middle[i] * (r - i)
        out[n - 1] += middle[n - 1 - i] * (r - i)


@kernel(fastmath=_FAST, inline="never")
def _adjoint_rows(rows, indices, j, n, r, out):
    """``out`` becomes row ``j`` of the adjoint box over ``n`` rows; row i is ``rows[indices[i - max(0, j - r)]]``."""
    _sum_of_rows(rows, indices, out)
    first, last = max(0, j - r), min(n, j + r + 1)
    if j == 0 or j == n - 1:
        for i in range(first, last):
            extra = (r - i if j == 0 else 0) + (r - (n - 1 - i) if j == n - 1 else 0)
            row = rows[indices[i - first]]
            for x in range(out.size):
                out[x] += extra * row[x]


@kernel(fastmath=_FAST, inline="never")
def _add_change(total, a, b, to_first, to_second):
    for x in range(total.size):
        total[x] *= np.float32(2.0) * (a[x] - b[x])
    for x in range(total.size):
        to_first[x] += total[x]
    for x in range(total.size):
        to_second[x] -= total[x]


@kernel(parallel=True, fastmath=_FAST)
def gradient_of_distances(slopes, image, firsts, seconds, reach, radius, scale, gradient):
    """Add to the padded ``gradient`` what the derivatives by the patch distances make of the padded ``image``."""
    pairs, nz, ny, nx = slopes.shape
    rz, ry, rx = radius
    thick, high_tile = max(_PLANES, 2 * reach[0]), max(_ROWS, 2 * reach[1])
    along_z, along_y = (nz + thick - 1) // thick, (ny + high_tile - 1) // high_tile
    for colour in range(4):
        odd_z, odd_y = colour // 2, colour % 2
        count_z, count_y = (along_z + 1 - odd_z) // 2, (along_y + 1 - odd_y) // 2
        for tile in prange(count_z * count_y):
            low, start = (2 * (tile // count_y) + odd_z) * thick, (2 * (tile % count_y) + odd_y) * high_tile
            high, stop = min(nz, low + thick), min(ny, start + high_tile)
            bottom, top = max(0, low - rz), min(nz, high + rz)
            before, after = max(0, start - ry), min(ny, stop + ry)
            line = np.zeros(nx + 2 * rx, np.float32)
            across = np.empty((high_tile + 2 * ry, nx), np.float32)
            depth = 2 * rz + 1
            ring = np.empty((high_tile, depth, nx), np.float32)
            total = np.empty(nx, np.float32)
            rows, planes = np.empty(2 * ry + 1, np.int64), np.empty(depth, np.int64)
            for k in range(pairs):
                az, ay, ax = reach[0] + firsts[k, 0], reach[1] + firsts[k, 1], reach[2] + firsts[k, 2]
                bz, by, bx = reach[0] + seconds[k, 0], reach[1] + seconds[k, 1], reach[2] + seconds[k, 2]
                filled = bottom
                for z in range(low, high):
                    while filled < min(top, z + rz + 1):
                        for y in range(before, after):
                            _adjoint_along(slopes[k, filled, y], scale, line, rx, across[y - before])
                        for y in range(start, stop):
                            first, last = max(0, y - ry), min(ny, y + ry + 1)
                            for i in range(first, last):
                                rows[i - first] = i - before
                            _adjoint_rows(across, rows[: last - first], y, ny, ry, ring[y - start, filled % depth])
                        filled += 1
                    first, last = max(0, z - rz), min(nz, z + rz + 1)
                    for i in range(first, last):
                        planes[i - first] = i % depth
                    for y in range(start, stop):
                        _adjoint_rows(ring[y - start], planes[: last - first], z, nz, rz, total)
                        _add_change(
                            total,
                            image[z + az, y + ay, ax:],
                            image[z + bz, y + by, bx:],
                            gradient[z + az, y + ay, ax:],
                            gradient[z + bz, y + by, bx:],
                        )
