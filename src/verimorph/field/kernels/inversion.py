"""Compiled inversion of a displacement field.

The fixed-point iteration at a voxel needs no other voxel's inverse, so a row iterates to its end while it is in cache:
the inverse is read and written once, and rows that converge at once cost one pass.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel
from verimorph.field.kernels.interpolation import _ONE, _ZERO, _cells, _place, _read, _steps


@kernel(fastmath=FAST)
def _advance(w0, w1, w2, r0, r1, r2, step, before, tolerance, smallest_step):
    """Add ``w`` to ``r = u(x + w)``, then ``w -= step r`` where ``|r|`` is not below the tolerance; return how many."""
    still = 0
    for z in range(step.shape[0]):
        a, b, c = r0[z] + w0[z], r1[z] + w1[z], r2[z] + w2[z]
        length = np.sqrt(a * a + b * b + c * c)
        s = step[z]
        s = max(s * np.float32(0.5), smallest_step) if length > before[z] else s
        step[z] = s
        before[z] = length
        s = s if length >= tolerance else _ZERO
        still += 1 if length >= tolerance else 0
        w0[z] -= s * a
        w1[z] -= s * b
        w2[z] -= s * c
    return still


@kernel(fastmath=FAST)
def _tally(where, shape, length):
    """Sum, number and largest of the residuals of a row whose positions do not leave the grid; NaN is infinite."""
    total, count, largest = 0.0, 0, 0.0
    tx, ty, tz = np.float32(shape[0] - 1), np.float32(shape[1] - 1), np.float32(shape[2] - 1)
    for z in range(length.shape[0]):
        px, py, pz = where[0, z], where[1, z], where[2, z]
        if px < _ZERO or py < _ZERO or pz < _ZERO or px > tx or py > ty or pz > tz:
            continue
        value = float(length[z]) if length[z] >= _ZERO else np.inf
        total += value
        count += 1
        largest = max(largest, value)
    return total, count, largest


@kernel(parallel=True, fastmath=FAST)
def invert(u, shape, w, m, iterations, tolerance, smallest_step, total, count, largest):
    """Improve ``w`` in place until ``w + u(x + w) = 0``; ``u`` is ``(3, voxels)`` and ``m`` the identity.

    ``total``, ``count`` and ``largest`` take the residual of every slab, that of the ``w`` which is left.
    """
    _, nx, ny, nz = w.shape
    steps = _steps(shape)
    for x in prange(nx):
        where, fraction = np.empty((3, nz), np.float32), np.empty((3, nz), np.float32)
        corner, inside = np.empty(nz, np.int64), np.empty(nz, np.bool_)
        residual = np.empty((3, nz), np.float32)
        step, length = np.empty(nz, np.float32), np.empty(nz, np.float32)
        slab_total, slab_count, slab_largest = 0.0, 0, 0.0
        for y in range(ny):
            step[:] = _ONE
            length[:] = np.float32(np.inf)
            for n in range(iterations + 1):
                _place(w, m, x, y, where)
                _cells(where, shape, corner, fraction, inside)
                for k in range(3):
                    _read(u[k], corner, fraction, steps, residual[k])
                enough = np.float32(np.inf) if n == iterations else tolerance
                if not _advance(
                    w[0, x, y], w[1, x, y], w[2, x, y], residual[0], residual[1], residual[2],
                    step, length, enough, smallest_step,
                ):  # fmt: skip
                    break
            row_total, row_count, row_largest = _tally(where, shape, length)
            slab_total += row_total
            slab_count += row_count
            slab_largest = max(slab_largest, row_largest)
        total[x], count[x], largest[x] = slab_total, slab_count, slab_largest
