"""LNCC with a box window: value and gradient in five passes over the volume.

In a plane the box is a direct sum along the contiguous axis (vectorised, short) and a running sum along the other;
across planes it is a running sum over blocks of rows, fused with the arithmetic that follows it. Running sums start
afresh every ``_RESTART`` steps, which keeps float32 rounding from drifting.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_FAST = FAST | {"nnan", "ninf"}
_ROWS = 8
_RESTART = 16


@kernel(fastmath=_FAST, inline="never")
def _box_plane(source, across, target, ry, rx):
    """Box sum of one plane; ``across`` is scratch of the plane's size."""
    ny, nx = source.shape
    for y in range(ny):
        row, out = source[y], across[y]
        for x in range(nx):
            out[x] = row[x]
        # Slices instead of x + d: an index that might be negative would be wrapped, and the loop not vectorised.
        for d in range(1, min(rx, nx - 1) + 1):
            right, later = row[d:], out[d:]
            for x in range(nx - d):
                out[x] += right[x]
            for x in range(nx - d):
                later[x] += row[x]
    for y in range(ny):
        out = target[y]
        if y % _RESTART == 0:
            for x in range(nx):
                out[x] = 0.0
            for k in range(max(0, y - ry), min(ny, y + ry + 1)):
                row = across[k]
                for x in range(nx):
                    out[x] += row[x]
            continue
        before = target[y - 1]
        enters, leaves = y + ry, y - ry - 1
        if enters < ny and leaves >= 0:
            new, old = across[enters], across[leaves]
            for x in range(nx):
                out[x] = before[x] + (new[x] - old[x])
        elif enters < ny:
            new = across[enters]
            for x in range(nx):
                out[x] = before[x] + new[x]
        elif leaves >= 0:
            old = across[leaves]
            for x in range(nx):
                out[x] = before[x] - old[x]
        else:
            for x in range(nx):
                out[x] = before[x]


@kernel(fastmath=_FAST, inline="never")
def _slide(total, volume, z, rz, first, last):
    """Move the running sum over planes of the rows ``first:last`` to plane ``z``."""
    nz, _, nx = volume.shape
    rows = last - first
    if z % _RESTART == 0:
        for y in range(rows):
            for x in range(nx):
                total[y, x] = 0.0
        for k in range(max(0, z - rz), min(nz, z + rz + 1)):
            for y in range(rows):
                row, out = volume[k, first + y], total[y]
                for x in range(nx):
                    out[x] += row[x]
        return
    enters, leaves = z + rz, z - rz - 1
    for y in range(rows):
        out = total[y]
        if enters < nz and leaves >= 0:
            new, old = volume[enters, first + y], volume[leaves, first + y]
            for x in range(nx):
                out[x] += new[x] - old[x]
        elif enters < nz:
            new = volume[enters, first + y]
            for x in range(nx):
                out[x] += new[x]
        elif leaves >= 0:
            old = volume[leaves, first + y]
            for x in range(nx):
                out[x] -= old[x]


@kernel(parallel=True, fastmath=_FAST)
def planes_of_products(first, second, mask, masked, ry, rx, out):
    """In-plane box sums of ``second``, ``second**2`` and ``first * second``, counted inside the mask."""
    nz, ny, nx = first.shape
    for z in prange(nz):
        product = np.empty((ny, nx), np.float32)
        across = np.empty((ny, nx), np.float32)
        for quantity in range(3):
            for y in range(ny):
                a, b, p = first[z, y], second[z, y], product[y]
                if quantity == 0:
                    for x in range(nx):
                        p[x] = b[x]
                elif quantity == 1:
                    for x in range(nx):
                        p[x] = b[x] * b[x]
                else:
                    for x in range(nx):
                        p[x] = a[x] * b[x]
                if masked:
                    m = mask[z, y]
                    for x in range(nx):
                        p[x] *= m[x]
            _box_plane(product, across, out[quantity, z], ry, rx)


@kernel(parallel=True, fastmath=_FAST)
def planes_of_boxes(volumes, ry, rx, out):
    """In-plane box sums of several volumes."""
    count, nz, ny, nx = volumes.shape
    for z in prange(nz):
        across = np.empty((ny, nx), np.float32)
        for quantity in range(count):
            _box_plane(volumes[quantity, z], across, out[quantity, z], ry, rx)


