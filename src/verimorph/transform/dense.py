"""Dense forms of any transform: its displacement and its Jacobian determinant on a grid.

A transform made of a field on the grid in question and linear maps after it (the form a registration returns) is
treated without evaluating points: one linear expression in the field. Everything else goes through ``map_points``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph import field
from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.transform.protocol import Dense, Linear, Transform, parts_of
from verimorph.transform.trace import Trace, slab_index, slabs, transformed


class FieldThenMatrix(NamedTuple):
    """A transform seen from one grid as ``x -> matrix @ (grid @ (i + u(i)))``."""

    displacement: Float[Tensor, "1 d *space"] | None
    """u in voxels of the grid; None for no displacement at all."""
    matrix: Float[ndarray, "h h"]
    """World matrix that acts after the field."""


def field_then_matrix(transform: Transform, grid: Grid) -> FieldThenMatrix | None:
    """Return the transform as a field on ``grid`` followed by a matrix, if that is what it is; else None.

    Parts are recognised by what they carry (``matrix``, or ``displacement`` with its ``grid``), not by their class.
    """
    check_dimensions(transform, grid)
    parts = parts_of(transform)
    displacement = None
    matrix = np.eye(grid.ndim + 1)
    for position, part in enumerate(parts):
        if isinstance(part, Linear):
            matrix = part.matrix @ matrix
        elif position == 0 and isinstance(part, Dense) and part.grid.is_close(grid, tolerance_mm=1e-4):
            displacement = part.displacement.detach()
        else:
            return None
    return FieldThenMatrix(displacement, matrix)


def check_dimensions(transform: Transform, grid: Grid) -> None:
    """Refuse to use a transform on a grid with another number of axes."""
    if transform.ndim != grid.ndim:
        raise InputError(f"a {transform.ndim}-D transform cannot be used on a {grid.ndim}-D grid ({grid})")


def displacement_on(transform: Transform, grid: Grid) -> Float[Tensor, "1 d *space"]:
    """Dense displacement of the whole transform on ``grid``, ``(1, D, *shape)`` float32, voxels of ``grid``.

    For a field u on ``grid`` followed by a world matrix L, with ``K = A^-1 L A`` in voxels:
    ``w(i) = K_lin u(i) + (K - I) i``. The result may share memory with the transform; do not write to it.
    """
    simple = field_then_matrix(transform, grid)
    d = grid.ndim
    if simple is not None and np.allclose(simple.matrix, np.eye(d + 1), rtol=0, atol=1e-12):
        return simple.displacement if simple.displacement is not None else torch.zeros(1, d, *grid.shape)
    out = torch.empty(1, d, *grid.shape, dtype=torch.float32)
    if simple is not None:
        voxel = grid.inverse_affine @ simple.matrix @ grid.affine
        growth = voxel - np.diag([*np.ones(d), 0.0])
        for planes in slabs(grid.shape):
            linear = transformed(growth, slab_index(grid.shape, planes)).reshape(d, -1, *grid.shape[1:])
            slab = torch.from_numpy(linear).to(torch.float32)
            if simple.displacement is not None:
                turn = torch.from_numpy(voxel[:d, :d]).to(torch.float32)
                slab += torch.einsum("ij,j...->i...", turn, simple.displacement[0, :, planes].cpu())
            out[0, :, planes] = slab
        return out
    trace = Trace(transform, grid, grid)
    for planes in slabs(grid.shape):
        slab = trace(planes) - slab_index(grid.shape, planes)
        out[0, :, planes] = torch.from_numpy(slab.reshape(d, -1, *grid.shape[1:])).to(torch.float32)
    return out


def jacobian_determinant(transform: Transform, grid: Grid) -> Float[Tensor, "1 *space"]:
    """Determinant of the derivative of the whole map at every voxel of ``grid``, ``(1, *shape)``.

    In world terms: the affine of the grid cancels, ``det(A (I + dw/di) A^-1) = det(I + dw/di)``. A matrix that acts
    after the field multiplies the determinant and needs no dense field of its own.
    """
    simple = field_then_matrix(transform, grid)
    if simple is None:
        return field.jacobian_determinant(displacement_on(transform, grid))
    scale = float(np.linalg.det(simple.matrix[: grid.ndim, : grid.ndim]))
    if simple.displacement is None:
        return torch.full((1, *grid.shape), scale)
    return field.jacobian_determinant(simple.displacement) * scale
