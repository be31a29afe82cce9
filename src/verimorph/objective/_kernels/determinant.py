"""Penalties on one-sided Jacobian determinants, with their gradients, row by row.

A field is ``(components, z, y, x)``; in two dimensions z has length one and its axis stays as it is. Cells add to the
planes of their other corners, so even slabs of planes go before odd ones and the order of all sums is fixed.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_FAST = FAST | {"nnan", "ninf"}
_PLANES = 16


@kernel(fastmath=_FAST, inline="never")
def _derivatives(field, z, y, sz, sy, sx, jacobian):
    """Derivatives I + du/dx of the cells of a row at one of their corners: rows of ``jacobian[component, axis]``."""
    components, _, _, nx = field.shape
    lift = 3 - components
    n = nx - 1
    for i in range(3):
        for a in range(3):
            out = jacobian[i, a]
            unit = np.float32(1.0) if i == a else np.float32(0.0)
            if i < lift or a < lift:
                for x in range(n):
                    out[x] = unit
                continue
            az, ay, ax = (0 if a == 0 else sz), (0 if a == 1 else sy), (0 if a == 2 else sx)
            low = field[i - lift, z + az, y + ay, ax:]
            high = field[i - lift, z + (1 if a == 0 else sz), y + (1 if a == 1 else sy), (1 if a == 2 else sx) :]
            for x in range(n):
                out[x] = unit + (high[x] - low[x])


@kernel(fastmath=_FAST, inline="never")
def _determinants(j, out):
    a, b, c = j[0, 0], j[0, 1], j[0, 2]
    d, e, f = j[1, 0], j[1, 1], j[1, 2]
    g, h, k = j[2, 0], j[2, 1], j[2, 2]
    for x in range(out.size):
        out[x] = (
            a[x] * (e[x] * k[x] - f[x] * h[x]) - b[x] * (d[x] * k[x] - f[x] * g[x]) + c[x] * (d[x] * h[x] - e[x] * g[x])
        )


@kernel(fastmath=_FAST, inline="never")
def _penalise(kind, bound, determinant, value, slope):
    """Penalty of every determinant of a row and its derivative; False where all of them are zero.

    Kinds: 0, hinge below the bound; 1, squared logarithm and that hinge; 2, growth and shrinkage squared.
    """
    n = determinant.size
    one, two, zero = np.float32(1.0), np.float32(2.0), np.float32(0.0)
    if kind == 0:
        worst = bound
        for x in range(n):
            worst = min(worst, determinant[x])
        if worst >= bound:
            return False
        for x in range(n):
            value[x] = max(bound - determinant[x], zero)
            slope[x] = -one if determinant[x] < bound else zero
    elif kind == 1:
        for x in range(n):
            held = max(determinant[x], bound)
            logarithm = np.log(held)
            value[x] = logarithm * logarithm + max(bound - determinant[x], zero)
            slope[x] = two * logarithm / held if determinant[x] > bound else -one
    else:
        for x in range(n):
            inverse = one / max(determinant[x], bound)
            growth, shrinkage = determinant[x] - one, inverse - one
            value[x] = growth * growth + shrinkage * shrinkage
            slope[x] = two * growth
            if determinant[x] > bound:
                slope[x] -= two * shrinkage * inverse * inverse
    return True


@kernel(fastmath=_FAST, inline="never")
def _add_cofactor(slope, p, q, r, s, low, high):
    """Add slope times the cofactor p q - r s to the upper end of an edge, and take it off the lower one."""
    for x in range(slope.size):
        high[x] += slope[x] * (p[x] * q[x] - r[x] * s[x])
    for x in range(slope.size):
        low[x] -= slope[x] * (p[x] * q[x] - r[x] * s[x])


@kernel(parallel=True, fastmath=_FAST)
def determinant_penalty(field, sides, kind, bound, share, shared, scale, gradient):
    """Sum a penalty over cells and ``sides`` (corners of a cell); add ``scale`` times its gradient to ``gradient``."""
    components, nz, ny, nx = field.shape
    lift = 3 - components
    cells = nz - 1 if components == 3 else 1
    slabs = (cells + _PLANES - 1) // _PLANES
    partial = np.zeros(slabs, np.float64)
    n = nx - 1
    for parity in range(2):
        for task in prange((slabs + 1 - parity) // 2):
            slab = 2 * task + parity
            jacobian = np.empty((3, 3, n), np.float32)
            determinant, value, slope = np.empty(n, np.float32), np.empty(n, np.float32), np.empty(n, np.float32)
            subtotal = 0.0
            for z in range(slab * _PLANES, min(cells, (slab + 1) * _PLANES)):
                column = np.zeros(n, np.float32)
                for y in range(ny - 1):
                    for side in range(len(sides)):
                        sz, sy, sx = sides[side, 0], sides[side, 1], sides[side, 2]
                        _derivatives(field, z, y, sz, sy, sx, jacobian)
                        _determinants(jacobian, determinant)
                        if not _penalise(kind, bound, determinant, value, slope):
                            continue
                        if shared:
                            w = share[z, y]
                            for x in range(n):
                                value[x] *= w[x]
                                slope[x] *= w[x]
                        for x in range(n):
                            column[x] += value[x]
                            slope[x] *= scale
                        for i in range(lift, 3):
                            i1, i2 = (i + 1) % 3, (i + 2) % 3
                            for a in range(lift, 3):
                                a1, a2 = (a + 1) % 3, (a + 2) % 3
                                az, ay, ax = (0 if a == 0 else sz), (0 if a == 1 else sy), (0 if a == 2 else sx)
                                bz, by, bx = (1 if a == 0 else sz), (1 if a == 1 else sy), (1 if a == 2 else sx)
                                _add_cofactor(
                                    slope,
                                    jacobian[i1, a1],
                                    jacobian[i2, a2],
                                    jacobian[i1, a2],
                                    jacobian[i2, a1],
                                    gradient[i - lift, z + az, y + ay, ax:],
                                    gradient[i - lift, z + bz, y + by, bx:],
                                )
                for x in range(n):
                    subtotal += column[x]
            partial[slab] = subtotal
    total = 0.0
    for slab in range(slabs):
        total += partial[slab]
    return total
