"""Compiled trilinear interpolation: warp, warp with its derivative, compose, sample, and their adjoints.

Every kernel works a row (the last axis) at a time in three short loops: where each voxel lands, which cell of the image
that is, and the interpolation itself. Apart, the first two run in vector registers; the last has no branch and no index
test, because positions are clamped into the image first and outside is a mask applied at the end. An axis of one voxel
has step 0 to the next voxel, so it needs no case of its own. NaN positions clamp to 0 and count as outside.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


@kernel(fastmath=FAST)
def _place(field, m, x, y, where):
    """Positions ``m @ (i + u(i))`` of one row, ``where`` is ``(3, n)``."""
    u0, u1, u2 = field[0, x, y], field[1, x, y], field[2, x, y]
    w0, w1, w2 = where[0], where[1], where[2]
    m00, m01, m02, m03 = m[0, 0], m[0, 1], m[0, 2], m[0, 3]
    m10, m11, m12, m13 = m[1, 0], m[1, 1], m[1, 2], m[1, 3]
    m20, m21, m22, m23 = m[2, 0], m[2, 1], m[2, 2], m[2, 3]
    row, column = np.float32(x), np.float32(y)
    for z in range(u0.shape[0]):
        a, b, c = row + u0[z], column + u1[z], np.float32(z) + u2[z]
        w0[z] = m00 * a + m01 * b + m02 * c + m03
        w1[z] = m10 * a + m11 * b + m12 * c + m13
        w2[z] = m20 * a + m21 * b + m22 * c + m23


@kernel(fastmath=FAST)
def _steps(shape):
    """Distance in memory to the next voxel along each axis; 0 where an axis has only one."""
    nx, ny, nz = shape
    return np.uintp(ny * nz if nx > 1 else 0), np.uintp(nz if ny > 1 else 0), np.uintp(1 if nz > 1 else 0)


@kernel(fastmath=FAST)
def _cells(where, shape, corner, fraction, inside):
    """Lower corner (flat index), fraction and test of inside for every position of a row."""
    nx, ny, nz = shape
    w0, w1, w2 = where[0], where[1], where[2]
    f0, f1, f2 = fraction[0], fraction[1], fraction[2]
    tx, ty, tz = np.float32(nx - 1), np.float32(ny - 1), np.float32(nz - 1)
    hx, hy, hz = np.float32(nx - 0.5), np.float32(ny - 0.5), np.float32(nz - 0.5)
    lx, ly, lz = np.int32(max(nx - 2, 0)), np.int32(max(ny - 2, 0)), np.int32(max(nz - 2, 0))
    for z in range(corner.shape[0]):
        px, py, pz = w0[z], w1[z], w2[z]
        inside[z] = (px >= -_HALF) & (py >= -_HALF) & (pz >= -_HALF) & (px < hx) & (py < hy) & (pz < hz)
        px = min(px, tx) if px > _ZERO else _ZERO
        py = min(py, ty) if py > _ZERO else _ZERO
        pz = min(pz, tz) if pz > _ZERO else _ZERO
        i, j, l = min(np.int32(px), lx), min(np.int32(py), ly), min(np.int32(pz), lz)
        corner[z] = (np.int64(i) * ny + j) * nz + l
        f0[z], f1[z], f2[z] = px - np.float32(i), py - np.float32(j), pz - np.float32(l)


@kernel(fastmath=FAST)
def _free(where, shape, inside, free):
    """Where the value moves with the position, an axis at a time: a clamped coordinate has no derivative."""
    for axis in range(3):
        w, f = where[axis], free[axis]
        top = np.float32(shape[axis] - 1)
        for z in range(inside.shape[0]):
            f[z] = _ONE if inside[z] & (w[z] >= _ZERO) & (w[z] <= top) else _ZERO


@kernel(fastmath=FAST)
def _read(values, corner, fraction, steps, out):
    """Trilinear interpolation of one channel (flat) at the cells of a row."""
    dx, dy, dz = steps
    f0, f1, f2 = fraction[0], fraction[1], fraction[2]
    for z in range(corner.shape[0]):
        c = np.uintp(corner[z])
        fz = f2[z]
        v00 = values[c] + fz * (values[c + dz] - values[c])
        c += dy
        v01 = values[c] + fz * (values[c + dz] - values[c])
        c += dx
        v11 = values[c] + fz * (values[c + dz] - values[c])
        c -= dy
        v10 = values[c] + fz * (values[c + dz] - values[c])
        w0 = v00 + f1[z] * (v01 - v00)
        w1 = v10 + f1[z] * (v11 - v10)
        out[z] = w0 + f0[z] * (w1 - w0)


@kernel(fastmath=FAST)
def _read_with_gradient(values, corner, fraction, steps, out, gradient):
    """As :func:`_read`, and the derivative of the value with respect to the position, ``(3, n)``."""
    dx, dy, dz = steps
    f0, f1, f2 = fraction[0], fraction[1], fraction[2]
    g0, g1, g2 = gradient[0], gradient[1], gradient[2]
    for z in range(corner.shape[0]):
        c = np.uintp(corner[z])
        c000, c001 = values[c], values[c + dz]
        c += dy
        c010, c011 = values[c], values[c + dz]
        c += dx
        c110, c111 = values[c], values[c + dz]
        c -= dy
        c100, c101 = values[c], values[c + dz]
        fx, fy, fz = f0[z], f1[z], f2[z]
        d00, d01, d10, d11 = c001 - c000, c011 - c010, c101 - c100, c111 - c110
        v00, v01, v10, v11 = c000 + fz * d00, c010 + fz * d01, c100 + fz * d10, c110 + fz * d11
        e0, e1 = v01 - v00, v11 - v10
        w0, w1 = v00 + fy * e0, v10 + fy * e1
        d0, d1 = d00 + fy * (d01 - d00), d10 + fy * (d11 - d10)
        out[z] = w0 + fx * (w1 - w0)
        g0[z] = w1 - w0
        g1[z] = e0 + fx * (e1 - e0)
        g2[z] = d0 + fx * (d1 - d0)


@kernel(fastmath=FAST)
def _through_matrix(m, gradient, free, x, y, out):
    """Chain rule through the matrix: ``out = m[:3, :3].T @ (gradient * free)``, one row."""
    g0, g1, g2, s0, s1, s2 = gradient[0], gradient[1], gradient[2], free[0], free[1], free[2]
    o0, o1, o2 = out[0, x, y], out[1, x, y], out[2, x, y]
    m00, m01, m02 = m[0, 0], m[0, 1], m[0, 2]
    m10, m11, m12 = m[1, 0], m[1, 1], m[1, 2]
    m20, m21, m22 = m[2, 0], m[2, 1], m[2, 2]
    for z in range(g0.shape[0]):
        a, b, c = g0[z] * s0[z], g1[z] * s1[z], g2[z] * s2[z]
        o0[z] = m00 * a + m10 * b + m20 * c
        o1[z] = m01 * a + m11 * b + m21 * c
        o2[z] = m02 * a + m12 * b + m22 * c


@kernel(parallel=True, fastmath=FAST)
def warp(image, shape, field, m, background, out):
    """``out(c, i) = image(c, m @ (i + u(i)))``; ``image`` is ``(C, voxels)``."""
    _, ox, oy, oz = field.shape
    steps = _steps(shape)
    for x in prange(ox):
        where, fraction = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        corner, inside = np.empty(oz, np.int64), np.empty(oz, np.bool_)
        for y in range(oy):
            _place(field, m, x, y, where)
            _cells(where, shape, corner, fraction, inside)
            for k in range(image.shape[0]):
                row = out[k, x, y]
                _read(image[k], corner, fraction, steps, row)
                for z in range(oz):
                    row[z] = row[z] if inside[z] else background


@kernel(parallel=True, fastmath=FAST)
def warp_with_gradient(image, shape, field, m, out, gradient):
    """Value (edge repeated outside) and derivative (zero outside); ``image`` is flat."""
    _, ox, oy, oz = field.shape
    steps = _steps(shape)
    for x in prange(ox):
        where, fraction = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        corner, inside = np.empty(oz, np.int64), np.empty(oz, np.bool_)
        slope, free = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        for y in range(oy):
            _place(field, m, x, y, where)
            _cells(where, shape, corner, fraction, inside)
            _free(where, shape, inside, free)
            _read_with_gradient(image, corner, fraction, steps, out[x, y], slope)
            _through_matrix(m, slope, free, x, y, gradient)


@kernel(parallel=True, fastmath=FAST)
def compose(outer, shape, inner, m, out):
    """``out(i) = inner(i) + outer(i + inner(i))``, ``outer`` zero outside; ``m`` is the identity."""
    _, ox, oy, oz = inner.shape
    steps = _steps(shape)
    for x in prange(ox):
        where, fraction = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        corner, inside = np.empty(oz, np.int64), np.empty(oz, np.bool_)
        for y in range(oy):
            _place(inner, m, x, y, where)
            _cells(where, shape, corner, fraction, inside)
            for k in range(3):
                row, start = out[k, x, y], inner[k, x, y]
                _read(outer[k], corner, fraction, steps, row)
                for z in range(oz):
                    row[z] = start[z] + (row[z] if inside[z] else _ZERO)


@kernel(parallel=True, fastmath=FAST)
def sample(image, shape, index, background, out):
    """``out(c, n) = image(c, index(:, n))`` for a list of positions."""
    count, piece = index.shape[1], 1024
    steps = _steps(shape)
    for job in prange((count + piece - 1) // piece):
        begin, end = job * piece, min(count, (job + 1) * piece)
        fraction, corner = np.empty((3, end - begin), np.float32), np.empty(end - begin, np.int64)
        inside = np.empty(end - begin, np.bool_)
        _cells(index[:, begin:end], shape, corner, fraction, inside)
        for k in range(image.shape[0]):
            row = out[k, begin:end]
            _read(image[k], corner, fraction, steps, row)
            for n in range(end - begin):
                row[n] = row[n] if inside[n] else background


@kernel(parallel=True)
def nearest_index(field, shape, m, out):
    """Flat index of the voxel nearest to ``m @ (i + u(i))``, halves up, -1 outside; float64 as ITK computes it."""
    nx, ny, nz = shape
    _, ox, oy, oz = field.shape
    for x in prange(ox):
        for y in range(oy):
            for z in range(oz):
                a, b, c = x + field[0, x, y, z], y + field[1, x, y, z], z + field[2, x, y, z]
                px = m[0, 0] * a + m[0, 1] * b + m[0, 2] * c + m[0, 3] + 0.5
                py = m[1, 0] * a + m[1, 1] * b + m[1, 2] * c + m[1, 3] + 0.5
                pz = m[2, 0] * a + m[2, 1] * b + m[2, 2] * c + m[2, 3] + 0.5
                if px >= 0 and py >= 0 and pz >= 0 and px < nx and py < ny and pz < nz:
                    out[x, y, z] = (np.int64(px) * ny + np.int64(py)) * nz + np.int64(pz)
                else:
                    out[x, y, z] = -1


@kernel(parallel=True, fastmath=FAST)
def warp_backward_field(image, shape, field, m, sensitivity, gradient):
    """Derivative of ``sum(sensitivity * warp(image))`` with respect to the field; slopes are recomputed, not stored."""
    _, ox, oy, oz = field.shape
    steps = _steps(shape)
    for x in prange(ox):
        where, fraction = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        corner, inside = np.empty(oz, np.int64), np.empty(oz, np.bool_)
        slope, free = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        total, value = np.empty((3, oz), np.float32), np.empty(oz, np.float32)
        for y in range(oy):
            _place(field, m, x, y, where)
            _cells(where, shape, corner, fraction, inside)
            _free(where, shape, inside, free)
            total[:] = _ZERO
            for k in range(image.shape[0]):
                _read_with_gradient(image[k], corner, fraction, steps, value, slope)
                weight = sensitivity[k, x, y]
                for axis in range(3):
                    t, s = total[axis], slope[axis]
                    for z in range(oz):
                        t[z] += weight[z] * s[z]
            _through_matrix(m, total, free, x, y, gradient)


@kernel(fastmath=FAST)
def _spread(values, corner, fraction, inside, steps, first, last, target):
    """Adjoint of :func:`_read` for one row: add to the voxels of ``target`` (flat) from ``first`` up to ``last``."""
    dx, dy, dz = steps
    f0, f1, f2 = fraction[0], fraction[1], fraction[2]
    for z in range(corner.shape[0]):
        if not inside[z]:
            continue
        s, fy, fz = values[z], f1[z], f2[z]
        if first <= corner[z] < last:
            c = np.uintp(corner[z])
            a = s * (_ONE - f0[z])
            b = a * fy
            a -= b
            target[c] += a * (_ONE - fz)
            target[c + dz] += a * fz
            target[c + dy] += b * (_ONE - fz)
            target[c + dy + dz] += b * fz
        if first <= corner[z] + np.int64(dx) < last:
            c = np.uintp(corner[z]) + dx
            a = s * f0[z]
            b = a * fy
            a -= b
            target[c] += a * (_ONE - fz)
            target[c + dz] += a * fz
            target[c + dy] += b * (_ONE - fz)
            target[c + dy + dz] += b * fz


@kernel(parallel=True, fastmath=FAST)
def warp_backward_image(shape, field, m, sensitivity, gradient):
    """Derivative of ``sum(sensitivity * warp(image))`` with respect to the image: the adjoint of the interpolation.

    Each job owns a block of slabs of the image and adds, in the order of the output voxels, whatever lands there. No
    two jobs write one voxel and the order of additions does not depend on the blocks: bits do not depend on threads.
    Rows that miss a block are skipped by their extent along axis 0, found in a first pass.
    """
    nx, ny, nz = shape
    channels, ox, oy, oz = sensitivity.shape
    block, slab = 16, ny * nz
    steps = _steps(shape)
    reach = np.empty((ox, oy, 2), np.int64)
    for x in prange(ox):
        where, fraction = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        corner, inside = np.empty(oz, np.int64), np.empty(oz, np.bool_)
        for y in range(oy):
            _place(field, m, x, y, where)
            _cells(where, shape, corner, fraction, inside)
            low, high = np.int64(nx * slab), np.int64(-1)
            for z in range(oz):
                low = min(low, corner[z]) if inside[z] else low
                high = max(high, corner[z]) if inside[z] else high
            reach[x, y, 0], reach[x, y, 1] = low, high
    for job in prange((nx + block - 1) // block):
        first, last = job * block * slab, min(nx, (job + 1) * block) * slab
        gradient[:, first:last] = _ZERO
        where, fraction = np.empty((3, oz), np.float32), np.empty((3, oz), np.float32)
        corner, inside = np.empty(oz, np.int64), np.empty(oz, np.bool_)
        for x in range(ox):
            for y in range(oy):
                if reach[x, y, 1] + slab < first or reach[x, y, 0] >= last:
                    continue
                _place(field, m, x, y, where)
                _cells(where, shape, corner, fraction, inside)
                for k in range(channels):
                    _spread(sensitivity[k, x, y], corner, fraction, inside, steps, first, last, gradient[k])
