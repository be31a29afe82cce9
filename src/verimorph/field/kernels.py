"""Compiled CPU kernels of the field numerics (numba): 3-D, float32, batch 1, no gradient.

Each public function mirrors one in this folder that is written in torch, and a test holds the two together. Loops run in
parallel over slabs of axis 0 and write disjoint memory, so results do not depend on the number of threads. Reductions go
through one partial sum a slab, added in order, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

# Values may be reordered and contracted, but infinities and NaN keep their meaning.
_FAST = {"reassoc", "contract", "arcp", "nsz"}


@njit(inline="always")
def _cell(p, n):
    """Lower voxel and fraction of a clamped coordinate; the last cell is closed at its upper end."""
    if p <= 0.0:
        return 0, np.float32(0.0)
    if p >= n - 1:
        low = max(n - 2, 0)
        return low, np.float32(p - low) if n > 1 and p <= n - 1 else np.float32(min(n - 1, 1))
    low = int(p)
    return low, np.float32(p - low)


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def _warp(image, field, m, background, out):
    channels, nx, ny, nz = image.shape
    _, ox, oy, oz = field.shape
    for x in prange(ox):
        for y in range(oy):
            for z in range(oz):
                a = x + field[0, x, y, z]
                b = y + field[1, x, y, z]
                c = z + field[2, x, y, z]
                px = m[0, 0] * a + m[0, 1] * b + m[0, 2] * c + m[0, 3]
                py = m[1, 0] * a + m[1, 1] * b + m[1, 2] * c + m[1, 3]
                pz = m[2, 0] * a + m[2, 1] * b + m[2, 2] * c + m[2, 3]
                outside = (
                    px < -0.5 or py < -0.5 or pz < -0.5 or px >= nx - 0.5 or py >= ny - 0.5 or pz >= nz - 0.5
                )
                if outside or not (px == px and py == py and pz == pz):
                    for k in range(channels):
                        out[k, x, y, z] = background
                    continue
                i, fx = _cell(px, nx)
                j, fy = _cell(py, ny)
                l, fz = _cell(pz, nz)
                i1, j1, l1 = min(i + 1, nx - 1), min(j + 1, ny - 1), min(l + 1, nz - 1)
                for k in range(channels):
                    v00 = image[k, i, j, l] + fz * (image[k, i, j, l1] - image[k, i, j, l])
                    v01 = image[k, i, j1, l] + fz * (image[k, i, j1, l1] - image[k, i, j1, l])
                    v10 = image[k, i1, j, l] + fz * (image[k, i1, j, l1] - image[k, i1, j, l])
                    v11 = image[k, i1, j1, l] + fz * (image[k, i1, j1, l1] - image[k, i1, j1, l])
                    w0 = v00 + fy * (v01 - v00)
                    w1 = v10 + fy * (v11 - v10)
                    out[k, x, y, z] = w0 + fx * (w1 - w0)


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def _warp_with_gradient(image, field, m, out, gradient):
    nx, ny, nz = image.shape
    _, ox, oy, oz = field.shape
    for x in prange(ox):
        for y in range(oy):
            for z in range(oz):
                a = x + field[0, x, y, z]
                b = y + field[1, x, y, z]
                c = z + field[2, x, y, z]
                px = m[0, 0] * a + m[0, 1] * b + m[0, 2] * c + m[0, 3]
                py = m[1, 0] * a + m[1, 1] * b + m[1, 2] * c + m[1, 3]
                pz = m[2, 0] * a + m[2, 1] * b + m[2, 2] * c + m[2, 3]
                i, fx = _cell(px, nx)
                j, fy = _cell(py, ny)
                l, fz = _cell(pz, nz)
                i1, j1, l1 = min(i + 1, nx - 1), min(j + 1, ny - 1), min(l + 1, nz - 1)
                c000 = image[i, j, l]
                c001 = image[i, j, l1]
                c010 = image[i, j1, l]
                c011 = image[i, j1, l1]
                c100 = image[i1, j, l]
                c101 = image[i1, j, l1]
                c110 = image[i1, j1, l]
                c111 = image[i1, j1, l1]
                v00 = c000 + fz * (c001 - c000)
                v01 = c010 + fz * (c011 - c010)
                v10 = c100 + fz * (c101 - c100)
                v11 = c110 + fz * (c111 - c110)
                w0 = v00 + fy * (v01 - v00)
                w1 = v10 + fy * (v11 - v10)
                out[x, y, z] = w0 + fx * (w1 - w0)
                gx = np.float32(0.0)
                gy = np.float32(0.0)
                gz = np.float32(0.0)
                # A clamped coordinate does not move the value: no derivative along that axis.
                if 0 <= px <= nx - 1:
                    gx = w1 - w0
                if 0 <= py <= ny - 1:
                    gy = (v01 - v00) + fx * ((v11 - v10) - (v01 - v00))
                if 0 <= pz <= nz - 1:
                    d0 = (c001 - c000) + fy * ((c011 - c010) - (c001 - c000))
                    d1 = (c101 - c100) + fy * ((c111 - c110) - (c101 - c100))
                    gz = d0 + fx * (d1 - d0)
                if (
                    px < -0.5 or py < -0.5 or pz < -0.5 or px >= nx - 0.5 or py >= ny - 0.5 or pz >= nz - 0.5
                ):
                    gx = np.float32(0.0)
                    gy = np.float32(0.0)
                    gz = np.float32(0.0)
                gradient[0, x, y, z] = m[0, 0] * gx + m[1, 0] * gy + m[2, 0] * gz
                gradient[1, x, y, z] = m[0, 1] * gx + m[1, 1] * gy + m[2, 1] * gz
                gradient[2, x, y, z] = m[0, 2] * gx + m[1, 2] * gy + m[2, 2] * gz


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def _compose(outer, inner, out):
    _, nx, ny, nz = outer.shape
    for x in prange(nx):
        for y in range(ny):
            for z in range(nz):
                px = x + inner[0, x, y, z]
                py = y + inner[1, x, y, z]
                pz = z + inner[2, x, y, z]
                inside = (
                    px >= -0.5 and py >= -0.5 and pz >= -0.5 and px < nx - 0.5 and py < ny - 0.5 and pz < nz - 0.5
                )
                if not inside:
                    for k in range(3):
                        out[k, x, y, z] = inner[k, x, y, z]
                    continue
                i, fx = _cell(px, nx)
                j, fy = _cell(py, ny)
                l, fz = _cell(pz, nz)
                i1, j1, l1 = min(i + 1, nx - 1), min(j + 1, ny - 1), min(l + 1, nz - 1)
                for k in range(3):
                    v00 = outer[k, i, j, l] + fz * (outer[k, i, j, l1] - outer[k, i, j, l])
                    v01 = outer[k, i, j1, l] + fz * (outer[k, i, j1, l1] - outer[k, i, j1, l])
                    v10 = outer[k, i1, j, l] + fz * (outer[k, i1, j, l1] - outer[k, i1, j, l])
                    v11 = outer[k, i1, j1, l] + fz * (outer[k, i1, j1, l1] - outer[k, i1, j1, l])
                    w0 = v00 + fy * (v01 - v00)
                    w1 = v10 + fy * (v11 - v10)
                    out[k, x, y, z] = inner[k, x, y, z] + w0 + fx * (w1 - w0)


@njit(fastmath=_FAST, cache=True, nogil=True, inline="always")
def _filter_line(source, half, norm, target):
    """Filter one contiguous line; ``norm`` holds the reciprocal of the weight inside at every position."""
    n = source.shape[0]
    radius = half.shape[0] - 1
    for z in range(n):
        target[z] = half[0] * source[z]
    for k in range(1, radius + 1):
        w = half[k]
        for z in range(k, n):
            target[z] += w * source[z - k]
        for z in range(n - k):
            target[z] += w * source[z + k]
    for z in range(n):
        target[z] *= norm[z]


@njit(fastmath=_FAST, cache=True, nogil=True, inline="always")
def _filter_rows(source, half, norm, target):
    """Filter a stack of contiguous rows across the rows: ``target[y] = sum_k w_k source[y + k]``."""
    n, width = source.shape
    radius = half.shape[0] - 1
    for y in range(n):
        w = half[0] * norm[y]
        for z in range(width):
            target[y, z] = w * source[y, z]
        for k in range(1, radius + 1):
            w = half[k] * norm[y]
            if y - k >= 0 and y + k < n:
                for z in range(width):
                    target[y, z] += w * (source[y - k, z] + source[y + k, z])
            elif y - k >= 0:
                for z in range(width):
                    target[y, z] += w * source[y - k, z]
            elif y + k < n:
                for z in range(width):
                    target[y, z] += w * source[y + k, z]


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def _filter_volumes(x, h0, h1, h2, n0, n1, n2, scratch, out):
    """Separable symmetric filter of every volume of ``x``: axes 1 and 2 slab by slab in cache, then axis 0."""
    volumes, nx, ny, nz = x.shape
    radius = h0.shape[0] - 1
    for job in prange(volumes * nx):
        c, i = job // nx, job % nx
        line = np.empty((ny, nz), dtype=np.float32)
        if h2.shape[0] > 1:
            for y in range(ny):
                _filter_line(x[c, i, y], h2, n2, line[y])
        else:
            line[:, :] = x[c, i]
        if h1.shape[0] > 1:
            _filter_rows(line, h1, n1, scratch[c, i])
        else:
            scratch[c, i] = line
    for job in prange(volumes * ny):
        c, y = job // ny, job % ny
        for i in range(nx):
            w = h0[0] * n0[i]
            for z in range(nz):
                out[c, i, y, z] = w * scratch[c, i, y, z]
            for k in range(1, radius + 1):
                w = h0[k] * n0[i]
                if i - k >= 0 and i + k < nx:
                    for z in range(nz):
                        out[c, i, y, z] += w * (scratch[c, i - k, y, z] + scratch[c, i + k, y, z])
                elif i - k >= 0:
                    for z in range(nz):
                        out[c, i, y, z] += w * scratch[c, i - k, y, z]
                elif i + k < nx:
                    for z in range(nz):
                        out[c, i, y, z] += w * scratch[c, i + k, y, z]


@njit(parallel=True, fastmath=_FAST, cache=True, nogil=True)
def _jacobian(u, out):
    _, nx, ny, nz = u.shape
    for x in prange(nx):
        xa, xb = max(x - 1, 0), min(x + 1, nx - 1)
        sx = np.float32(1.0 / max(xb - xa, 1))
        for y in range(ny):
            ya, yb = max(y - 1, 0), min(y + 1, ny - 1)
            sy = np.float32(1.0 / max(yb - ya, 1))
            for z in range(nz):
                za, zb = max(z - 1, 0), min(z + 1, nz - 1)
                sz = np.float32(1.0 / max(zb - za, 1))
                one = np.float32(1.0)
                a = one + sx * (u[0, xb, y, z] - u[0, xa, y, z])
                b = sy * (u[0, x, yb, z] - u[0, x, ya, z])
                c = sz * (u[0, x, y, zb] - u[0, x, y, za])
                d = sx * (u[1, xb, y, z] - u[1, xa, y, z])
                e = one + sy * (u[1, x, yb, z] - u[1, x, ya, z])
                f = sz * (u[1, x, y, zb] - u[1, x, y, za])
                g = sx * (u[2, xb, y, z] - u[2, xa, y, z])
                h = sy * (u[2, x, yb, z] - u[2, x, ya, z])
                i = one + sz * (u[2, x, y, zb] - u[2, x, y, za])
                out[x, y, z] = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@njit(parallel=True, cache=True, nogil=True)
def _residual_partials(residual, inverse, total, count, largest):
    _, nx, ny, nz = residual.shape
    for x in prange(nx):
        s, n, top = 0.0, 0, 0.0
        for y in range(ny):
            for z in range(nz):
                px, py, pz = x + inverse[0, x, y, z], y + inverse[1, x, y, z], z + inverse[2, x, y, z]
                if px < 0 or py < 0 or pz < 0 or px > nx - 1 or py > ny - 1 or pz > nz - 1:
                    continue
                length = np.sqrt(
                    residual[0, x, y, z] ** 2 + residual[1, x, y, z] ** 2 + residual[2, x, y, z] ** 2
                )
                s += length
                n += 1
                top = max(top, length)
        total[x], count[x], largest[x] = s, n, top


def warp(image: Tensor, displacement: Tensor, matrix: np.ndarray, background: float) -> Tensor:
    """Compiled form of :func:`verimorph.field.warp` (linear)."""
    out = torch.empty(1, image.shape[1], *displacement.shape[2:])
    moving, field = image[0].contiguous().numpy(), displacement[0].contiguous().numpy()
    _warp(moving, field, matrix[:3].astype(np.float32), np.float32(background), out[0].numpy())
    return out


def warp_with_gradient(image: Tensor, displacement: Tensor, matrix: np.ndarray) -> tuple[Tensor, Tensor]:
    """Compiled form of :func:`verimorph.field.warp_with_gradient`."""
    out, gradient = torch.empty(1, 1, *displacement.shape[2:]), torch.empty_like(displacement)
    moving, field = image[0, 0].contiguous().numpy(), displacement[0].contiguous().numpy()
    _warp_with_gradient(moving, field, matrix[:3].astype(np.float32), out[0, 0].numpy(), gradient[0].numpy())
    return out, gradient


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Compiled form of :func:`verimorph.field.compose`."""
    out = torch.empty(inner.shape)
    _compose(outer[0].contiguous().numpy(), inner[0].contiguous().numpy(), out[0].numpy())
    return out


