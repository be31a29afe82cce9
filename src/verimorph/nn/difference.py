"""Registration by fused pyramids: one encoder of both images, fusion at every level, one decoder, heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError


class PyramidFusionNetwork(nn.Module):
    """``head(decoder(fusion(encoder(fixed), encoder(moving))))``, with a head a decoded level for deep supervision.

    Parameters
    ----------
    encoder
        From an image to a pyramid, the same for both; has ``stride``.
    fusion
        From two pyramids to one (`verimorph.nn.matching.Fusion`).
    decoder
        From a pyramid to features of every level, coarsest first, the last at full resolution.
    head
        From the last features to named outputs, ``field`` among them.
    deep
        Heads of the levels before the last, coarsest first, whose fields are at full resolution; empty for none.
    stages
        Emit ``stageK/field`` of the deep heads. Switch off where only the result counts.

    Attributes
    ----------
    stride
        Every side of the input must be a multiple of this.
    two_way
        Takes pairs in both directions with every image encoded once (``both_ways`` of ``forward``).
    """

    two_way = True

    def __init__(
        self,
        *,
        encoder: nn.Module,
        fusion: nn.Module,
        decoder: nn.Module,
        head: nn.Module,
        deep: Sequence[nn.Module] = (),
        stages: bool = True,
    ) -> None:
        super().__init__()
        self.encoder, self.fusion, self.decoder, self.head = encoder, fusion, decoder, head
        self.deep = nn.ModuleList(deep)
        self.stages, self.stride = stages, int(encoder.stride)  # type: ignore[arg-type]

    def forward(
        self,
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *moving_space"],
        condition: Float[Tensor, "b k"] | None = None,
        both_ways: bool = False,
    ) -> dict[str, Tensor]:
        """What the head returns; with deep heads ``stageK/...`` of each as well, K from 1, coarsest first.

        With ``both_ways`` the outputs are those of the batch ``fixed, moving`` registered to ``moving, fixed``, twice
        the size, for half the work of its encoder.
        """
        if condition is not None:
            raise OptionError("this network takes no condition")
        if fixed.shape != moving.shape:
            raise InputError(
                f"fixed {tuple(fixed.shape)} and moving {tuple(moving.shape)} differ in shape; put them on one grid"
            )
        if both_ways:
            each = self.encoder(torch.cat((fixed, moving)))
            pyramids = each, [level.roll(len(fixed), 0) for level in each]
        else:
            pyramids = self.encoder(fixed), self.encoder(moving)
        decoded = self.decoder(self.fusion(fixed=pyramids[0], moving=pyramids[1]))
        outputs = dict(self.head(decoded[-1]))
        if self.stages:
            for number, head in enumerate(self.deep):
                outputs |= {f"stage{number + 1}/{name}": value for name, value in head(decoded[number]).items()}
        return outputs
