"""Regularisers by the compiled kernels: arrays and factors made ready, one item of the batch after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Found = tuple[Tensor, Tensor | None]

_NOTHING = np.zeros((1, 1, 1), np.float32)


def _volumes(x: Tensor) -> Any:
    """An item (k, *space) as an array of k volumes."""
    return x.contiguous().numpy().reshape(x.shape[0], *((1,) if x.ndim == 3 else ()), *x.shape[1:])


def _map(x: Tensor | None, item: int) -> Any:
    return _NOTHING if x is None else _volumes(x[item])[0]


def _ratios(steps: Sequence[float]) -> Any:
    """Derivatives of millimetres by millimetres: spacing of the component (rows) over that of the axis (columns)."""
    s = np.asarray(steps, np.float64)
    return s[:, None] / s[None, :]


def first_derivatives(
    field: Tensor,
    steps: Sequence[float],
    counts: Sequence[Tensor],
    mask: Tensor | None,
    weight: Tensor | None,
    *,
    absolute: bool,
    wanted: bool,
) -> Found:
    """1/D sum over axes of the mean squared (or absolute) forward difference, and its gradient.

    ``counts`` holds, for every axis, how many edges an item has.
    """
    from verimorph.objective._kernels.derivatives import first_derivatives as kernel

    ndim = field.shape[1]
    value = torch.zeros(len(field), dtype=torch.float64)
    gradient = torch.empty_like(field, memory_format=torch.contiguous_format)
    for b in range(len(field)):
        edges = np.array([float(count[b]) for count in counts]) * ndim * ndim
        factors = (_ratios(steps) if absolute else 2 * _ratios(steps) ** 2) / edges
        coefficients = np.pad(factors, ((0, 0), (3 - ndim, 0))).astype(np.float32)
        share = _map(mask, b), mask is not None, _map(weight, b), weight is not None
        total = kernel(_volumes(field[b]), coefficients, absolute, *share, _volumes(gradient[b]))
        value[b] = total if absolute else total / 2
    return value.to(field.dtype), gradient if wanted else None


def linear_elasticity(
    field: Tensor, steps: Sequence[float], mu: float, lam: float, share: Tensor | None, count: Tensor, *, wanted: bool
) -> Found:
    """Mean elastic energy of the stencils, and its gradient. ``share`` is on the grid of the stencils."""
    from verimorph.objective._kernels.derivatives import elastic as kernel

    value = torch.zeros(len(field), dtype=torch.float64)
    gradient = torch.empty_like(field, memory_format=torch.contiguous_format)
    constants = _ratios(steps).astype(np.float32), np.float32(mu), np.float32(lam)
    for b in range(len(field)):
        scale = 1 / float(count[b])
        part = _map(share, b), share is not None, np.float32(scale)
        value[b] = kernel(_volumes(field[b]), *constants, *part, _volumes(gradient[b])) * scale / 2
    return value.to(field.dtype), gradient if wanted else None


def bending(field: Tensor, steps: Sequence[float], share: Tensor | None, count: Tensor, *, wanted: bool) -> Found:
    """Mean bending energy (compact stencil) of the inner voxels, and its gradient. ``share`` is on the whole grid."""
    from verimorph.objective._kernels.derivatives import bending as kernel

    ndim = field.shape[1]
    lift = 3 - ndim
    weights = np.zeros((ndim, 6))
    for c in range(ndim):
        for quantity, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]):
            if a >= lift:
                unit = steps[c] / (steps[a - lift] * steps[b - lift])
                weights[c, quantity] = (1 if a == b else 2) * unit**2
    value = torch.zeros(len(field), dtype=torch.float64)
    gradient = torch.zeros_like(field, memory_format=torch.contiguous_format)
    for b in range(len(field)):
        scale = 1 / (float(count[b]) * ndim)
        part = _map(share, b), share is not None, np.float32(2 * scale)
        value[b] = kernel(_volumes(field[b]), weights.astype(np.float32), *part, _volumes(gradient[b])) * scale
    return value.to(field.dtype), gradient if wanted else None


def determinant_penalty(
    field: Tensor,
    sides: Sequence[Sequence[int]],
    kind: int,
    bound: float,
    share: Tensor | None,
    count: Tensor,
    *,
    wanted: bool,
) -> Found:
    """Mean over cells and corners of a penalty on det(I + du/dx), and its gradient. ``share`` is on the cells' grid."""
    from verimorph.objective._kernels.determinant import determinant_penalty as kernel

    corners = np.array([(*(0,) * (3 - len(side)), *side) for side in sides], np.int64)
    value = torch.zeros(len(field), dtype=torch.float64)
    gradient = torch.zeros_like(field, memory_format=torch.contiguous_format)
    for b in range(len(field)):
        scale = 1 / (float(count[b]) * len(corners))
        part = _map(share, b), share is not None, np.float32(scale)
        volumes = _volumes(field[b])
        value[b] = kernel(volumes, corners, kind, np.float32(bound), *part, _volumes(gradient[b])) * scale
    return value.to(field.dtype), gradient if wanted else None
