"""A quick look at the whole volume on a coarse lattice: where the anatomy is, how similar, where it agrees least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from verimorph.field import box_mean, sample
from verimorph.grid import Grid
from verimorph.image import Image

COARSE_VOXELS = 64
WINDOW_RADIUS = 2


def coarse(image: Float[Tensor, "1 1 *space"], grid: Grid) -> tuple[Float[Tensor, "1 1 *small"], Grid]:
    """Average an image on ``grid`` over blocks of whole voxels down to at most ``COARSE_VOXELS`` along each axis.

    Returns the averages and their grid; voxels that fill no whole block at the far edges are left out.
    """
    factor = [max(1, -(-n // COARSE_VOXELS)) for n in grid.shape]
    kept = tuple(n // f * f for n, f in zip(grid.shape, factor, strict=True))
    pool = functional.avg_pool3d if grid.ndim == 3 else functional.avg_pool2d
    small = pool(image[(..., *(slice(n) for n in kept))], factor)
    return small, Grid(kept, grid.affine).resized(tuple(small.shape[2:]))


def local_correlation(
    first: Float[Tensor, "1 1 *space"], second: Float[Tensor, "1 1 *space"], radius: int = WINDOW_RADIUS
) -> tuple[Float[Tensor, "1 1 *space"], Float[Tensor, "1 1 *space"]]:
    """Return the squared correlation in a box around every voxel, in [0, 1], and the local variance of ``first``.

    Blind to brightness, contrast and their sign, hence fit for scans of different kinds. Where ``second`` is flat the
    correlation is 0; where ``first`` is flat there is nothing to align and the variance says so.
    """
    mean_first, mean_second = box_mean(first, radius), box_mean(second, radius)
    variance_first = (box_mean(first * first, radius) - mean_first**2).clamp(min=0)
    variance_second = (box_mean(second * second, radius) - mean_second**2).clamp(min=0)
    covariance = box_mean(first * second, radius) - mean_first * mean_second
    floor = 1e-4 * float(first.var() * second.var()) + 1e-12
    return (covariance**2 / (variance_first * variance_second + floor)).clamp(0, 1), variance_first


def mutual_information(first: Float[ndarray, " n"], second: Float[ndarray, " n"], bins: int = 32) -> float:
    """Mutual information of two lists of grey values from a joint histogram, bits; 0 means independent."""
    ranges = [np.percentile(v, (0.5, 99.5)) for v in (first, second)]
    codes = [
        np.clip((v - low) * (bins / max(high - low, 1e-12)), 0, bins - 1).astype(np.int64)
        for v, (low, high) in zip((first, second), ranges, strict=True)
    ]
    joint = np.bincount(codes[0] * bins + codes[1], minlength=bins * bins).reshape(bins, bins) / max(len(first), 1)
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    full = joint > 0
    return float((joint[full] * np.log2(joint[full] / apart[full])).sum())


@dataclass(frozen=True, eq=False)
class Survey:
    """The pair on the coarse fixed lattice, before and after.

    Parameters
    ----------
    grid
        Coarse fixed lattice.
    fixed, before, after
        ``(1, 1, *grid.shape)``: fixed image, moving image where its header places it (or where the registration
        started, if the header leaves no overlap), moved image.
    background
        Value of the moving image outside its field of view.
    fixed_mask
        Fixed mask, where one was given.
    """

    grid: Grid
    fixed: Float[Tensor, "1 1 *space"]
    before: Float[Tensor, "1 1 *space"]
    after: Float[Tensor, "1 1 *space"]
    background: float
    fixed_mask: Image | None = None

    @cached_property
    def points(self) -> Float[ndarray, "n d"]:
        """World positions of the coarse voxels, in C order, mm."""
        index = np.stack(np.meshgrid(*[np.arange(n) for n in self.grid.shape], indexing="ij"), -1)
        return self.grid.index_to_world(index.reshape(-1, self.grid.ndim))

    @cached_property
    def foreground(self) -> Bool[ndarray, "*space"]:
        """Where there is anatomy in the fixed image: the mask, or what is brighter than a seventh of the grey range."""
        if self.fixed_mask is not None:
            index = torch.from_numpy(self.fixed_mask.grid.world_to_index(self.points).T.astype(np.float32))
            shaped = index.reshape(1, self.grid.ndim, *self.grid.shape)
            inside = sample(self.fixed_mask.tensor(), shaped, mode="nearest")[0, 0].numpy() > 0
            if inside.any():
                return inside
        values = self.fixed[0, 0].numpy()
        low, high = np.percentile(values, (1, 99.5))
        inside = values > low + 0.15 * (high - low)
        return inside if inside.any() else np.ones_like(inside)

    @cached_property
    def body(self) -> Float[Tensor, "1 1 *space"]:
        """The foreground with its holes closed, as 0 and 1: where maps are worth showing."""
        inside = torch.from_numpy(self.foreground)[None, None]
        return (inside | (box_mean(inside.float(), 3) > 0.45)).float()

    @cached_property
    def middle(self) -> Float[ndarray, " d"]:
        """World point in the middle of the anatomy (of its bounding box, outliers of 1 % left out), mm."""
        ends = []
        for axis in range(self.grid.ndim):
            along = self.foreground.sum(axis=tuple(a for a in range(self.grid.ndim) if a != axis)).cumsum()
            ends.append(np.searchsorted(along, np.array([0.01, 0.99]) * along[-1]).mean())
        return self.grid.index_to_world(np.array(ends))

    @cached_property
    def correlation(self) -> dict[str, Float[ndarray, "*space"]]:
        """Squared local correlation with the fixed image, ``before`` and ``after``."""
        return {
            "before": local_correlation(self.fixed, self.before)[0][0, 0].numpy(),
            "after": local_correlation(self.fixed, self.after)[0][0, 0].numpy(),
        }

    @cached_property
    def structure(self) -> Float[ndarray, "*space"]:
        """How much there is to align, in [0, 1]: local variance of the fixed image, zero outside the foreground."""
        mean = box_mean(self.fixed, WINDOW_RADIUS)
        variance = (box_mean(self.fixed**2, WINDOW_RADIUS) - mean**2).clamp(min=0)[0, 0].numpy()
        scale = np.percentile(variance[self.foreground], 75)
        return np.clip(variance / max(scale, 1e-12), 0, 1) * self.foreground

    @cached_property
    def worst(self) -> Float[ndarray, " d"]:
        """World point where structure and moved image agree least, mm: the peak of the averaged residual."""
        residual = torch.from_numpy(self.residual["after"].astype(np.float32))[None, None]
        peak = np.unravel_index(int(box_mean(residual, 1).argmax()), self.grid.shape)
        return self.grid.index_to_world(np.array(peak))

    @cached_property
    def residual(self) -> dict[str, Float[ndarray, "*space"]]:
        """``structure (1 - correlation)``, in [0, 1], ``before`` and ``after``."""
        return {when: self.structure * (1 - value) for when, value in self.correlation.items()}

    def similarity(self) -> dict[str, dict[str, float]]:
        """Return ``before`` and ``after`` of the mean squared local correlation (weighted by structure) and of the
        mutual information in bits, both inside the foreground."""
        weight = max(float(self.structure.sum()), 1e-12)
        inside = self.foreground
        fixed = self.fixed[0, 0].numpy()[inside]
        moving = {"before": self.before, "after": self.after}
        return {
            "local_correlation": {k: float((v * self.structure).sum() / weight) for k, v in self.correlation.items()},
            "mutual_information_bits": {
                k: mutual_information(fixed, v[0, 0].numpy()[inside]) for k, v in moving.items()
            },
        }
