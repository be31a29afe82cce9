"""Local volume change of a field."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.field.backend import compiled


def _difference(u: Tensor, axis: int) -> Tensor:
    """Central difference along a spatial axis, one-sided at the two ends, zero where the axis has one voxel."""
    if u.shape[axis] == 1:
        return torch.zeros_like(u)
    (gradient,) = torch.gradient(u, dim=axis)
    return gradient


def jacobian_determinant(displacement: Float[Tensor, "b d *space"]) -> Float[Tensor, "b *space"]:
    """``det(I + du/dx)`` at every voxel, by central differences (one-sided at the border).

    1 is no change, below 0 is a fold. The value is that of the map on its own grid; a linear part that follows
    multiplies it by that part's determinant.

    Examples
    --------
    >>> grow = 0.1 * torch.arange(8.0)[:, None].expand(8, 8)  # ten per cent longer along axis 0
    >>> jacobian_determinant(torch.stack([grow, torch.zeros(8, 8)])[None])[0, 4, 4]
    tensor(1.1000)
    """
    kernels = compiled(displacement)
    if kernels is not None:
        return kernels.jacobian_determinant(displacement)
    d = displacement.shape[1]
    rows = [[_difference(displacement[:, i], axis + 1) for axis in range(d)] for i in range(d)]
    for i in range(d):
        rows[i][i] = rows[i][i] + 1
    if d == 2:
        return rows[0][0] * rows[1][1] - rows[0][1] * rows[1][0]
    return (
        rows[0][0] * (rows[1][1] * rows[2][2] - rows[1][2] * rows[2][1])
        - rows[0][1] * (rows[1][0] * rows[2][2] - rows[1][2] * rows[2][0])
        + rows[0][2] * (rows[1][0] * rows[2][1] - rows[1][1] * rows[2][0])
    )
