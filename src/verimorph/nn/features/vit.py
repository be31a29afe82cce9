"""Global self-attention over patches of a coarse feature map: what stands at the bottom of a U-Net in ViT-V-Net."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import OptionError
from verimorph.nn.blocks import convolution


def _gelu(x: Tensor) -> Tensor:
    """A function of ours, for which torch takes no fused inference kernel: that one does not export."""
    return functional.gelu(x)


class GlobalTokens(nn.Module):
    """Patches to tokens, learned positions, transformer blocks, tokens back to the map; added to what came in.

    Parameters
    ----------
    ndim, channels
        2 or 3; of the map, in and out.
    grid
        Number of patches along each axis that the positions are learned for; another number is served by linear
        interpolation of the positions.
    patch, width, depth, heads, mlp, dropout
        Side of a patch, channels of a token, blocks, heads, hidden channels of the MLP, dropout in training.

    References
    ----------
    Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021; Chen et al., ViT-V-Net, MIDL 2021. Blocks are torch's.
    """

    def __init__(
        self,
        ndim: int,
        channels: int,
        *,
        grid: Sequence[int],
        patch: int = 1,
        width: int = 252,
        depth: int = 12,
        heads: int = 12,
        mlp: int = 3072,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if len(grid) != ndim or width % heads:
            raise OptionError(f"tokens need {ndim} numbers of patches and a width that {heads} heads divide")
        self.patch = patch
        self.embed = convolution(ndim, channels, width, kernel=patch, stride=patch)
        self.positions = nn.Parameter(torch.zeros(1, width, *grid))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, mlp, dropout, _gelu, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.back = convolution(ndim, width, channels, kernel=1)

    def forward(self, x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c *space"]:
        """The map with what every patch learned from all others."""
        if any(n % self.patch for n in x.shape[2:]):
            raise OptionError(f"a map of {tuple(x.shape[2:])} does not divide into patches of {self.patch}")
        tokens = self.embed(x)
        shape, positions = tokens.shape[2:], self.positions
        linear = "bilinear" if x.ndim == 4 else "trilinear"
        if positions.shape[2:] != shape:
            positions = functional.interpolate(positions, size=tuple(shape), mode=linear, align_corners=False)
        tokens = (tokens + positions).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        out = self.norm(tokens).transpose(1, 2).unflatten(2, tuple(shape))
        out = self.back(out)
        if self.patch > 1:
            out = functional.interpolate(out, size=tuple(x.shape[2:]), mode=linear, align_corners=False)
        return x + out

    def extra_repr(self) -> str:
        """Numbers of tokens, for ``print``."""
        return f"{math.prod(self.positions.shape[2:])} tokens"
