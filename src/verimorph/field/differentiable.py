"""Gradients through the compiled kernels: one fused pass backward, nothing stored but the inputs.

Where numba is absent, or the tensors are not float32 on the CPU, automatic differentiation goes through the torch
expressions instead; a test holds the two together. Only first derivatives.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Warp(torch.autograd.Function):
    """:func:`verimorph.field.warp`, linear, with gradients to image and displacement."""

    @staticmethod
    def forward(ctx, image: Tensor, displacement: Tensor, matrix: np.ndarray, background: float, kernels: ModuleType):
        ctx.save_for_backward(image, displacement)
        ctx.matrix, ctx.kernels = matrix, kernels
        return kernels.warp(image, displacement, matrix, background)

    @staticmethod
    @once_differentiable
    def backward(ctx, sensitivity: Tensor):
        image, displacement = ctx.saved_tensors
        of_image, of_field = ctx.needs_input_grad[:2]
        gradients = ctx.kernels.warp_backward(
            sensitivity, image, displacement, ctx.matrix, of_image=of_image, of_field=of_field
        )
        return *gradients, None, None, None


class Compose(torch.autograd.Function):
    """:func:`verimorph.field.compose` with gradients to both fields."""

    @staticmethod
    def forward(ctx, outer: Tensor, inner: Tensor, kernels: ModuleType):
        ctx.save_for_backward(outer, inner)
        ctx.kernels = kernels
        return kernels.compose(outer, inner)

    @staticmethod
    @once_differentiable
    def backward(ctx, sensitivity: Tensor):
        outer, inner = ctx.saved_tensors
        of_outer, of_inner = ctx.needs_input_grad[:2]
        to_outer, to_inner = ctx.kernels.warp_backward(
            sensitivity, outer, inner, np.eye(inner.shape[1] + 1), of_image=of_outer, of_field=of_inner
        )
        return to_outer, to_inner.add_(sensitivity) if of_inner else None, None


class SeparableFilter(torch.autograd.Function):
    """The separable symmetric filter of :mod:`verimorph.field.smooth`."""

    @staticmethod
    def forward(ctx, x: Tensor, halves: tuple, renormalise: bool, kernels: ModuleType):
        ctx.halves, ctx.renormalise, ctx.kernels = halves, renormalise, kernels
        return kernels.separable_filter(x, halves, renormalise)

    @staticmethod
    @once_differentiable
    def backward(ctx, sensitivity: Tensor):
        return ctx.kernels.separable_filter_adjoint(sensitivity, ctx.halves, ctx.renormalise), None, None, None


def gradient_wanted(*tensors: Tensor) -> bool:
    """Return whether automatic differentiation is recording any of these."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
