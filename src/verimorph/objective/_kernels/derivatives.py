"""Energies of first and second derivatives of a field, with their gradients, in one pass.

A field is ``(components, z, y, x)``; in two dimensions z has length one and no edges. Rows are summed into columns and
those in a fixed order, and every voxel of a gradient is written by one thread: no number of threads changes a bit.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from verimorph.field.kernels.compiling import FAST, kernel

_FAST = FAST | {"nnan", "ninf"}
_PLANES = 16


@kernel(fastmath=_FAST, inline="never")
def _edge(a, b, absolute, coefficient, share, shared, flux):
    """Coefficient times the difference b - a, or its sign, of the edges from one row to another."""
    n = flux.size
    if absolute:
        zero = np.float32(0.0)
        for x in range(n):
            d = b[x] - a[x]
            flux[x] = coefficient if d > zero else (-coefficient if d < zero else zero)
    else:
        for x in range(n):
            flux[x] = coefficient * (b[x] - a[x])
    if shared:
        for x in range(n):
            flux[x] *= share[x]


@kernel(fastmath=_FAST, inline="never")
def _edge_share(mask, masked, weight, weighted, z, y, dz, dy, dx, out):
    """Both ends inside the mask, times the mean weight of the ends, for the edges that start in a row."""
    n = out.size
    for x in range(n):
        out[x] = 1.0
    if masked:
        first, second = mask[z, y], mask[z + dz, y + dy, dx:]
        for x in range(n):
            out[x] *= first[x] * second[x]
    if weighted:
        low, high = weight[z, y], weight[z + dz, y + dy, dx:]
        for x in range(n):
            out[x] *= np.float32(0.5) * (low[x] + high[x])


@kernel(fastmath=_FAST, inline="never")
def _gather(a, b, flux, column, sign, out):
    """Add an edge's energy to the column (sign > 0) and its flux to a row of the gradient."""
    n = flux.size
    if sign > 0:
        for x in range(n):
            column[x] += flux[x] * (b[x] - a[x])
        for x in range(n):
            out[x] -= flux[x]
    else:
        for x in range(n):
            out[x] += flux[x]


@kernel(parallel=True, fastmath=_FAST)
def first_derivatives(field, coefficients, absolute, mask, masked, weight, weighted, gradient):
    """Sum over edges of ``coefficient * difference**2`` (or its size), and the gradient of half of it (of it).

    ``coefficients`` is one for each component and axis; an edge counts by the mask and the mean weight of its ends.
    """
    components, nz, ny, nx = field.shape
    partial = np.zeros((components, nz), np.float64)
    shared = masked or weighted
    for task in prange(components * nz):
        c, z = task // nz, task % nz
        image, target = field[c], gradient[c]
        share, flux, column = np.empty(nx, np.float32), np.empty(nx, np.float32), np.zeros(nx, np.float32)
        short = nx - 1
        for y in range(ny):
            row, out = image[z, y], target[z, y]
            for x in range(nx):
                out[x] = 0.0
            for dz, dy, axis in ((1, 0, 0), (0, 1, 1)):
                coefficient = coefficients[c, axis]
                if z + dz < nz and y + dy < ny:
                    other = image[z + dz, y + dy]
                    if shared:
                        _edge_share(mask, masked, weight, weighted, z, y, dz, dy, 0, share)
                    _edge(row, other, absolute, coefficient, share, shared, flux)
                    _gather(row, other, flux, column, 1, out)
                if z - dz >= 0 and y - dy >= 0:
                    other = image[z - dz, y - dy]
                    if shared:
                        _edge_share(mask, masked, weight, weighted, z - dz, y - dy, dz, dy, 0, share)
                    _edge(other, row, absolute, coefficient, share, shared, flux)
                    _gather(other, row, flux, column, -1, out)
            if short > 0:
                if shared:
                    _edge_share(mask, masked, weight, weighted, z, y, 0, 0, 1, share[:short])
                _edge(row, row[1:], absolute, coefficients[c, 2], share, shared, flux[:short])
                _gather(row, row[1:], flux[:short], column, 1, out)
                _gather(row, row[1:], flux[:short], column, -1, out[1:])
        subtotal = 0.0
        for x in range(nx):
            subtotal += column[x]
        partial[c, z] = subtotal
    total = 0.0
    for c in range(components):
        for z in range(nz):
            total += partial[c, z]
    return total