def _weights(half: tuple[float, ...] | None, n: int, renormalise: bool) -> tuple[np.ndarray, np.ndarray]:
    """Half kernel (cut to the axis) and the factor at every position of a line of n voxels."""
    weights = np.array(half or (1.0,), dtype=np.float64)[:n] if n > 1 else np.ones(1)
    norm = np.ones(n)
    if renormalise and len(weights) > 1:
        cumulative = np.concatenate([[0.0], np.cumsum(weights[1:])])
        reach = len(weights) - 1
        at = np.arange(n)
        norm = 1 / (weights[0] + cumulative[np.minimum(at, reach)] + cumulative[np.minimum(n - 1 - at, reach)])
    return weights.astype(np.float32), norm.astype(np.float32)


def separable_filter(x: Tensor, halves: Sequence[tuple[float, ...] | None], renormalise: bool) -> Tensor:
    """Compiled form of the separable symmetric filter in :mod:`verimorph.field.smooth`."""
    out = torch.empty(x.shape)
    scratch = np.empty(x.shape[1:], dtype=np.float32)
    (h0, n0), (h1, n1), (h2, n2) = (_weights(h, n, renormalise) for h, n in zip(halves, x.shape[2:], strict=True))
    _filter_volumes(x[0].contiguous().numpy(), h0, h1, h2, n0, n1, n2, scratch, out[0].numpy())
    return out


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Compiled form of :func:`verimorph.field.jacobian_determinant`."""
    out = torch.empty(1, *displacement.shape[2:])
    _jacobian(displacement[0].contiguous().numpy(), out[0].numpy())
    return out


def residual_size(residual: Tensor, inverse: Tensor) -> tuple[float, float]:
    """Mean and largest residual length where the inverse stays inside the grid."""
    slabs = residual.shape[2]
    total, count, largest = np.zeros(slabs), np.zeros(slabs, dtype=np.int64), np.zeros(slabs)
    _residual_partials(residual[0].contiguous().numpy(), inverse[0].contiguous().numpy(), total, count, largest)
    return float(total.sum() / max(count.sum(), 1)), float(largest.max(initial=0.0))
