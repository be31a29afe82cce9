"""Values of an image or field between its voxels. The only place that calls ``grid_sample`` and reverses axes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy import ndarray
from torch import Tensor
from torch.nn import functional

from verimorph.errors import OptionError, nearest
from verimorph.field.backend import compiled
from verimorph.field.differentiable import Warp, gradient_wanted

Mode = Literal["linear", "nearest", "cubic"]


def voxel_index(
    shape: tuple[int, ...], *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Float[Tensor, "1 d *space"]:
    """Index of every voxel, ``(1, D, *shape)``; channel d counts along axis d."""
    axes = [torch.arange(n, device=device, dtype=dtype) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def _inside(index: Float[Tensor, "b d *out"], shape: tuple[int, ...]) -> Tensor:
    """``(B, 1, *out)``: index in ``[-0.5, N - 0.5)`` along every axis, the test of ITK."""
    inside = torch.ones_like(index[:, :1], dtype=torch.bool)
    for d, n in enumerate(shape):
        inside &= (index[:, d : d + 1] >= -0.5) & (index[:, d : d + 1] < n - 0.5)
    return inside


def _folds(image: Tensor, depth: int) -> int:
    """Slabs of axis 0 to read as a batch: on the CPU ``grid_sample`` shares nothing but the batch between threads."""
    threads = torch.get_num_threads()
    if image.ndim != 5 or image.device.type != "cpu" or image.shape[0] > 1 or image.requires_grad or threads == 1:
        return 1
    return max(k for k in range(1, 2 * threads + 1) if depth % k == 0)


def read_linear(image: Tensor, index: Tensor) -> Tensor:
    """Linear interpolation with clamped coordinates, through ``grid_sample`` (axes reversed here and nowhere else)."""
    size = torch.tensor([max(n - 1, 1) for n in image.shape[2:]], device=index.device, dtype=index.dtype)
    normalised = index.movedim(1, -1) * (2 / size) - 1
    # NaN, infinite and very large coordinates make the backward pass of grid_sample read outside its memory.
    normalised = torch.nan_to_num(normalised, nan=-1.0).clamp(-1, 1).flip(-1).to(image.dtype)
    batch, spatial = normalised.shape[0], normalised.shape[1:-1]
    d = image.ndim - 2
    if len(spatial) != d:  # a list of points, or any other layout
        normalised = normalised.reshape(batch, -1, *[1] * (d - 1), d)
    folds = _folds(image, normalised.shape[1])
    if folds > 1:
        image = image.expand(folds, *image.shape[1:])
        normalised = normalised.reshape(folds, -1, *normalised.shape[2:])
    out = functional.grid_sample(image, normalised, mode="bilinear", padding_mode="border", align_corners=True)
    if folds > 1:
        out = out.movedim(0, 1)
    return out.reshape(batch, image.shape[1], *spatial)


def _nearest(image: Tensor, index: Tensor) -> Tensor:
    """Nearest voxel, halves up as ITK rounds them; exact for any dtype because nothing is interpolated."""
    shape = image.shape[2:]
    flat = torch.zeros(index.shape[0], *index.shape[2:], dtype=torch.long, device=index.device)
    for d, n in enumerate(shape):
        flat = flat * n + torch.floor(index[:, d] + 0.5).long().clamp(0, n - 1)
    batch, channels = image.shape[:2]
    picked = flat.reshape(batch, 1, -1).expand(-1, channels, -1)
    return image.reshape(batch, channels, -1).gather(2, picked).reshape(batch, channels, *index.shape[2:])


def _cubic(image: Tensor, index: Tensor) -> Tensor:
    """Cubic B-spline interpolation, mirrored at the border as ITK does it, by SciPy on the CPU; no gradient."""
    from scipy import ndimage

    where = torch.where(_inside(index, tuple(image.shape[2:])), index, 0).detach().cpu().double().numpy()
    values = image.detach().cpu().double().numpy()
    out = np.empty((*image.shape[:2], *index.shape[2:]), dtype=np.float32)
    for b in range(len(values)):
        for c in range(values.shape[1]):
            ndimage.map_coordinates(values[b, c], where[b], output=out[b, c], order=3, mode="mirror")
    return torch.from_numpy(out).to(image.device)


def sample(
    image: Shaped[Tensor, "b c *space"],
    index: Float[Tensor, "b d *out"],
    *,
    mode: Mode = "linear",
    background: float | int = 0.0,
) -> Shaped[Tensor, "b c *out"]:
    """Read an image at fractional voxel indices.

    Parameters
    ----------
    image
        Values on a grid, 2-D or 3-D.
    index
        Where to read, in voxels of that grid; channel d along axis d. Any number of axes may follow the channel:
        ``(B, D, *shape)`` reads a volume, ``(B, D, n)`` a list of points.
    mode
        ``linear`` (differentiable in both arguments), ``nearest`` (halves up, any dtype), ``cubic`` (B-spline of order
        3, no gradient).
    background
        Value outside the image. Inside is an index in ``[-0.5, N - 0.5)``; the half voxel at the rim repeats the edge.

    Raises
    ------
    OptionError
        For an unknown mode.
    """
    readers = {"linear": read_linear, "nearest": _nearest, "cubic": _cubic}
    if mode not in readers:
        raise OptionError(f"unknown interpolation '{mode}'{nearest(mode, readers)}")
    index = index.expand(image.shape[0], *index.shape[1:])
    if mode == "linear" and not gradient_wanted(image, index):
        kernels = compiled(image) if index.dtype == torch.float32 and index.device.type == "cpu" else None
        if kernels is not None:
            return kernels.sample(image, index, background)
    value = readers[mode](image, index)
    outside = ~_inside(index, tuple(image.shape[2:]))
    return value.masked_fill(outside, background)


def _as_matrix(matrix: Float[ndarray, "h h"] | Tensor | None, d: int) -> np.ndarray:
    return np.eye(d + 1) if matrix is None else np.asarray(matrix, dtype=np.float64)


def _mapped_index(displacement: Tensor, matrix: np.ndarray) -> Tensor:
    """``matrix @ (i + u(i))`` for every voxel i."""
    d = displacement.shape[1]
    index = (
        voxel_index(tuple(displacement.shape[2:]), device=displacement.device, dtype=displacement.dtype) + displacement
    )
    if np.array_equal(matrix, np.eye(d + 1)):
        return index
    turn = torch.as_tensor(matrix[:d, :d], device=index.device, dtype=index.dtype)
    shift = torch.as_tensor(matrix[:d, d], device=index.device, dtype=index.dtype)
    return torch.einsum("ij,bj...->bi...", turn, index) + shift.view(1, d, *[1] * d)


def warp(
    image: Shaped[Tensor, "b c *space"],
    displacement: Float[Tensor, "b d *out"],
    *,
    matrix: Float[ndarray, "h h"] | Tensor | None = None,
    mode: Mode = "linear",
    background: float | int | Float[Tensor, "b c"] = 0.0,
) -> Shaped[Tensor, "b c *out"]:
    """Resample an image through a field and a linear map, in one interpolation: ``image(matrix @ (i + u(i)))``.

    Parameters
    ----------
    image
        Moving image, on its own grid.
    displacement
        Field on the output grid, in voxels of the output grid.
    matrix
        Homogeneous map from output voxels to voxels of ``image`` (default identity).
    mode, background
        As in :func:`sample`; ``background`` may be a tensor, one value for each channel of each image.
    """
    if isinstance(background, Tensor):
        level = background.reshape(*background.shape, *[1] * (image.ndim - 2))
        return warp(image - level, displacement, matrix=matrix, mode=mode) + level
    affine = _as_matrix(matrix, displacement.shape[1])
    if mode == "nearest":
        kernels = compiled(displacement) if image.device.type == "cpu" and len(image) == len(displacement) else None
        if kernels is not None:
            return kernels.warp_nearest(image, displacement, affine, background)
        displacement = displacement.double()  # a tie between two voxels falls as in ITK, which counts in float64
    kernels = compiled(image, displacement) if mode == "linear" else None
    if kernels is None:
        return sample(image, _mapped_index(displacement, affine), mode=mode, background=background)
    if gradient_wanted(image, displacement):
        return Warp.apply(image, displacement, affine, background, kernels)
    return kernels.warp(image, displacement, affine, background)


def warp_with_gradient(
    image: Float[Tensor, "1 1 *space"],
    displacement: Float[Tensor, "1 d *out"],
    *,
    matrix: Float[ndarray, "h h"] | Tensor | None = None,
) -> tuple[Float[Tensor, "1 1 *out"], Float[Tensor, "1 d *out"]]:
    """Return the warped image and its derivative with respect to the displacement, in one pass.

    Outside the image the edge value is repeated and the derivative is zero, so that samples which leave the field of
    view pull on nothing. The derivative of the linear interpolant is the exact one: piecewise constant along its axis.
    """
    affine = _as_matrix(matrix, displacement.shape[1])
    kernels = compiled(image, displacement)
    if kernels is not None:
        return kernels.warp_with_gradient(image, displacement, affine)
    with torch.enable_grad():
        leaf = displacement.detach().requires_grad_()
        index = _mapped_index(leaf, affine)
        value = read_linear(image, index)
        inside = _inside(index.detach(), tuple(image.shape[2:]))
        (gradient,) = torch.autograd.grad(torch.where(inside, value, torch.zeros_like(value)).sum(), leaf)
    return value.detach(), gradient


def sample_field(
    displacement: Float[Tensor, "b d *space"], index: Float[Tensor, "b d *out"]
) -> Float[Tensor, "b d *out"]:
    """Read a displacement field between its voxels: linear, zero outside (the convention of ITK)."""
    return sample(displacement, index, mode="linear", background=0.0)
