"""Penalties on the Jacobian determinant: folding, and change of volume."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import OptionError
from verimorph.objective._analytic import analytic_field
from verimorph.objective._kernels import usable
from verimorph.objective._precision import full_precision
from verimorph.objective._reduce import Reduction, over_batch, spread, weighted_mean
from verimorph.objective.regularity import _compiled
from verimorph.objective.regularity._differences import (
    all_inside,
    check_field,
    crop,
    local_mean,
    refill,
    shift,
    stencils,
)

JacobianStencil = Literal["forward", "central", "corners"]
VolumeForm = Literal["log", "symmetric"]


def _determinant(columns: list[Tensor]) -> Tensor:
    """det(I + du/dx) from the derivatives by every axis, each ``(b, d, *space)``."""
    ndim = len(columns)
    j = [[columns[a][:, c] + (1.0 if a == c else 0.0) for a in range(ndim)] for c in range(ndim)]
    if ndim == 2:
        return j[0][0] * j[1][1] - j[0][1] * j[1][0]
    return (
        j[0][0] * (j[1][1] * j[2][2] - j[1][2] * j[2][1])
        - j[0][1] * (j[1][0] * j[2][2] - j[1][2] * j[2][0])
        + j[0][2] * (j[1][0] * j[2][1] - j[1][1] * j[2][0])
    )


def _sides(stencil: JacobianStencil, ndim: int) -> list[tuple[int, ...]]:
    """Corners of a cell at which determinants are taken."""
    if stencil not in ("forward", "corners"):
        raise OptionError(f"unknown stencil '{stencil}' of the Jacobian; known: forward, central, corners")
    return [(0,) * ndim] if stencil == "forward" else list(itertools.product((0, 1), repeat=ndim))


def determinants(
    displacement: Float[Tensor, "b d *space"], stencil: JacobianStencil
) -> Iterator[tuple[Float[Tensor, "b *inner"], list[int], list[int]]]:
    """Jacobian determinants by one-sided or central differences, and the voxels that each stencil takes off the ends.

    ``corners`` yields all 2^D one-sided determinants of a voxel: positive central differences do not prove that a map
    is one-to-one, these do, up to the volumes inside a cell (Liu et al. 2024).
    """
    ndim = displacement.shape[1]
    if stencil == "central":
        one = [1] * ndim
        columns = []
        for a in range(ndim):
            difference = (shift(displacement, a, 2, 0) - shift(displacement, a, 0, 2)) / 2
            rest = [int(b != a) for b in range(ndim)]
            columns.append(crop(difference, rest, rest))
        yield _determinant(columns), one, one
        return
    for side in _sides(stencil, ndim):
        # A cell has 2^D corners; the determinant at one corner takes the D edges of the cell that meet there.
        columns = []
        for a in range(ndim):
            edge = shift(displacement, a, 1, 0) - shift(displacement, a, 0, 1)
            before = [side[b] if b != a else 0 for b in range(ndim)]
            after = [1 - side[b] if b != a else 0 for b in range(ndim)]
            columns.append(crop(edge, before, after))
        yield _determinant(columns), [0] * ndim, [1] * ndim


def _penalty(
    penalise: Callable[[Tensor], Tensor],
    compiled: tuple[int, float],
    displacement: Tensor,
    stencil: JacobianStencil,
    mask: Tensor | None,
    weight: Tensor | None,
    reduction: Reduction,
    map: bool,
) -> Tensor:
    check_field(displacement, 3 if stencil == "central" else 2)
    mask, weight = spread(mask, displacement), spread(weight, displacement)
    if stencil != "central" and not map and usable(displacement, mask, weight):
        ndim = displacement.shape[1]
        nothing, one = [0] * ndim, [1] * ndim
        inside, part = all_inside(mask, nothing, one), local_mean(weight, nothing, one)
        share = inside if part is None else part if inside is None else inside * part
        sides, count = _sides(stencil, ndim), stencils(inside, displacement, one)

        def compute(field: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
            return _compiled.determinant_penalty(field, sides, *compiled, share, count, wanted=wanted)

        return over_batch(analytic_field(displacement, compute), reduction)
    values, maps = [], []
    for determinant, before, after in determinants(displacement, stencil):
        local = penalise(determinant)[:, None]
        share, part = all_inside(mask, before, after), local_mean(weight, before, after)
        if map:
            for factor in (share, part):
                local = local if factor is None else local * factor
            maps.append(refill(local, before, after))
        else:
            values.append(weighted_mean(local, share, part))
    if map:
        return torch.stack(maps).mean(0)
    return over_batch(torch.stack(values).mean(0), reduction)


@full_precision
def jacobian_folding(
    displacement: Float[Tensor, "b d *space"],
    *,
    margin: float = 0.0,
    stencil: JacobianStencil = "corners",
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Hinge on folding: mean max(margin - det J, 0), J = I + du/dx.

    Range [0, inf); 0 where every determinant is at least ``margin``. Dimensionless; the determinant is the same in
    voxels and in millimetres of one grid, so there is no spacing. Acts on a displacement (forward or inverse), never on
    a velocity.

    Parameters
    ----------
    displacement
        In voxels, channel d along axis d.
    margin
        Smallest determinant that costs nothing (0.01 to 0.1 keeps a distance from folding).
    stencil
        ``corners``: all 2^D one-sided differences (sees the checkerboard), averaged; ``forward``; ``central``.

    Source: Mok & Chung, CVPR 2020 (mean relu(-det J)).

    Differs from: SYMNet code by nothing with ``stencil="forward"`` and no margin, border aside.
    """
    return _penalty(
        lambda j: (margin - j).clamp_min(0), (0, margin), displacement, stencil, mask, weight, reduction, map
    )


@full_precision
def jacobian_volume(
    displacement: Float[Tensor, "b d *space"],
    *,
    form: VolumeForm = "log",
    floor: float = 0.01,
    stencil: JacobianStencil = "forward",
    mask: Float[Tensor, "#b 1 *space"] | None = None,
    weight: Float[Tensor, "#b 1 *space"] | None = None,
    reduction: Reduction = "mean",
    map: bool = False,
) -> Tensor:
    """Change of volume, growth and shrinkage alike.

    With J = det(I + du/dx), K = max(J, floor)::

        log        mean( (log K)^2 + max(floor - J, 0) )
        symmetric  mean( (J - 1)^2 + (1/K - 1)^2 )

    Range [0, inf), 0 where volume is kept. Dimensionless. Both read J and 1/J alike (log exactly; symmetric exactly, as
    its two summands swap). The hinge in the log form gives a slope below the floor, where the logarithm has none. Acts
    on a displacement (forward or inverse).

    Source: after Rohlfing et al. 2003 (IEEE TMI 22:730, log) and Leow et al. 2007 (IEEE TMI 26:822, symmetric).

    Differs from: Rohlfing's mean |log J| by the square, which has a slope that fades at volume kept.
    """
    if form == "log":

        def penalise(j: Tensor) -> Tensor:
            return j.clamp_min(floor).log().square() + (floor - j).clamp_min(0)
    elif form == "symmetric":

        def penalise(j: Tensor) -> Tensor:
            return (j - 1).square() + (1 / j.clamp_min(floor) - 1).square()
    else:
        raise OptionError(f"unknown form '{form}' of the volume penalty; known: log, symmetric")
    kind = 1 if form == "log" else 2
    return _penalty(penalise, (kind, floor), displacement, stencil, mask, weight, reduction, map)
