"""A linear map from features: parameters, matrix about the centre, field."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.field import voxel_index
from verimorph.nn.blocks import check_ndim, size_of, start_at_zero
from verimorph.nn.heads.displacement import exact

Kind = Literal["translation", "rigid", "similarity", "affine"]
_KINDS = ("translation", "rigid", "similarity", "affine")


def parameter_count(kind: Kind, ndim: int) -> int:
    """Parameters of a kind of map: shifts, angles, logarithms of scales, shears, in this order."""
    turns = ndim * (ndim - 1) // 2
    return ndim + {"translation": 0, "rigid": turns, "similarity": turns + 1, "affine": 2 * turns + ndim}[kind]


def _elementary(size: int, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Identity matrices (b, d, d) with some entries replaced."""
    some = next(iter(entries.values()))
    one, zero = torch.ones_like(some), torch.zeros_like(some)
    rows = [torch.stack([entries.get((i, j), one if i == j else zero) for j in range(size)], -1) for i in range(size)]
    return torch.stack(rows, -2)


def affine_matrix(
    parameters: Float[Tensor, "b p"], shape: tuple[int, ...], kind: Kind = "affine"
) -> Float[Tensor, "b d e"]:
    """Matrix of ``i -> R H S (i - c) + c + t``, c the centre voxel: (b, d, d + 1), zero parameters are the identity.

    Parameters
    ----------
    parameters
        Shifts t as shares of half the image; angles in radians (2-D: one; 3-D: about axes 2, 1, 0, R = R_2 R_1 R_0);
        natural logarithms of scales S (one, or one an axis); shears, the upper triangle of H. See `parameter_count`.
    shape
        Of the fixed image, voxels. Rotations are rigid where voxels are isotropic.
    """
    d = len(shape)
    if parameters.shape[1] != parameter_count(kind, d):
        raise OptionError(f"a {kind} map in {d}-D has {parameter_count(kind, d)} parameters, got {parameters.shape[1]}")
    p = list(parameters.unbind(1))
    extent = torch.tensor(shape, dtype=parameters.dtype, device=parameters.device)
    shift, rest = parameters[:, :d] * (extent / 2), p[d:]
    linear = torch.eye(d, dtype=parameters.dtype, device=parameters.device).expand(len(parameters), d, d)
    turns = d * (d - 1) // 2
    if kind != "translation":
        for (i, j), angle in zip([(0, 1), (0, 2), (1, 2)] if d == 3 else [(0, 1)], rest[:turns], strict=True):
            cos, sin = torch.cos(angle), torch.sin(angle)
            linear = linear @ _elementary(d, {(i, i): cos, (j, j): cos, (i, j): -sin, (j, i): sin})
    if kind == "affine":
        shears = rest[turns + d :]
        upper = [(i, j) for i in range(d) for j in range(i + 1, d)]
        linear = linear @ _elementary(d, dict(zip(upper, shears, strict=True)))
    if kind in ("similarity", "affine"):
        scales = rest[turns : turns + (1 if kind == "similarity" else d)]
        linear = linear * torch.exp(torch.stack(scales, 1))[:, None, :]
    centre = (extent - 1) / 2
    return torch.cat((linear, (centre + shift - linear @ centre)[..., None]), -1)


def affine_field(matrix: Float[Tensor, "b d e"], shape: tuple[int, ...]) -> Float[Tensor, "b d *space"]:
    """Displacement ``A [i, 1] - i`` at every voxel i."""
    index = voxel_index(shape, device=matrix.device, dtype=matrix.dtype)
    d = len(shape)
    moved = torch.einsum("bij,j...->bi...", matrix[:, :, :d], index[0])
    return moved + matrix[:, :, d].view(-1, d, *[1] * d) - index


class AffineHead(nn.Module):
    """Features averaged over the image, one linear layer that starts at zero (the identity), `affine_matrix`.

    Parameters
    ----------
    ndim, channels
        2 or 3; of the features.
    kind
        ``translation``, ``rigid``, ``similarity`` or ``affine``.
    """

    def __init__(self, *, ndim: int, channels: int, kind: Kind = "affine") -> None:
        super().__init__()
        if kind not in _KINDS:
            raise OptionError(f"unknown kind '{kind}' of linear map; known: {', '.join(_KINDS)}")
        self.linear = start_at_zero(nn.Linear(channels, parameter_count(kind, check_ndim(ndim))))
        self.kind = kind

    def forward(
        self,
        features: Float[Tensor, "b k *coarse"],
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
    ) -> dict[str, Tensor]:
        """``affine`` and its ``field``."""
        shape = size_of(fixed)
        parameters = exact(self.linear(features.flatten(2).mean(2)))
        with torch.autocast(features.device.type, enabled=False):
            matrix = affine_matrix(parameters, shape, self.kind)
            return {"affine": matrix, "field": affine_field(matrix, shape)}