@kernel(parallel=True, fastmath=_FAST)
def fixed_statistics(planes, nz_count, ny_count, nx_count, total_count, counted, rz, mean, scatter):
    """Window mean and sum of squared deviations from the in-plane sums of an image and its square."""
    _, nz, ny, nx = planes.shape
    for block in prange((ny + _ROWS - 1) // _ROWS):
        first, last = block * _ROWS, min(ny, (block + 1) * _ROWS)
        sums = np.empty((_ROWS, nx), np.float32)
        squares = np.empty((_ROWS, nx), np.float32)
        for z in range(nz):
            _slide(sums, planes[0], z, rz, first, last)
            _slide(squares, planes[1], z, rz, first, last)
            for y in range(first, last):
                s, q, m, v = sums[y - first], squares[y - first], mean[z, y], scatter[z, y]
                if counted:
                    n = total_count[z, y]
                    for x in range(nx):
                        m[x] = s[x] / n[x]
                else:
                    outer = nz_count[z] * ny_count[y]
                    for x in range(nx):
                        m[x] = s[x] / (outer * nx_count[x])
                for x in range(nx):
                    v[x] = max(q[x] - s[x] * m[x], np.float32(0.0))


@kernel(parallel=True, fastmath=_FAST)
def correlation(
    planes, mean, scatter, nz_count, ny_count, nx_count, total_count, counted, share, shared, rz, epsilon, factors
):
    """Squared local correlation summed over the volume, and the three factors of its gradient.

    ``share`` is mask times weight. ``factors`` becomes a, b and a mean_I - b mean_J of the formula in ``lncc``.
    """
    _, nz, ny, nx = planes.shape
    blocks = (ny + _ROWS - 1) // _ROWS
    partial = np.zeros(blocks, np.float64)
    zero = np.float32(0.0)
    for block in prange(blocks):
        first, last = block * _ROWS, min(ny, (block + 1) * _ROWS)
        sums = np.empty((_ROWS, nx), np.float32)
        squares = np.empty((_ROWS, nx), np.float32)
        crosses = np.empty((_ROWS, nx), np.float32)
        value = np.empty(nx, np.float32)
        inverse = np.empty(nx, np.float32)
        column = np.zeros(nx, np.float32)
        subtotal = 0.0
        for z in range(nz):
            _slide(sums, planes[0], z, rz, first, last)
            _slide(squares, planes[1], z, rz, first, last)
            _slide(crosses, planes[2], z, rz, first, last)
            for y in range(first, last):
                s, q, c = sums[y - first], squares[y - first], crosses[y - first]
                m, v = mean[z, y], scatter[z, y]
                fa, fb, fc = factors[0, z, y], factors[1, z, y], factors[2, z, y]
                if counted:
                    n = total_count[z, y]
                    for x in range(nx):
                        inverse[x] = np.float32(1.0) / n[x]
                else:
                    outer = nz_count[z] * ny_count[y]
                    for x in range(nx):
                        inverse[x] = np.float32(1.0) / (outer * nx_count[x])
                for x in range(nx):
                    mean_moved = s[x] * inverse[x]
                    cross = c[x] - s[x] * m[x]
                    raw = q[x] - s[x] * mean_moved
                    spread = max(raw, zero)
                    a = cross / (v[x] * spread + epsilon)
                    b = a * a * v[x] if raw > zero else zero
                    value[x] = a * cross
                    fa[x] = a
                    fb[x] = b
                    fc[x] = a * m[x] - b * mean_moved
                if shared:
                    w = share[z, y]
                    for x in range(nx):
                        value[x] *= w[x]
                        fa[x] *= w[x]
                        fb[x] *= w[x]
                        fc[x] *= w[x]
                for x in range(nx):
                    column[x] += value[x]
            if z % _RESTART == _RESTART - 1 or z == nz - 1:
                for x in range(nx):
                    subtotal += column[x]
                    column[x] = 0.0
        partial[block] = subtotal
    total = 0.0
    for block in range(blocks):
        total += partial[block]
    return total


@kernel(parallel=True, fastmath=_FAST)
def gradient_of_correlation(planes, first, second, mask, masked, rz, scale, gradient):
    """``scale * (first box(a) - second box(b) - box(a mean_I - b mean_J))`` from the in-plane boxes of the factors."""
    _, nz, ny, nx = planes.shape
    for block in prange((ny + _ROWS - 1) // _ROWS):
        low, high = block * _ROWS, min(ny, (block + 1) * _ROWS)
        a = np.empty((_ROWS, nx), np.float32)
        b = np.empty((_ROWS, nx), np.float32)
        c = np.empty((_ROWS, nx), np.float32)
        for z in range(nz):
            _slide(a, planes[0], z, rz, low, high)
            _slide(b, planes[1], z, rz, low, high)
            _slide(c, planes[2], z, rz, low, high)
            for y in range(low, high):
                i, j, g = first[z, y], second[z, y], gradient[z, y]
                row_a, row_b, row_c = a[y - low], b[y - low], c[y - low]
                for x in range(nx):
                    g[x] = scale * (i[x] * row_a[x] - j[x] * row_b[x] - row_c[x])
                if masked:
                    m = mask[z, y]
                    for x in range(nx):
                        g[x] *= m[x]