@kernel(fastmath=_FAST, inline="never")
def _stress_row(field, inverse, mu, lam, share, shared, z, y, stress, value):
    """Stress of the stencils that start in a row, ``stress[axis, component]``, and twice their energy."""
    components, _, _, nx = field.shape
    lift = 3 - components
    n = nx - 1
    trace = np.zeros(nx, np.float32)
    for c in range(components):
        row = field[c, z, y]
        for a in range(components):
            axis = a + lift
            other = field[c, z + (1 if axis == 0 else 0), y + (1 if axis == 1 else 0), (1 if axis == 2 else 0) :]
            step, out = inverse[c, a], stress[a, c]
            for x in range(n):
                out[x] = step * (other[x] - row[x])
        diagonal = stress[c, c]
        for x in range(n):
            trace[x] += diagonal[x]
    for x in range(n):
        value[x] = lam * trace[x] * trace[x]
    for c in range(components):
        diagonal = stress[c, c]
        for x in range(n):
            e = diagonal[x]
            value[x] += np.float32(2.0) * mu * e * e
            diagonal[x] = np.float32(2.0) * mu * e + lam * trace[x]
        for a in range(c):
            first, second = stress[a, c], stress[c, a]
            for x in range(n):
                e = np.float32(0.5) * (first[x] + second[x])
                value[x] += np.float32(4.0) * mu * e * e
                first[x] = np.float32(2.0) * mu * e
                second[x] = first[x]
    if shared:
        w = share[z, y]
        for x in range(n):
            value[x] *= w[x]
        for c in range(components):
            for a in range(components):
                out = stress[a, c]
                for x in range(n):
                    out[x] *= w[x]


@kernel(fastmath=_FAST, inline="never")
def _add_scaled(source, factor, out):
    for x in range(source.size):
        out[x] += factor * source[x]


@kernel(parallel=True, fastmath=_FAST)
def elastic(field, inverse, mu, lam, share, shared, scale, gradient):
    """Sum over stencils of ``2 mu |e|^2 + lam tr(e)^2``, and ``scale`` times the gradient of half of it.

    ``inverse[component, axis]`` turns a forward difference in voxels into a derivative. A stencil is a voxel that has a
    next one along every axis.
    """
    components, nz, ny, nx = field.shape
    lift = 3 - components
    deep = nz - 1 if components == 3 else 1  # planes on which stencils start
    slabs = (nz + _PLANES - 1) // _PLANES
    partial = np.zeros(slabs, np.float64)
    for slab in prange(slabs):
        low, high = slab * _PLANES, min(nz, (slab + 1) * _PLANES)
        # What the next plane and the next row still get from the stencils of this one.
        later = np.zeros((components, ny, nx), np.float32)
        below = np.zeros((components, nx), np.float32)
        stress = np.empty((components, components, nx), np.float32)
        value, column = np.empty(nx, np.float32), np.zeros(nx, np.float32)
        subtotal = 0.0
        for z in range(low - 1 if components == 3 and low > 0 else low, high):
            inside = z >= low
            if inside:
                for c in range(components):
                    for y in range(ny):
                        out, kept = gradient[c, z, y], later[c, y]
                        for x in range(nx):
                            out[x] = kept[x]
            for c in range(components):
                for y in range(ny):
                    kept = later[c, y]
                    for x in range(nx):
                        kept[x] = 0.0
                for x in range(nx):
                    below[c, x] = 0.0
            for x in range(nx):
                subtotal += column[x]
                column[x] = 0.0
            if z >= deep:
                continue
            for y in range(ny):
                if inside:
                    for c in range(components):
                        _add_scaled(below[c], np.float32(1.0), gradient[c, z, y])
                if y == ny - 1:
                    continue
                _stress_row(field, inverse, mu, lam, share, shared, z, y, stress, value)
                n = nx - 1
                if inside:
                    for x in range(n):
                        column[x] += value[x]
                for c in range(components):
                    if components == 3:
                        _add_scaled(stress[0, c, :n], scale * inverse[c, 0], later[c, y])
                    if not inside:
                        continue
                    out = gradient[c, z, y]
                    down = stress[1 - lift, c]
                    for x in range(n):
                        below[c, x] = scale * inverse[c, 1 - lift] * down[x]
                    for a in range(components):
                        _add_scaled(stress[a, c, :n], -scale * inverse[c, a], out)
                    _add_scaled(stress[2 - lift, c, :n], scale * inverse[c, 2 - lift], out[1:])
        for x in range(nx):
            subtotal += column[x]
        partial[slab] = subtotal
    total = 0.0
    for slab in range(slabs):
        total += partial[slab]
    return total


