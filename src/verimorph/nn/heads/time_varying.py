"""A velocity that changes with time: one small head a step, each of which sees the image as moved so far."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.field import compose, resize, resize_displacement, warp
from verimorph.nn.blocks import ConvBlock, convolution, size_of, start_small
from verimorph.nn.heads.displacement import exact, in_full_precision


class _Step(nn.Module):
    """Velocity of one step from the shared features and the pair as it stands."""

    def __init__(self, ndim: int, channels: int, images: int, hidden: int, deviation: float) -> None:
        super().__init__()
        block = partial(ConvBlock, ndim, bias=False, norm="instance", slope=0.01)
        self.pair = block(2 * images, hidden)
        self.join = nn.Sequential(block(channels + hidden, hidden), block(hidden, hidden))
        self.velocity = start_small(convolution(ndim, hidden, ndim), deviation)

    def forward(self, features: Tensor, fixed: Tensor, moved: Tensor) -> Tensor:
        pair = self.pair(torch.cat((fixed, moved), 1))
        return in_full_precision(self.velocity, self.join(torch.cat((features, pair), 1)))


class TimeVaryingHead(nn.Module):
    """``u <- v_t o (id + u) + u`` for t = 1 .. T, with v_t predicted from the features, fixed, and moving o (id + u).

    All on the grid of the features; images are resized to it.

    Parameters
    ----------
    ndim, channels, images
        2 or 3; channels of the features and of one image.
    steps, hidden, deviation
        T; channels of each step's convolutions; standard deviation of the last one's first weights.
    update
        ``compose`` as above; ``released``: ``u <- u + v_t o (id + v_t)``, which the first released code computes.

    References
    ----------
    Chen et al., Unsupervised learning of diffeomorphic image registration via TransMorph, WBIR 2022.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        images: int = 1,
        steps: int = 12,
        hidden: int = 16,
        deviation: float = 1e-5,
        update: Literal["compose", "released"] = "compose",
    ) -> None:
        super().__init__()
        if steps < 1 or update not in ("compose", "released"):
            raise OptionError(f"give at least one step and update 'compose' or 'released', got {steps} and '{update}'")
        self.steps = nn.ModuleList(_Step(ndim, channels, images, hidden, deviation) for _ in range(steps))
        self.update = update

    def forward(
        self,
        features: Float[Tensor, "b k *coarse"],
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
    ) -> dict[str, Tensor]:
        """``field`` on the grid of the images."""
        coarse = size_of(features)
        small_fixed, small_moving = exact(resize(fixed, coarse)), exact(resize(moving, coarse))
        field: Tensor | None = None
        for step in self.steps:
            moved = small_moving if field is None else self._moved(small_moving, field)
            velocity = step(features, small_fixed, moved)
            field = self._updated(field, velocity)
        assert field is not None
        return {"field": resize_displacement(field, size_of(fixed))}

    def _updated(self, field: Tensor | None, velocity: Tensor) -> Tensor:
        if field is None and self.update == "compose":
            return velocity  # outside the block below: an empty one is nothing that torch.export can write
        with torch.autocast(velocity.device.type, enabled=False):
            if self.update == "compose":
                assert field is not None
                return compose(velocity, field)
            # compose(v, v) = v + v o (id + v): one v too many.
            change = compose(velocity, velocity) - velocity
            return change if field is None else field + change

    @staticmethod
    def _moved(moving: Tensor, field: Tensor) -> Tensor:
        with torch.autocast(moving.device.type, enabled=False):
            return warp(moving, field)
