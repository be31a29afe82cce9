"""The plain registration network: both images in one stack, features, head."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import InputError, OptionError
from verimorph.nn.blocks import check_size, size_of


class RegistrationNetwork(nn.Module):
    """Early fusion: ``head(features([fixed, moving]))``.

    Parameters
    ----------
    features
        Takes the images stacked in channels; says ``stride``.
    head
        Takes features, ``fixed`` and ``moving``; returns named outputs (`verimorph.nn.model`).

    Attributes
    ----------
    stride
        Every side of the input must be a multiple of this.

    Raises
    ------
    InputError
        In the forward pass, for images of two shapes or of a side that is no multiple of the stride.
    OptionError
        For a condition: this network takes none.
    """

    def __init__(self, *, features: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.stride = int(features.stride)  # type: ignore[arg-type]

    def forward(
        self,
        *,
        fixed: Float[Tensor, "b c *fixed_space"],
        moving: Float[Tensor, "b c *moving_space"],
        condition: Float[Tensor, "b k"] | None = None,
    ) -> dict[str, Tensor]:
        """Named outputs; ``field`` is always there."""
        if condition is not None:
            raise OptionError("this network takes no condition")
        if fixed.shape != moving.shape:
            raise InputError(
                f"fixed and moving must have one shape, got {tuple(fixed.shape)} and {tuple(moving.shape)}"
            )
        check_size(size_of(fixed), self.stride)
        return self.head(self.features(torch.cat((fixed, moving), 1)), fixed=fixed, moving=moving)
