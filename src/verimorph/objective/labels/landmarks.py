"""Distance of corresponding points, and distance to a known field: supervision in millimetres."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError
from verimorph.field import sample_field
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, over_batch, reduce_local, spacing_of


def _length(vectors: Tensor, dim: int, squared: bool) -> Tensor:
    """Length (or its square) along a dimension; the length's slope at 0 is 0."""
    square = vectors.square().sum(dim, keepdim=True)
    if squared:
        return square
    zero = square == 0
    return torch.where(zero, torch.zeros_like(square), square.masked_fill(zero, 1.0).sqrt())


@full_precision
def landmark_distance(
    field: Float[Tensor, "b d *space"],
    fixed_points: Float[Tensor, "b n d"],
    moving_points: Float[Tensor, "b m d"],
    *,
    squared: bool = False,
    weight: Float[Tensor, "b n"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mean distance between where the field sends the fixed landmarks and where the moving ones are.

    With p' = p_F + u(p_F), u read linearly: mean_n | S (p' - p_M) |, S the spacing; squared on request.
    Range [0, inf), 0 best; voxels, or millimetres with ``spacing`` (mm^2 where squared). Acts on the forward
    displacement, which maps points of the fixed image.

    Parameters
    ----------
    field
        Displacement in voxels of the fixed grid.
    fixed_points, moving_points
        Corresponding points as voxel indices of the *fixed* grid (the moving ones through the world). Rows with NaN
        (padding of a batch) are left out.
    weight
        Confidence of every pair, 1 = default.
    map
        True for one distance a landmark ``(b, n)``, weighted.

    Differs from: Learn2Reg's target error, which reads the field by cubic splines and scales by the moving spacing.
    """
    if fixed_points.shape != moving_points.shape or fixed_points.ndim != 3:
        raise InputError(
            "landmarks must be two lists (batch, n, axes) of one length, got "
            f"{tuple(fixed_points.shape)} and {tuple(moving_points.shape)}"
        )
    ndim = field.shape[1]
    valid = (fixed_points.isfinite() & moving_points.isfinite()).all(-1)
    start = torch.where(valid[..., None], fixed_points, torch.zeros_like(fixed_points)).to(field)
    target = torch.where(valid[..., None], moving_points, torch.zeros_like(moving_points)).to(field)
    index = start.transpose(1, 2).reshape(start.shape[0], ndim, -1, *(1,) * (ndim - 1))
    arrived = start + sample_field(field, index).flatten(2).transpose(1, 2)
    steps = torch.tensor(spacing_of(spacing, ndim), dtype=field.dtype, device=field.device)
    distance = _length((arrived - target) * steps, -1, squared)[..., 0] * valid
    if weight is not None:
        distance = distance * weight.to(distance)
    if map:
        return distance
    return over_batch(distance.sum(1) / valid.sum(1).clamp_min(1), reduction)


@full_precision
def known_field_distance(
    field: Float[Tensor, "b d *space"],
    known_field: Float[Tensor, "b d *space"],
    *,
    squared: bool = False,
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    spacing: tuple[float, ...] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Mean end-point error | S (u - u*) | against a known field of the same kind (forward with forward).

    Range [0, inf), 0 best; voxels, or millimetres with ``spacing``; squared on request.

    Differs from: a mean squared error over components by the factor D (``squared``).
    """
    if field.shape != known_field.shape:
        raise InputError(f"fields differ in shape: {tuple(field.shape)} and known {tuple(known_field.shape)}")
    ndim = field.shape[1]
    steps = torch.tensor(spacing_of(spacing, ndim), dtype=field.dtype, device=field.device)
    local = _length((field - known_field) * steps.view(1, -1, *(1,) * ndim), 1, squared)
    return reduce_local(local, mask=mask, weight=weight, reduction=reduction, map=map)
