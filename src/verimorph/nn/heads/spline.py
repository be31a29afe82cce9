"""Cubic B-spline over a lattice of control values: smooth fields from few numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import InputError, OptionError
from verimorph.field import resize
from verimorph.nn.blocks import convolution, size_of, start_small
from verimorph.nn.heads.displacement import in_full_precision
from verimorph.nn.heads.velocity import Integration, Inverse


def lattice_shape(shape: Sequence[int], spacing: Sequence[int]) -> tuple[int, ...]:
    """Control points along each axis that N voxels need: ``ceil((N - 1) / s) + 3``, the first one at voxel -s."""
    return tuple(math.ceil((n - 1) / s) + 3 for n, s in zip(shape, spacing, strict=True))


def cubic_weights(spacing: int, like: Tensor) -> Float[Tensor, " taps"]:
    """The cubic B-spline at the offsets -(2s - 1) .. 2s - 1 voxels of a lattice of spacing s."""
    t = (torch.arange(1 - 2 * spacing, 2 * spacing, device=like.device, dtype=like.dtype) / spacing).abs()
    return torch.where(t < 1, 2 / 3 - t**2 + t**3 / 2, (2 - t) ** 3 / 6)


def spline_field(
    parameters: Float[Tensor, "b d *lattice"], shape: tuple[int, ...], spacing: Sequence[int]
) -> Float[Tensor, "b d *space"]:
    """Dense values ``sum_k c_k B3(i / s - (k - 1))`` at every voxel i: a transposed convolution along each axis.

    Parameters
    ----------
    parameters
        Control values on `lattice_shape` of ``shape``; whatever their unit, the output has the same.
    shape
        Of the output, voxels.
    spacing
        Voxels between control points, one number an axis.

    Raises
    ------
    InputError
        For another lattice than ``shape`` and ``spacing`` need.

    References
    ----------
    Rueckert et al., IEEE TMI 18, 1999; as a transposed convolution: Qiu et al., MIDIR, MIDL 2021.

    Examples
    --------
    >>> constant = torch.full((1, 2, 6, 6), 1.5)  # B-splines add up to one
    >>> spline_field(constant, (10, 10), (3, 3))[0, 0, 4, :3]
    tensor([1.5000, 1.5000, 1.5000])
    """
    needed = lattice_shape(shape, spacing)
    if tuple(parameters.shape[2:]) != needed:
        raise InputError(
            f"a spline of spacing {tuple(spacing)} on {tuple(shape)} voxels needs {needed} control points, "
            f"got {tuple(parameters.shape[2:])}"
        )
    transposed = functional.conv_transpose2d if parameters.ndim == 4 else functional.conv_transpose3d
    batch, components = parameters.shape[:2]
    d = parameters.ndim - 2
    out = parameters.reshape(batch * components, 1, *parameters.shape[2:])
    for axis, (n, s) in enumerate(zip(shape, spacing, strict=True)):
        weights = cubic_weights(s, out)
        place = [1] * d
        place[axis] = len(weights)
        stride = [1] * d
        stride[axis] = s
        # Control point k adds its spline around voxel (k - 1) s; voxel 0 is therefore 3 s - 1 places into the output.
        out = transposed(out, weights.view(1, 1, *place), stride=stride).narrow(2 + axis, 3 * s - 1, n)
    return out.reshape(batch, components, *shape)


class SplineHead(nn.Module):
    """Features resized to the lattice, one convolution, cubic B-spline: a displacement, or a velocity to integrate.

    Parameters
    ----------
    ndim, channels, kernel, bias, deviation
        As in `verimorph.nn.heads.displacement.DisplacementHead`.
    spacing
        Voxels between control points, one number or one an axis.
    of
        ``displacement`` or ``velocity``.
    steps, shrink, inverse
        As in `verimorph.nn.heads.velocity.Integration`, for a velocity.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        spacing: int | Sequence[int] = 3,
        of: Literal["displacement", "velocity"] = "velocity",
        kernel: int = 3,
        bias: bool = True,
        deviation: float = 1e-5,
        steps: int = 7,
        shrink: int = 1,
        inverse: Inverse = "evaluation",
    ) -> None:
        super().__init__()
        self.spacing = (spacing,) * ndim if isinstance(spacing, int) else tuple(spacing)
        if len(self.spacing) != ndim or min(self.spacing) < 1:
            raise OptionError(f"a lattice needs {ndim} spacings of at least 1 voxel, got {spacing}")
        if of not in ("displacement", "velocity"):
            raise OptionError(f"a spline is 'of' a displacement or a velocity, got '{of}'")
        self.convolution = start_small(convolution(ndim, channels, ndim, kernel=kernel, bias=bias), deviation)
        integrates = of == "velocity"
        self.integration = Integration(steps=steps, shrink=shrink, inverse=inverse) if integrates else None

    def forward(
        self,
        features: Float[Tensor, "b k *coarse"],
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
    ) -> dict[str, Tensor]:
        """``parameters`` (control values, voxels of the input grid), ``field``; of a velocity what it integrates to."""
        shape = size_of(fixed)
        parameters = in_full_precision(self.convolution, resize(features, lattice_shape(shape, self.spacing)))
        with torch.autocast(features.device.type, enabled=False):
            dense = spline_field(parameters, shape, self.spacing)
        outputs = {"field": dense} if self.integration is None else self.integration(dense, shape)
        return {"parameters": parameters, **outputs}
