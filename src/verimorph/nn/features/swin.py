"""Shifted-window attention (Swin) in 2-D and 3-D: stages, and the U-Net of TransMorph on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from verimorph.errors import MissingExtraError, OptionError
from verimorph.nn.blocks import ConvBlock, check_ndim, convolution
from verimorph.nn.stochastic import AlwaysOnDropout


def _parts() -> tuple:
    """MONAI's attention, windows, merging, MLP and stochastic depth."""
    try:
        from monai.networks.blocks import MLPBlock
        from monai.networks.layers import DropPath
        from monai.networks.nets.swin_unetr import PatchMergingV2, WindowAttention
    except ImportError as error:
        raise MissingExtraError("MONAI", "train", "a Swin transformer") from error
    return WindowAttention, PatchMergingV2, MLPBlock, DropPath


def padded_shape(shape: Sequence[int], window: Sequence[int]) -> tuple[int, ...]:
    """The next multiple of the window along each axis."""
    return tuple(math.ceil(n / w) * w for n, w in zip(shape, window, strict=True))


def into_windows(x: Float[Tensor, "b *space c"], window: Sequence[int]) -> Float[Tensor, "w n c"]:
    """Voxels sorted into windows: (b * windows, voxels of a window, c). Sides must be multiples of the window."""
    batch, *shape, channels = x.shape
    split = [m for n, w in zip(shape, window, strict=True) for m in (n // w, w)]
    d = len(shape)
    order = (0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2), 2 * d + 1)
    return x.reshape(batch, *split, channels).permute(order).reshape(-1, math.prod(window), channels)


def from_windows(
    windows: Float[Tensor, "w n c"], window: Sequence[int], shape: Sequence[int]
) -> Float[Tensor, "b *space c"]:
    """The way back from `into_windows`."""
    d, counts = len(shape), [n // w for n, w in zip(shape, window, strict=True)]
    x = windows.reshape(-1, *counts, *window, windows.shape[-1])
    order = (0, *(m for k in range(d) for m in (1 + k, 1 + d + k)), 2 * d + 1)
    return x.permute(order).reshape(-1, *shape, windows.shape[-1])


def window_mask(
    shape: Sequence[int], window: Sequence[int], shift: Sequence[int], device: torch.device
) -> Float[Tensor, "w n n"] | None:
    """What may not attend to what, as -100 added to the logits: voxels that the shift brought together from opposite
    sides of the image, and voxels of the padding. None where all may."""
    padded = padded_shape(shape, window)
    if not any(shift) and padded == tuple(shape):
        return None
    label = torch.zeros((1, *padded, 1), device=device)
    outside = torch.zeros((1, *padded, 1), dtype=torch.bool, device=device)
    for axis, (n, p, w, s) in enumerate(zip(shape, padded, window, shift, strict=True)):
        place = torch.arange(p, device=device)
        region = (place >= p - w).float() + (place >= p - s).float() if s else torch.zeros(p, device=device)
        along = [1] * label.ndim
        along[1 + axis] = p
        label = 3 * label + region.view(along)
        outside = outside | ((place + s) % p >= n).view(along)
    labels = into_windows(torch.where(outside, -1.0, label), window)
    return torch.where(labels == labels.transpose(1, 2), 0.0, -100.0)


class SwinBlock(nn.Module):
    """``x + attention in windows``, then ``x + MLP``, each on normalised features.

    Parameters
    ----------
    channels, heads, window, shift, mlp_ratio, qkv_bias
        Of the attention; ``shift`` says whether windows are moved by half of their size.
    drop_path, dropout
        Share of items whose branch is left out in training; dropout of attention weights, projections and MLP.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int,
        window: Sequence[int],
        shift: bool,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        attention, _, mlp, path = _parts()
        self.window, self.shift = tuple(window), shift
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = attention(channels, heads, self.window, qkv_bias, dropout, dropout)
        self.mlp = mlp(channels, int(channels * mlp_ratio), dropout, dropout_mode="swin")
        self.drop_path = path(drop_path) if drop_path > 0 else nn.Identity()

    def shift_on(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shift along each axis: none where one window covers it."""
        padded = padded_shape(shape, self.window)
        return tuple(w // 2 if self.shift and p > w else 0 for p, w in zip(padded, self.window, strict=True))

    def forward(self, x: Float[Tensor, "b *space c"], mask: Float[Tensor, "w n n"] | None) -> Tensor:
        """Features, channels last; ``mask`` is `window_mask` for this shape and ``shift_on`` it."""
        shape = tuple(int(n) for n in x.shape[1:-1])
        padded, shift, axes = padded_shape(shape, self.window), self.shift_on(shape), tuple(range(1, x.ndim - 1))
        y = self.norm1(x)
        if padded != tuple(shape):
            y = functional.pad(
                y, (0, 0, *(m for n, p in zip(shape[::-1], padded[::-1], strict=True) for m in (0, p - n)))
            )
        if any(shift):
            y = torch.roll(y, [-s for s in shift], axes)
        y = from_windows(self.attention(into_windows(y, self.window), mask), self.window, padded)
        if any(shift):
            y = torch.roll(y, shift, axes)
        for axis, n in zip(axes, shape, strict=True):
            y = y.narrow(axis, 0, n)
        x = x + self.drop_path(y)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class SwinPyramid(nn.Module):
    """Feature maps of a Swin transformer, one a stage, fine to coarse: 1/patch, 1/(2 patch), ...

    Parameters
    ----------
    ndim, inputs
        2 or 3; channels of the input.
    patch, embedding, depths, heads
        Side of a patch and channels of its embedding (doubled from stage to stage); blocks and heads of each stage.
    window
        Voxels along each axis, of the map. Maps are padded to a multiple; the padding takes no part.
    mlp_ratio, qkv_bias, drop_path, dropout
        As in `SwinBlock`; ``drop_path`` grows from 0 to its value over the blocks.
    checkpointing
        Compute a block again in the backward pass instead of keeping its activations.

    References
    ----------
    Liu et al., Swin transformer, ICCV 2021. Attention with relative position bias, patch merging, MLP and stochastic
    depth are MONAI's; windows and masks are ours, since MONAI's shrink the window on small maps without its biases.
    """

    def __init__(
        self,
        *,
        ndim: int,
        inputs: int,
        patch: int = 4,
        embedding: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        heads: Sequence[int] = (4, 4, 8, 8),
        window: Sequence[int] = (5, 6, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_path: float = 0.3,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        merging = _parts()[1]
        if len(depths) != len(heads):
            raise OptionError(f"depths and heads must be as many, got {depths} and {heads}")
        if len(window) != check_ndim(ndim):
            raise OptionError(f"the window needs {ndim} numbers, got {tuple(window)}")
        self.out_channels = tuple(embedding * 2**stage for stage in range(len(depths)))
        for channels, number in zip(self.out_channels, heads, strict=True):
            if channels % number:
                raise OptionError(f"{number} heads do not divide {channels} channels")
        self.window, self.checkpointing = tuple(window), checkpointing
        self.embed = convolution(ndim, inputs, embedding, kernel=patch, stride=patch)
        self.embed_norm = nn.LayerNorm(embedding)
        total = sum(depths)
        rates = [drop_path * k / max(total - 1, 1) for k in range(total)]
        self.stages, self.merging, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(self.out_channels, depths, strict=True)):
            block = partial(SwinBlock, heads=heads[stage], window=window, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias)
            self.stages.append(
                nn.ModuleList(
                    block(channels, shift=k % 2 == 1, drop_path=rates.pop(0), dropout=dropout) for k in range(depth)
                )
            )
            self.norms.append(nn.LayerNorm(channels))
            if stage + 1 < len(depths):
                self.merging.append(merging(channels, spatial_dims=ndim))
        self.stride = patch * 2 ** (len(depths) - 1)

    def forward(self, x: Float[Tensor, "b i *space"]) -> list[Tensor]:
        """Maps (b, c, \\*space), fine to coarse."""
        x = self.embed_norm(self.embed(x).movedim(1, -1))
        maps = []
        for number, (blocks, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            if number:
                x = self.merging[number - 1](x)
            shape, masks = tuple(int(n) for n in x.shape[1:-1]), {}
            for block in blocks:
                shift = block.shift_on(shape)
                if shift not in masks:
                    masks[shift] = window_mask(shape, self.window, shift, x.device)
                if self.checkpointing and self.training:
                    x = checkpoint(block, x, masks[shift], use_reentrant=False)
                else:
                    x = block(x, masks[shift])
            maps.append(norm(x).movedim(-1, 1))
        return maps


_convolve = partial(ConvBlock, bias=False, norm="instance", slope=0.01)


class _DecoderBlock(nn.Module):
    """Linear upsampling, skip, two convolutions with instance normalisation."""

    def __init__(self, ndim: int, inputs: int, skip: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = _convolve(ndim, inputs + skip, outputs), _convolve(ndim, outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        mode = "bilinear" if x.ndim == 4 else "trilinear"
        x = functional.interpolate(x, scale_factor=2.0, mode=mode, align_corners=False)
        return self.second(self.first(torch.cat((x, skip), 1)))


class SwinUNet(nn.Module):
    """TransMorph's features: a Swin pyramid as encoder, convolutions as decoder, two convolutional skips on top.

    From the coarsest map up: linear upsampling, skip, two 3^d convolutions with instance normalisation. Skips are the
    finer maps; above 1/4 a convolution of the average-pooled images (half of the embedding's channels, at 1/2) and one
    of the images (``out_channels``, at 1/1).

    Parameters
    ----------
    ndim, inputs
        2 or 3; channels of the input.
    embedding, depths, heads, window, mlp_ratio, qkv_bias, drop_path, dropout, checkpointing
        As in `SwinPyramid`; patches have the side 4.
    channels
        Of the output at full resolution.
    coarse_levels
        1 leaves the last upsampling out: half the embedding's channels at half resolution.

    Attributes
    ----------
    out_channels, stride, scale
        As in `verimorph.nn.features.unet.UNet`.

    References
    ----------
    Chen et al., TransMorph: Transformer for unsupervised medical image registration, Med. Image Anal. 82, 2022.
    """

    def __init__(
        self,
        *,
        ndim: int,
        inputs: int,
        embedding: int = 96,
        depths: Sequence[int] = (2, 2, 4, 2),
        heads: Sequence[int] = (4, 4, 8, 8),
        window: Sequence[int] = (5, 6, 7),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        drop_path: float = 0.3,
        dropout: float = 0.0,
        channels: int = 16,
        coarse_levels: int = 0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if coarse_levels not in (0, 1):
            raise OptionError(f"coarse_levels must be 0 or 1, got {coarse_levels}")
        self.encoder = SwinPyramid(
            ndim=ndim,
            inputs=inputs,
            embedding=embedding,
            depths=depths,
            heads=heads,
            window=window,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_path=drop_path,
            dropout=dropout,
            checkpointing=checkpointing,
        )
        widths, half = self.encoder.out_channels, embedding // 2
        self.decoder = nn.ModuleList(_DecoderBlock(ndim, 2 * width, width, width) for width in reversed(widths[:-1]))
        self.half_skip = _convolve(ndim, inputs, half)
        self.decoder.append(_DecoderBlock(ndim, embedding, half, half))
        self.full_skip: ConvBlock | None = None
        if coarse_levels == 0:
            self.full_skip = _convolve(ndim, inputs, channels)
            self.decoder.append(_DecoderBlock(ndim, half, channels, channels))
        self.out_channels = channels if coarse_levels == 0 else half
        self.stride, self.scale = self.encoder.stride, 2**coarse_levels

    def forward(self, x: Float[Tensor, "b i *space"]) -> Float[Tensor, "b o *out"]:
        """Features of images stacked in channels."""
        pool = functional.avg_pool2d if x.ndim == 4 else functional.avg_pool3d
        *skips, y = self.encoder(x)
        skips.insert(0, self.half_skip(pool(x, 2)))
        if self.full_skip is not None:
            skips.insert(0, self.full_skip(x))
        for decode in self.decoder:
            y = decode(y, skips.pop())
        return y


def with_dropout_always_on(module: nn.Module, p: float) -> nn.Module:
    """The module with the dropouts of its Swin blocks replaced by such as `verimorph.nn.stochastic` keeps on."""
    for block in [part for part in module.modules() if isinstance(part, SwinBlock)]:
        block.attention.attn_drop, block.attention.proj_drop = AlwaysOnDropout(p), AlwaysOnDropout(p)
        block.mlp.drop1, block.mlp.drop2 = AlwaysOnDropout(p), AlwaysOnDropout(p)
    return module
