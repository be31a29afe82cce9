"""The V-shaped network of Estienne et al.: encoder of one image, decoder of a pyramid, and both for segmentation.

Nothing here knows two images: what the decoder is given may be the pyramid of one or the difference of two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError
from verimorph.nn.blocks import Activation, ConvBlock, Normalisation, check_size, convolution, normalisation
from verimorph.nn.blocks import activation as activation_layer

_TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}

#: Convolutions of the encoder's levels below the input; the decoder has the same, turned round.
CLASSIC = (1, 2, 3, 2)


def _check(widths: Sequence[int], convolutions: Sequence[int]) -> None:
    if len(widths) < 2 or len(convolutions) != len(widths) - 1 or min(convolutions) < 1:
        raise OptionError(
            f"widths {tuple(widths)} need {len(widths) - 1} counts of convolutions from 1, got {tuple(convolutions)}"
        )


class VNetEncoder(nn.Module):
    """Pyramid of one image.

    The input block is a = relu(conv3(image)), b = relu(conv3(a)), a + b, without normalisation. Every further level
    halves the grid by a convolution of kernel and stride 2, then has its convolutions; each is normalised (no affine
    parameters for ``instance``) and activated.

    Parameters
    ----------
    ndim, channels
        Axes of space; channels of the image.
    widths
        Channels of every level, finest first.
    convolutions
        Of every level but the first.
    norm, activation
        As in `ConvPyramid`.

    References
    ----------
    Estienne et al. 2020 (arXiv 2010.10897); Milletari et al., V-Net, 3DV 2016.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        widths: Sequence[int],
        convolutions: Sequence[int] = CLASSIC,
        norm: Normalisation = "instance",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        _check(widths, convolutions)
        self.widths, self.stride = tuple(widths), 2 ** (len(widths) - 1)
        self.first = ConvBlock(ndim, channels, widths[0], activation=activation)
        self.second = ConvBlock(ndim, widths[0], widths[0], activation=activation)
        self.levels = nn.ModuleList()
        for before, width, count in zip(widths[:-1], widths[1:], convolutions, strict=True):
            down = ConvBlock(ndim, before, width, kernel=2, stride=2, norm=norm, activation=activation)
            same = (ConvBlock(ndim, width, width, norm=norm, activation=activation) for _ in range(count))
            self.levels.append(nn.Sequential(down, *same))

    def forward(self, image: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """Features of every level, finest first."""
        check_size(tuple(image.shape[2:]), self.stride)
        first = self.first(image)
        pyramid = [first + self.second(first)]
        for level in self.levels:
            pyramid.append(level(pyramid[-1]))
        return pyramid


class VNetDecoder(nn.Module):
    """From the coarsest level of a pyramid up to the finest, each finer level joined on the way.

    A level doubles the grid by a transposed convolution of kernel and stride 2, puts the pyramid's level beside it, and
    has its convolutions, the first of which halves the channels.

    Parameters
    ----------
    ndim
        Axes of space.
    widths
        Channels of the pyramid's levels, finest first.
    skips
        Channels of the pyramid's levels where they differ from ``widths`` (a pyramid fused by concatenation).
    convolutions
        In the order of the encoder; the decoder takes them from the last.
    norm, activation
        As in `ConvPyramid`.
    """

    def __init__(
        self,
        *,
        ndim: int,
        widths: Sequence[int],
        skips: Sequence[int] | None = None,
        convolutions: Sequence[int] = CLASSIC,
        norm: Normalisation = "instance",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        _check(widths, convolutions)
        self.widths = tuple(widths)
        joined = self.widths if skips is None else tuple(skips)
        if len(joined) != len(self.widths):
            raise OptionError(f"{len(self.widths)} levels need as many widths of skips, got {joined}")
        self.ups, self.levels = nn.ModuleList(), nn.ModuleList()
        before = joined[-1]
        for level, count in reversed(list(enumerate(convolutions))):
            width = self.widths[level]
            up = _TRANSPOSED[ndim](before, width, 2, stride=2)
            self.ups.append(nn.Sequential(up, normalisation(norm, ndim, width), activation_layer(activation)))
            ins = (width + joined[level], *(width,) * (count - 1))
            self.levels.append(
                nn.Sequential(*(ConvBlock(ndim, n, width, norm=norm, activation=activation) for n in ins))
            )
            before = width

    def forward(self, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Decoded features, coarsest first: the bottom of the pyramid itself, then every level to full resolution."""
        if len(pyramid) != len(self.widths):
            raise InputError(f"this decoder takes {len(self.widths)} levels, got {len(pyramid)}")
        decoded = [pyramid[-1]]
        for up, level, skip in zip(self.ups, self.levels, reversed(pyramid[:-1]), strict=True):
            decoded.append(level(torch.cat((up(decoded[-1]), skip), dim=1)))
        return decoded


class VNetSegmentation(nn.Module):
    """One image in, logits of classes out: encoder, decoder, one convolution.

    Parameters
    ----------
    encoder, decoder
        Of the same widths.
    ndim, classes
        Axes of space; classes with the background.

    Attributes
    ----------
    stride
        Every side of the image must be a multiple of this.
    """

    def __init__(self, encoder: VNetEncoder, decoder: VNetDecoder, *, ndim: int, classes: int) -> None:
        super().__init__()
        if classes < 2:
            raise OptionError(f"a segmentation needs a background and at least one class, got {classes} in all")
        self.encoder, self.decoder, self.stride = encoder, decoder, encoder.stride
        self.head = convolution(ndim, decoder.widths[0], classes)

    def forward(
        self, *, image: Float[Tensor, "b c *space"], condition: Float[Tensor, "b k"] | None = None
    ) -> dict[str, Tensor]:
        """``logits`` (b, classes, \\*space)."""
        if condition is not None:
            raise OptionError("this network takes no condition")
        return {"logits": self.head(self.decoder(self.encoder(image))[-1])}
