"""Compiled Jacobian determinant and residual of an inverse."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from verimorph.field.kernels.interpolation import FAST


@njit(parallel=True, fastmath=FAST, cache=True, nogil=True)
def jacobian_determinant(u, out):
    """``det(I + du/dx)``: central differences, one-sided at the border, zero along an axis of one voxel."""
    _, nx, ny, nz = u.shape
    one = np.float32(1)
    for x in prange(nx):
        xa, xb = max(x - 1, 0), min(x + 1, nx - 1)
        sx = np.float32(1 / max(xb - xa, 1))
        for y in range(ny):
            ya, yb = max(y - 1, 0), min(y + 1, ny - 1)
            sy = np.float32(1 / max(yb - ya, 1))
            row = out[x, y]
            for z in range(nz):
                za, zb = max(z - 1, 0), min(z + 1, nz - 1)
                sz = np.float32(0.5) if zb - za == 2 else one
                a = one + sx * (u[0, xb, y, z] - u[0, xa, y, z])
                b = sy * (u[0, x, yb, z] - u[0, x, ya, z])
                c = sz * (u[0, x, y, zb] - u[0, x, y, za])
                d = sx * (u[1, xb, y, z] - u[1, xa, y, z])
                e = one + sy * (u[1, x, yb, z] - u[1, x, ya, z])
                f = sz * (u[1, x, y, zb] - u[1, x, y, za])
                g = sx * (u[2, xb, y, z] - u[2, xa, y, z])
                h = sy * (u[2, x, yb, z] - u[2, x, ya, z])
                i = one + sz * (u[2, x, y, zb] - u[2, x, y, za])
                row[z] = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@njit(parallel=True, cache=True, nogil=True)
def residual_partials(residual, inverse, total, count, largest):
    """Sum, number and largest of the residual's lengths in each slab, where ``x + w(x)`` does not leave the grid."""
    _, nx, ny, nz = residual.shape
    for x in prange(nx):
        s, n, top = 0.0, 0, 0.0
        for y in range(ny):
            for z in range(nz):
                px, py, pz = x + inverse[0, x, y, z], y + inverse[1, x, y, z], z + inverse[2, x, y, z]
                if px < 0 or py < 0 or pz < 0 or px > nx - 1 or py > ny - 1 or pz > nz - 1:
                    continue
                length = np.sqrt(residual[0, x, y, z] ** 2 + residual[1, x, y, z] ** 2 + residual[2, x, y, z] ** 2)
                if not length >= 0:
                    length = np.inf  # NaN is no inverse
                s += length
                n += 1
                top = max(top, length)
        total[x], count[x], largest[x] = s, n, top
