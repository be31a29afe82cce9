"""U-Net of the VoxelMorph layout, with every choice the published registration U-Nets make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import OptionError
from verimorph.nn.blocks import Activation, ConvBlock, Normalisation, Upsample, Upsampling, check_ndim

#: Makes a part that keeps the grid, from channels in and out.
Block = Callable[[int, int], nn.Module]
#: Channels of one level: of each convolution, or of all.
Level = int | Sequence[int]


class UNet(nn.Module):
    """Encoder, decoder with skips, tail at the output's resolution.

    With L levels, skips s and bottom x::

        pooling "max":     s_k = encode_k(x);  x = maxpool(s_k)       k = 0 .. L-1
        pooling "stride":  s_k = x;            x = encode_k(x)        its first convolution has stride 2
        decoding:          x = decode_k(x);    x = [upsample(x), s_(L-1-k)]
        at last:           tail(x)

    Parameters
    ----------
    ndim, inputs
        2 or 3; channels of the input.
    stem
        Convolutions before the first level (their output is the skip at full resolution where pooling is "stride").
    encoder, decoder
        Channels of each level, fine to coarse and coarse to fine, as many as levels. A number means ``convolutions``
        convolutions, a sequence one each, an empty one (decoder only) none.
    tail
        Channels of the convolutions after the last upsampling.
    convolutions
        How many a level has where its channels are one number.
    norm, activation, slope, bias
        Of every convolution.
    pooling, upsampling
        ``max`` or ``stride``; ``nearest``, ``linear`` or ``transposed``.
    coarse_levels
        Last upsamplings left out: 1 gives features (and velocities) at half resolution.
    block
        What stands for the encoder's convolutions that keep the grid, other than each level's first one under "max"
        and the stem; for instance `verimorph.nn.features.large_kernel.LargeKernelBlock`.
    bottleneck
        Makes a part of the bottom, from its channels: `verimorph.nn.features.vit.GlobalTokens`.

    Attributes
    ----------
    out_channels, stride, scale
        Channels of the output, what the input's sides must be multiples of, how much coarser the output is.

    References
    ----------
    Ronneberger et al., U-Net, MICCAI 2015; Balakrishnan et al., VoxelMorph, IEEE TMI 38, 2019.
    """

    def __init__(
        self,
        *,
        ndim: int,
        inputs: int,
        stem: Sequence[int] = (),
        encoder: Sequence[Level] = (16, 32, 32, 32),
        decoder: Sequence[Level] = (32, 32, 32, 32),
        tail: Sequence[int] = (32, 16, 16),
        convolutions: int = 1,
        norm: Normalisation = "none",
        activation: Activation = "leaky_relu",
        slope: float = 0.2,
        bias: bool = True,
        pooling: Literal["max", "stride"] = "max",
        upsampling: Upsampling = "nearest",
        coarse_levels: int = 0,
        block: Block | None = None,
        bottleneck: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_ndim(ndim)
        if pooling not in ("max", "stride"):
            raise OptionError(f"unknown pooling '{pooling}'; known: max, stride")
        if not encoder or len(encoder) != len(decoder):
            raise OptionError(f"a U-Net needs as many decoder levels as encoder levels, got {encoder} and {decoder}")
        if not 0 <= coarse_levels < len(encoder):
            raise OptionError(f"coarse_levels must be from 0 to {len(encoder) - 1}, got {coarse_levels}")
        self.pool = pooling == "max"
        plain = partial(ConvBlock, ndim, norm=norm, activation=activation, slope=slope, bias=bias)
        keep: Block = block or plain

        def level(channels: Level) -> tuple[int, ...]:
            return (channels,) * convolutions if isinstance(channels, int) else tuple(channels)

        def chain(inputs: int, outputs: Sequence[int], make: Block) -> nn.Sequential:
            return nn.Sequential(*(make(i, o) for i, o in zip((inputs, *outputs), outputs, strict=False)))

        channels = inputs
        self.stem = chain(channels, stem, plain)
        channels = stem[-1] if stem else channels
        self.encoder, skips = nn.ModuleList(), []
        for widths in map(level, encoder):
            if not widths:
                raise OptionError("a level of the encoder needs at least one convolution")
            skips.append(widths[-1] if self.pool else channels)
            first = plain(channels, widths[0], stride=1 if self.pool else 2)
            self.encoder.append(nn.Sequential(first, *chain(widths[0], widths[1:], keep)))
            channels = widths[-1]
        self.bottleneck = nn.Identity() if bottleneck is None else bottleneck(channels)
        self.decoder, self.upsamplers = nn.ModuleList(), nn.ModuleList()
        for k, widths in enumerate(map(level, decoder)):
            self.decoder.append(chain(channels, widths, plain))
            channels = widths[-1] if widths else channels
            if k < len(encoder) - coarse_levels:
                self.upsamplers.append(Upsample(ndim, channels, mode=upsampling, activation=activation, slope=slope))
                channels += skips[-1 - k]
        self.tail = chain(channels, tail, plain)
        self.out_channels = tail[-1] if tail else channels
        self.stride, self.scale = 2 ** len(encoder), 2**coarse_levels

    def forward(self, x: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *out"]:
        """Features of an image or of images stacked in channels."""
        pool = functional.max_pool2d if x.ndim == 4 else functional.max_pool3d
        x = self.stem(x)
        skips = []
        for encode in self.encoder:
            if self.pool:
                skips.append(encode(x))
                x = pool(skips[-1], 2)
            else:
                skips.append(x)
                x = encode(x)
        x = self.bottleneck(x)
        skip: Tensor | None = None
        for k, decode in enumerate(self.decoder):
            x = _joined(decode, x, skip, self.upsamplers[k - 1] if skip is not None else None)
            skip = skips[-1 - k] if k < len(self.upsamplers) else None
            # Nothing else reads this skip: it may be freed as soon as it was.
            if k < len(self.upsamplers):
                skips[-1 - k] = None
        return _joined(self.tail, x, skip, self.upsamplers[-1] if skip is not None else None)


def _joined(parts: nn.Sequential, x: Tensor, skip: Tensor | None, upsample: nn.Module | None) -> Tensor:
    """``parts`` on [upsample(x), skip]; the first convolution does it all where it can (see `convolve_upsampled`)."""
    if skip is None or upsample is None:
        return parts(x)
    first = parts[0] if len(parts) else None
    if isinstance(first, ConvBlock) and first.takes_upsampled and upsample.mode == "nearest":
        return parts[1:](first.upsampled(x, skip))
    return parts(torch.cat((upsample(x), skip), 1))
