"""Convolutional pyramids of one image, and towers of two: shared weights or weights of their own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.nn.blocks import Activation, ConvBlock, Normalisation, check_size

_POOLS = {2: nn.AvgPool2d, 3: nn.AvgPool3d}


class ConvPyramid(nn.Module):
    """Features of one image at several resolutions, each half of the one before.

    Parameters
    ----------
    ndim, channels
        Axes of space; channels of the image.
    widths
        Channels of every level, finest first.
    convolutions
        Convolutions a level, one number or one a level.
    stem
        Channels of one more convolution in front, without normalisation; none where None.
    norm, activation, slope
        As in `verimorph.nn.blocks.ConvBlock`.
    down
        How a level gets to half resolution: ``average`` (pooling) or ``stride`` (its first convolution has stride 2).

    Attributes
    ----------
    widths
        Channels of every level, finest first.
    stride
        Every side of the image must be a multiple of this.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        widths: Sequence[int],
        convolutions: int | Sequence[int] = 2,
        stem: int | None = None,
        norm: Normalisation = "instance",
        activation: Activation = "leaky_relu",
        slope: float = 0.1,
        down: str = "average",
    ) -> None:
        super().__init__()
        counts = (convolutions,) * len(widths) if isinstance(convolutions, int) else tuple(convolutions)
        if not widths or len(counts) != len(widths) or min(counts) < 1:
            raise OptionError(f"{len(widths)} levels need as many counts of convolutions from 1, got {counts}")
        if down not in ("average", "stride"):
            raise OptionError(f"unknown way down '{down}'; known: average, stride")
        self.widths, self.stride = tuple(widths), 2 ** (len(widths) - 1)
        self.levels = nn.ModuleList()
        before = channels
        for level, (width, count) in enumerate(zip(widths, counts, strict=True)):
            parts: list[nn.Module] = []
            if level == 0 and stem is not None:
                parts.append(ConvBlock(ndim, before, stem, activation=activation, slope=slope))
                before = stem
            if level > 0 and down == "average":
                parts.append(_POOLS[ndim](2))
            for number in range(count):
                stride = 2 if down == "stride" and level > 0 and number == 0 else 1
                parts.append(
                    ConvBlock(ndim, before, width, stride=stride, norm=norm, activation=activation, slope=slope)
                )
                before = width
            self.levels.append(nn.Sequential(*parts))

    def forward(self, image: Float[Tensor, "b c *space"]) -> list[Tensor]:
        """Features of every level, finest first."""
        check_size(tuple(image.shape[2:]), self.stride)
        pyramid = []
        for level in self.levels:
            image = level(image)
            pyramid.append(image)
        return pyramid


class Towers(nn.Module):
    """One extractor for both images, or one for each.

    Parameters
    ----------
    tower
        Module from an image to features (a tensor or a list of levels).
    twin
        Give the moving image a tower of its own, of the same layout and other weights.
    """

    def __init__(self, tower: nn.Module, *, twin: bool = False) -> None:
        super().__init__()
        self.fixed = tower
        self.moving: nn.Module | None = None
        if twin:
            self.moving = copy.deepcopy(tower)
            for part in self.moving.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
        self.stride = int(getattr(tower, "stride", 1))

    def forward(self, *, fixed: Float[Tensor, "b c *space"], moving: Float[Tensor, "b c *space"]) -> tuple:
        """Features of the fixed and of the moving image."""
        return self.fixed(fixed), (self.fixed if self.moving is None else self.moving)(moving)
