"""One autograd function for every pair measure whose gradient is known in closed form."""

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
