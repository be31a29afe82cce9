"""Autograd functions for measures whose gradient is known in closed form: of a pair of images, of one field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

#: ``compute(fixed, moved, want_fixed, want_moved)`` -> one value an item and its gradients (None where not wanted).
PairGradient = Callable[[Tensor, Tensor, bool, bool], tuple[Tensor, Tensor | None, Tensor | None]]


class _AnalyticPair(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fixed: Tensor, moved: Tensor, compute: PairGradient) -> Tensor:
        values, *gradients = compute(fixed.detach(), moved.detach(), *ctx.needs_input_grad[:2])
        ctx.save_for_backward(*gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        scaled = [
            None if gradient is None else gradient * outer[0].view(-1, *(1,) * (gradient.ndim - 1))
            for gradient in ctx.saved_tensors
        ]
        return scaled[0], scaled[1], None


def analytic_pair(
    fixed: Float[Tensor, "b c *space"], moved: Float[Tensor, "b c *space"], compute: PairGradient
) -> Float[Tensor, " b"]:
    """One value an item whose first derivatives ``compute`` gives together with it.

    The gradient is taken in the forward pass, where the window statistics are at hand; the backward pass is one
    multiplication. Second derivatives are refused.
    """
    return _AnalyticPair.apply(fixed, moved, compute)


#: ``compute(field, wanted)`` -> one value an item and its gradient (None where not wanted).
FieldGradient = Callable[[Tensor, bool], tuple[Tensor, Tensor | None]]


class _AnalyticField(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, field: Tensor, compute: FieldGradient) -> Tensor:
        value, gradient = compute(field.detach(), ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outer[0].view(-1, *(1,) * (gradient.ndim - 1)), None


def analytic_field(field: Float[Tensor, "b d *space"], compute: FieldGradient) -> Float[Tensor, " b"]:
    """One value an item of a field, as `analytic_pair`."""
    return _AnalyticField.apply(field, compute)
