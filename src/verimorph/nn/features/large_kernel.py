"""Large kernels beside small ones: a wide field of view, and one convolution in the end."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import OptionError
from verimorph.nn.blocks import Activation, ConvBlock, convolution
from verimorph.nn.blocks import activation as make_activation


class LargeKernelBlock(nn.Module):
    """``PReLU(conv_k(x) + conv_3(x) + conv_1(x) + x)``: k^d, 3^d and 1^d convolutions and the identity side by side.

    Parameters
    ----------
    ndim, channels
        2 or 3; in and out.
    kernel
        k, odd, at least 3.
    activation
        After the sum.

    References
    ----------
    Jia et al., U-Net vs Transformer: is U-Net outdated in medical image registration?, MLMI 2022; the folding is that
    of Ding et al., RepVGG, CVPR 2021.
    """

    def __init__(self, ndim: int, channels: int, *, kernel: int = 5, activation: Activation = "prelu") -> None:
        super().__init__()
        if kernel < 3 or kernel % 2 == 0:
            raise OptionError(f"a large kernel must be odd and at least 3, got {kernel}")
        self.ndim, self.channels, self.kernel, self.activation_name = ndim, channels, kernel, activation
        self.branches = nn.ModuleList(convolution(ndim, channels, channels, kernel=k) for k in (kernel, 3, 1))
        self.activation = make_activation(activation)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """Features on the same grid."""
        total = x
        for branch in self.branches:
            total = total + branch(x)
        return self.activation(total)

    @torch.no_grad()
    def reparameterise(self) -> ConvBlock:
        """One k^d convolution with the same values: kernels padded and added, the identity as a 1 at the centre."""
        folded = ConvBlock(self.ndim, self.channels, self.channels, kernel=self.kernel, activation=self.activation_name)
        weight = torch.zeros_like(self.branches[0].weight)
        for branch in self.branches:
            width = (self.kernel - branch.weight.shape[-1]) // 2
            weight += functional.pad(branch.weight, [width] * (2 * self.ndim))
        centre = (self.kernel // 2,) * self.ndim
        weight[(slice(None), slice(None), *centre)] += torch.eye(self.channels).to(weight)
        folded.to(weight)
        folded.convolution.weight.copy_(weight)
        folded.convolution.bias.copy_(sum(branch.bias for branch in self.branches))
        folded.activation.load_state_dict(self.activation.state_dict())
        return folded.train(self.training)


def reparameterise(model: nn.Module) -> nn.Module:
    """A copy of a model in which every `LargeKernelBlock` is one convolution: the same values, fewer operations."""
    model = copy.deepcopy(model)
    if isinstance(model, LargeKernelBlock):
        return model.reparameterise()
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LargeKernelBlock):
                setattr(parent, name, child.reparameterise())
    return model
