"""LNCC with a box window: value and gradient in four passes over the volume, factors written over the sums.

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
    """Box sum of one plane; ``across`` is scratch of the plane's size. ``target`` may be ``source``."""
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
def planes_of_products(first, first_offset, second, second_offset, mask, masked, ry, rx, out):
    """In-plane box sums of products of two images less their offsets, counted inside the mask.

    ``out`` holds, by its length, of the second image J the sums of J, J^2 (2), of first and second also I J (3), and of
    the first also I, I^2 (5). Plane z of the images goes to plane ``z + out.shape[1] - nz``.
    """
    nz, ny, nx = second.shape
    lead = out.shape[1] - nz
    for z in prange(nz):
        product = np.empty((ny, nx), np.float32)
        across = np.empty((ny, nx), np.float32)
        for quantity in range(out.shape[0]):
            for y in range(ny):
                a, b, p = first[z, y], second[z, y], product[y]
                if quantity == 0:
                    for x in range(nx):
                        p[x] = b[x] - second_offset
                elif quantity == 1:
                    for x in range(nx):
                        j = b[x] - second_offset
                        p[x] = j * j
                elif quantity == 2:
                    for x in range(nx):
                        p[x] = (a[x] - first_offset) * (b[x] - second_offset)
                elif quantity == 3:
                    for x in range(nx):
                        p[x] = a[x] - first_offset
                else:
                    for x in range(nx):
                        i = a[x] - first_offset
                        p[x] = i * i
                if masked:
                    m = mask[z, y]
                    for x in range(nx):
                        p[x] *= m[x]
            _box_plane(product, across, out[quantity, lead + z], ry, rx)


@kernel(parallel=True, fastmath=_FAST)
def planes_of_boxes(volumes, count, nz, ry, rx):
    """In-plane box sums of the first ``nz`` planes of the first ``count`` volumes, in place."""
    _, _, ny, nx = volumes.shape
    for z in prange(nz):
        across = np.empty((ny, nx), np.float32)
        for quantity in range(count):
            _box_plane(volumes[quantity, z], across, volumes[quantity, z], ry, rx)


@kernel(fastmath=_FAST, inline="never")
def _mean_and_scatter(sums, squares, inverse, mean, scatter):
    """Window mean and sum of squared deviations of one row: one place, so that kept and fresh ones are the same."""
    for x in range(sums.size):
        mean[x] = sums[x] * inverse[x]
        scatter[x] = max(squares[x] - sums[x] * mean[x], np.float32(0.0))


@kernel(parallel=True, fastmath=_FAST)
def fixed_statistics(planes, nz_count, ny_count, nx_count, total_count, counted, rz, mean, scatter):
    """Window mean and sum of squared deviations from the in-plane sums of an image and its square."""
    _, nz, ny, nx = planes.shape
    for block in prange((ny + _ROWS - 1) // _ROWS):
        first, last = block * _ROWS, min(ny, (block + 1) * _ROWS)
        sums = np.empty((_ROWS, nx), np.float32)
        squares = np.empty((_ROWS, nx), np.float32)
        inverse = np.empty(nx, np.float32)
        for z in range(nz):
            _slide(sums, planes[0], z, rz, first, last)
            _slide(squares, planes[1], z, rz, first, last)
            for y in range(first, last):
                if counted:
                    n = total_count[z, y]
                    for x in range(nx):
                        inverse[x] = np.float32(1.0) / n[x]
                else:
                    outer = nz_count[z] * ny_count[y]
                    for x in range(nx):
                        inverse[x] = np.float32(1.0) / (outer * nx_count[x])
                _mean_and_scatter(sums[y - first], squares[y - first], inverse, mean[z, y], scatter[z, y])


@kernel(parallel=True, fastmath=_FAST)
def correlation(
    planes, mean, scatter, known, nz_count, ny_count, nx_count, total_count, counted, share, shared, rz, epsilon
):
    """Squared local correlation summed over the volume; the factors of its gradient take the place of the sums.

    ``planes`` holds in-plane sums as `planes_of_products` leaves them, ``rz + 1`` planes late, so that what is written
    at plane z (a, b and a mean_I - b mean_J of the formula in ``lncc``) covers only what no later plane reads.
    ``share`` is mask times weight. Where ``known`` is false, ``mean`` and ``scatter`` of the first image come from its
    sums.
    """
    _, late, ny, nx = planes.shape
    nz = late - rz - 1
    blocks = (ny + _ROWS - 1) // _ROWS
    partial = np.zeros(blocks, np.float64)
    zero = np.float32(0.0)
    for block in prange(blocks):
        first, last = block * _ROWS, min(ny, (block + 1) * _ROWS)
        running = np.empty((5, _ROWS, nx), np.float32)
        value = np.empty(nx, np.float32)
        inverse = np.empty(nx, np.float32)
        own_mean = np.empty(nx, np.float32)
        own_scatter = np.empty(nx, np.float32)
        column = np.zeros(nx, np.float32)
        subtotal = 0.0
        for z in range(nz):
            for quantity in range(3 if known else 5):
                _slide(running[quantity], planes[quantity][rz + 1 :], z, rz, first, last)
            for y in range(first, last):
                s, q, c = running[0, y - first], running[1, y - first], running[2, y - first]
                fa, fb, fc = planes[0, z, y], planes[1, z, y], planes[2, z, y]
                if counted:
                    n = total_count[z, y]
                    for x in range(nx):
                        inverse[x] = np.float32(1.0) / n[x]
                else:
                    outer = nz_count[z] * ny_count[y]
                    for x in range(nx):
                        inverse[x] = np.float32(1.0) / (outer * nx_count[x])
                if known:
                    m, v = mean[z, y], scatter[z, y]
                else:
                    m, v = own_mean, own_scatter
                    _mean_and_scatter(running[3, y - first], running[4, y - first], inverse, m, v)
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
def gradient_of_correlation(planes, first, first_offset, second, second_offset, mask, masked, rz, scale, gradient):
    """``scale * (I box(a) - J box(b) - box(a mean_I - b mean_J))`` from the in-plane boxes of the factors.

    I and J are the images less their offsets.
    """
    nz, ny, nx = first.shape
    for block in prange((ny + _ROWS - 1) // _ROWS):
        low, high = block * _ROWS, min(ny, (block + 1) * _ROWS)
        a = np.empty((_ROWS, nx), np.float32)
        b = np.empty((_ROWS, nx), np.float32)
        c = np.empty((_ROWS, nx), np.float32)
        for z in range(nz):
            _slide(a, planes[0][:nz], z, rz, low, high)
            _slide(b, planes[1][:nz], z, rz, low, high)
            _slide(c, planes[2][:nz], z, rz, low, high)
            for y in range(low, high):
                i, j, g = first[z, y], second[z, y], gradient[z, y]
                row_a, row_b, row_c = a[y - low], b[y - low], c[y - low]
                for x in range(nx):
                    g[x] = scale * ((i[x] - first_offset) * row_a[x] - (j[x] - second_offset) * row_b[x] - row_c[x])
                if masked:
                    m = mask[z, y]
                    for x in range(nx):
                        g[x] *= m[x]