@kernel(fastmath=_FAST, inline="never")
def _second_row(image, weights, share, shared, z, y, flat, out, column):
    """Weighted second derivatives (zz, yy, xx, zy, zx, yx) at the inner voxels of a row; adds the energy."""
    nx = image.shape[2]
    n = nx - 2
    centre = image[z, y, 1:]
    for quantity in range(6):
        target = out[quantity]
        weight = weights[quantity]
        if quantity < 3:
            oz, oy, ox = (1 if quantity == 0 else 0), (1 if quantity == 1 else 0), (1 if quantity == 2 else 0)
            if flat and quantity == 0:
                continue
            a, b = image[z - oz, y - oy, 1 - ox :], image[z + oz, y + oy, 1 + ox :]
            for x in range(n):
                target[x] = a[x] - np.float32(2.0) * centre[x] + b[x]
        else:
            if flat and quantity < 5:
                continue
            pz, py = (1 if quantity < 5 else 0), (1 if quantity == 5 else 0)  # first axis of the pair
            qy, qx = (1 if quantity == 3 else 0), (0 if quantity == 3 else 1)  # second axis
            pp, pm = image[z + pz, y + py + qy, 1 + qx :], image[z + pz, y + py - qy, 1 - qx :]
            mp, mm = image[z - pz, y - py + qy, 1 + qx :], image[z - pz, y - py - qy, 1 - qx :]
            for x in range(n):
                target[x] = np.float32(0.25) * ((pp[x] - pm[x]) - (mp[x] - mm[x]))
        if shared:
            w = share[z, y, 1:]
            for x in range(n):
                column[x] += weight * w[x] * target[x] * target[x]
            for x in range(n):
                target[x] *= weight * w[x]
        else:
            for x in range(n):
                column[x] += weight * target[x] * target[x]
            for x in range(n):
                target[x] *= weight


@kernel(parallel=True, fastmath=_FAST)
def bending(field, weights, share, shared, scale, gradient):
    """Sum over inner voxels of weighted squared second derivatives, and ``scale`` times the gradient of half of it.

    ``weights[component]`` is for zz, yy, xx, zy, zx, yx, the mixed ones with their factor 2. ``gradient`` comes zeroed.
    Slabs add to the planes next to theirs, so even ones go before odd ones.
    """
    components, nz, ny, nx = field.shape
    flat = nz == 1
    slabs = (nz + _PLANES - 1) // _PLANES
    partial = np.zeros((components, slabs), np.float64)
    n = nx - 2
    for parity in range(2):
        count = (slabs + 1 - parity) // 2
        for task in prange(components * count):
            c, slab = task // count, 2 * (task % count) + parity
            low, high = slab * _PLANES, min(nz, (slab + 1) * _PLANES)
            image, target = field[c], gradient[c]
            out = np.empty((6, nx), np.float32)
            column = np.zeros(nx, np.float32)
            subtotal = 0.0
            for z in range(low, high):
                if not flat and (z == 0 or z == nz - 1):
                    continue
                for y in range(1, ny - 1):
                    _second_row(image, weights[c], share, shared, z, y, flat, out, column)
                    for axis in range(3):
                        if flat and axis == 0:
                            continue
                        oz, oy, ox = (1 if axis == 0 else 0), (1 if axis == 1 else 0), (1 if axis == 2 else 0)
                        source = out[axis, :n]
                        _add_scaled(source, scale, target[z - oz, y - oy, 1 - ox :])
                        _add_scaled(source, scale, target[z + oz, y + oy, 1 + ox :])
                        _add_scaled(source, np.float32(-2.0) * scale, target[z, y, 1:])
                    quarter = np.float32(0.25) * scale
                    for quantity in range(5 if flat else 3, 6):
                        pz, py = (1 if quantity < 5 else 0), (1 if quantity == 5 else 0)
                        qy, qx = (1 if quantity == 3 else 0), (0 if quantity == 3 else 1)
                        source = out[quantity, :n]
                        _add_scaled(source, quarter, target[z + pz, y + py + qy, 1 + qx :])
                        _add_scaled(source, -quarter, target[z + pz, y + py - qy, 1 - qx :])
                        _add_scaled(source, -quarter, target[z - pz, y - py + qy, 1 + qx :])
                        _add_scaled(source, quarter, target[z - pz, y - py - qy, 1 - qx :])
                for x in range(nx):
                    subtotal += column[x]
                    column[x] = 0.0
            partial[c, slab] = subtotal
    total = 0.0
    for c in range(components):
        for slab in range(slabs):
            total += partial[c, slab]
    return total
