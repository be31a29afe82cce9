"""Compiled Jacobian determinant."""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel


@kernel(fastmath=FAST)
def _determinant(a, b, c, d, e, f, g, h, i):
    """Determinant of ``I + [[a, b, c], [d, e, f], [g, h, i]]``."""
    a, e, i = a + np.float32(1), e + np.float32(1), i + np.float32(1)
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@kernel(fastmath=FAST)
def _determinants(x0, x1, sx, y0, y1, sy, row, out):
    """One row: ``x0`` and ``x1`` are its neighbours along axis 0, ``(3, n)``; ``y0``, ``y1`` along axis 1."""
    (x00, x01, x02), (x10, x11, x12) = (x0[0], x0[1], x0[2]), (x1[0], x1[1], x1[2])
    (y00, y01, y02), (y10, y11, y12) = (y0[0], y0[1], y0[2]), (y1[0], y1[1], y1[2])
    r0, r1, r2 = row[0], row[1], row[2]
    n, half = out.shape[0], np.float32(0.5)
    for z in range(1, n - 1):
        below, above = np.uintp(z - 1), np.uintp(z + 1)
        out[z] = _determinant(
            sx * (x10[z] - x00[z]), sy * (y10[z] - y00[z]), half * (r0[above] - r0[below]),
            sx * (x11[z] - x01[z]), sy * (y11[z] - y01[z]), half * (r1[above] - r1[below]),
            sx * (x12[z] - x02[z]), sy * (y12[z] - y02[z]), half * (r2[above] - r2[below]),
        )  # fmt: skip
    for z in (0, n - 1):
        first, last = max(z - 1, 0), min(z + 1, n - 1)
        out[z] = _determinant(
            sx * (x10[z] - x00[z]), sy * (y10[z] - y00[z]), r0[last] - r0[first],
            sx * (x11[z] - x01[z]), sy * (y11[z] - y01[z]), r1[last] - r1[first],
            sx * (x12[z] - x02[z]), sy * (y12[z] - y02[z]), r2[last] - r2[first],
        )  # fmt: skip


@kernel(parallel=True, fastmath=FAST)
def jacobian_determinant(u, out):
    """``det(I + du/dx)``: central differences, one-sided at the border, zero along an axis of one voxel."""
    _, nx, ny, _ = u.shape
    for x in prange(nx):
        xa, xb = max(x - 1, 0), min(x + 1, nx - 1)
        sx = np.float32(1 / max(xb - xa, 1))
        for y in range(ny):
            ya, yb = max(y - 1, 0), min(y + 1, ny - 1)
            sy = np.float32(1 / max(yb - ya, 1))
            _determinants(u[:, xa, y], u[:, xb, y], sx, u[:, x, ya], u[:, x, yb], sy, u[:, x, y], out[x, y])
