"""The compiled kernels for 2-D tensors, by way of volumes one voxel thick.

The thin axis goes in the middle, ``(X, Y) -> (X, 1, Y)``: threads share X and vector registers run along Y, as in 3-D.
Fields gain a component that is zero. Small copies of a slice cost less than a second set of kernels to keep right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from verimorph.field import kernels


def _thick(x: Tensor) -> Tensor:
    """``(B, C, X, Y) -> (B, C, X, 1, Y)``."""
    return x.unsqueeze(3)


def _thick_field(u: Tensor) -> Tensor:
    """``(B, 2, ...) -> (B, 3, ...)`` with a zero component in the middle."""
    return torch.stack([u[:, 0], torch.zeros_like(u[:, 0]), u[:, 1]], dim=1)


def _thin_field(u: Tensor) -> Tensor:
    """``(B, 3, X, 1, Y) -> (B, 2, X, Y)``."""
    return u[:, ::2, :, 0].contiguous()


def _thick_matrix(matrix: np.ndarray) -> np.ndarray:
    whole = np.eye(4)
    whole[np.ix_([0, 2, 3], [0, 2, 3])] = matrix
    return whole


def warp(image: Tensor, displacement: Tensor, matrix: np.ndarray, background: float) -> Tensor:
    """Linear warp of slices."""
    return kernels.warp(_thick(image), _thick(_thick_field(displacement)), _thick_matrix(matrix), background).squeeze(3)


def warp_nearest(image: Tensor, displacement: Tensor, matrix: np.ndarray, background: float) -> Tensor:
    """Nearest-neighbour warp of slices of any type."""
    return kernels.warp_nearest(
        _thick(image), _thick(_thick_field(displacement)), _thick_matrix(matrix), background
    ).squeeze(3)


def warp_with_gradient(image: Tensor, displacement: Tensor, matrix: np.ndarray) -> tuple[Tensor, Tensor]:
    """Warped slice and its derivative with respect to the displacement."""
    value, gradient = kernels.warp_with_gradient(
        _thick(image), _thick(_thick_field(displacement)), _thick_matrix(matrix)
    )
    return value.squeeze(3), _thin_field(gradient)


def warp_backward(
    sensitivity: Tensor, image: Tensor, displacement: Tensor, matrix: np.ndarray, *, of_image: bool, of_field: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Derivatives of ``sum(sensitivity * warp(image, displacement))``."""
    to_image, to_field = kernels.warp_backward(
        _thick(sensitivity), _thick(image), _thick(_thick_field(displacement)), _thick_matrix(matrix),
        of_image=of_image, of_field=of_field,
    )  # fmt: skip
    return None if to_image is None else to_image.squeeze(3), None if to_field is None else _thin_field(to_field)


def sample(image: Tensor, index: Tensor, background: float) -> Tensor:
    """Slices at a list of positions; ``index`` is ``(B, 2, ...)``."""
    return kernels.sample(_thick(image), _thick_field(index), background)


def compose(outer: Tensor, inner: Tensor) -> Tensor:
    """Composition of 2-D fields."""
    return _thin_field(kernels.compose(_thick(_thick_field(outer)), _thick(_thick_field(inner))))


def invert(
    displacement: Tensor, start: Tensor, iterations: int, tolerance: float, smallest_step: float
) -> tuple[Tensor, float, float]:
    """Inverse of a 2-D field, its mean and its largest residual."""
    u, first = _thick(_thick_field(displacement)), _thick(_thick_field(start))
    inverse, mean, largest = kernels.invert(u, first, iterations, tolerance, smallest_step)
    return _thin_field(inverse), mean, largest


def _thick_halves(halves: Sequence[tuple[float, ...] | None]) -> tuple[tuple[float, ...] | None, ...]:
    return halves[0], None, halves[1]


def separable_filter(x: Tensor, halves: Sequence[tuple[float, ...] | None], renormalise: bool) -> Tensor:
    """Separable symmetric filter of slices."""
    return kernels.separable_filter(_thick(x), _thick_halves(halves), renormalise).squeeze(3)


def separable_filter_adjoint(x: Tensor, halves: Sequence[tuple[float, ...] | None], renormalise: bool) -> Tensor:
    """Adjoint of :func:`separable_filter`."""
    return kernels.separable_filter_adjoint(_thick(x), _thick_halves(halves), renormalise).squeeze(3)


def jacobian_determinant(displacement: Tensor) -> Tensor:
    """Determinant of a 2-D field: the zero component adds a factor of one."""
    return kernels.jacobian_determinant(_thick(_thick_field(displacement))).squeeze(2)
