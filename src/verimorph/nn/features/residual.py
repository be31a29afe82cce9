"""Residual encoder-decoder: identity beside every pair of convolutions, so that depth costs no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.nn.blocks import Activation, ConvBlock, Normalisation, Upsample, Upsampling, activation, convolution


class ResidualBlock(nn.Module):
    """``activation(norm(conv(ConvBlock(x))) + shortcut(x))``; the shortcut is a 1^d convolution where it must be.

    Parameters
    ----------
    ndim, inputs, outputs, stride
        2 or 3; channels; stride of the first convolution.
    norm, activation, slope
        As in `verimorph.nn.blocks`.

    References
    ----------
    He et al., Deep residual learning for image recognition, CVPR 2016.
    """

    def __init__(
        self,
        ndim: int,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        norm: Normalisation = "instance",
        activation: Activation = "leaky_relu",
        slope: float = 0.01,
    ) -> None:
        super().__init__()
        self.first = ConvBlock(ndim, inputs, outputs, stride=stride, norm=norm, activation=activation, slope=slope)
        self.second = ConvBlock(ndim, outputs, outputs, norm=norm, activation="none")
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else convolution(ndim, inputs, outputs, kernel=1, stride=stride)
        self.activation = _activation(activation, slope=slope)

    def forward(self, x: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *out"]:
        """Features of the block."""
        return self.activation(self.second(self.first(x)) + self.shortcut(x))


_activation = activation  # the name of the argument hides the function


class ResidualUNet(nn.Module):
    """Residual encoder of strided blocks, decoder whose skips are added.

    Parameters
    ----------
    ndim, inputs
        2 or 3; channels of the input.
    channels
        Of each level, fine to coarse; the first is at full resolution.
    blocks
        Residual blocks a level of the encoder.
    norm, activation, slope, upsampling
        As in `verimorph.nn.blocks`.
    coarse_levels
        Last upsamplings left out.

    Attributes
    ----------
    out_channels, stride, scale
        As in `verimorph.nn.features.unet.UNet`.
    """

    def __init__(
        self,
        *,
        ndim: int,
        inputs: int,
        channels: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 2,
        norm: Normalisation = "instance",
        activation: Activation = "leaky_relu",
        slope: float = 0.01,
        upsampling: Upsampling = "linear",
        coarse_levels: int = 0,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or not 0 <= coarse_levels < len(channels) or blocks < 1:
            raise OptionError(
                "a residual network needs two levels, one block each, and fewer coarse levels than levels"
            )
        block = partial(ResidualBlock, ndim, norm=norm, activation=activation, slope=slope)
        self.encoder = nn.ModuleList()
        before = inputs
        for level, width in enumerate(channels):
            first = block(before, width, stride=1 if level == 0 else 2)
            rest = [block(width, width) for _ in range(blocks - 1)]
            self.encoder.append(nn.Sequential(first, *rest))
            before = width
        self.upsamplers, self.narrow, self.decoder = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for width in reversed(channels[coarse_levels:-1]):
            self.narrow.append(convolution(ndim, before, width, kernel=1))
            self.upsamplers.append(Upsample(ndim, width, mode=upsampling))
            self.decoder.append(block(width, width))
            before = width
        self.out_channels, self.stride, self.scale = before, 2 ** (len(channels) - 1), 2**coarse_levels

    def forward(self, x: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *out"]:
        """Features of an image or of images stacked in channels."""
        levels = []
        for encode in self.encoder:
            x = encode(x)
            levels.append(x)
        levels.pop()
        for narrow, upsample, decode in zip(self.narrow, self.upsamplers, self.decoder, strict=True):
            # Narrow first: a pointwise map and upsampling commute, and it is cheaper on the coarse grid.
            x = decode(upsample(narrow(x)) + levels.pop())
        return x
