"""Stationary velocity, integrated by scaling and squaring."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.field import exponentiate, resize_displacement
from verimorph.nn.blocks import convolution, size_of, start_small
from verimorph.nn.heads.displacement import bounded, exact, in_full_precision

Inverse = Literal["always", "evaluation", "never"]


class Integration(nn.Module):
    """Velocity to the fields of its flow.

    Parameters
    ----------
    steps
        Squarings K: the first step is velocity / 2^K.
    shrink
        Integrate on a grid this much coarser than the images' (the velocity is resized to it where it is on another).
    inverse
        When the inverse field, the flow of -velocity, is computed too: it costs as much again.
    """

    def __init__(self, *, steps: int = 7, shrink: int = 1, inverse: Inverse = "evaluation") -> None:
        super().__init__()
        if steps < 1 or shrink < 1:
            raise OptionError(f"integration needs steps and shrink of at least 1, got {steps} and {shrink}")
        if inverse not in ("always", "evaluation", "never"):
            raise OptionError(f"unknown inverse '{inverse}'; known: always, evaluation, never")
        self.steps, self.shrink, self.inverse = steps, shrink, inverse

    def grid(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the grid on which the flow is integrated."""
        return tuple(max(1, n // self.shrink) for n in shape)

    def flow(self, velocity: Float[Tensor, "b d *coarse"], shape: tuple[int, ...]) -> Float[Tensor, "b d *space"]:
        """Displacement on a grid of ``shape`` of the flow at time 1."""
        return resize_displacement(exponentiate(velocity, steps=self.steps), shape)

    def forward(self, velocity: Float[Tensor, "b d *coarse"], shape: tuple[int, ...]) -> dict[str, Tensor]:
        """``velocity`` as integrated, ``field`` and, where asked for, ``inverse``."""
        with torch.autocast(velocity.device.type, enabled=False):
            velocity = resize_displacement(exact(velocity), self.grid(shape))
            outputs = {"velocity": velocity, "field": self.flow(velocity, shape)}
            if self.inverse == "always" or (self.inverse == "evaluation" and not self.training):
                outputs["inverse"] = self.flow(-velocity, shape)
        return outputs


class VelocityHead(nn.Module):
    """One convolution whose output is the velocity, in voxels of its own grid a unit of time.

    Parameters
    ----------
    ndim, channels, kernel, bias, deviation, bound
        As in `verimorph.nn.heads.displacement.DisplacementHead`.
    steps, shrink, inverse
        As in `Integration`.

    References
    ----------
    Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration, Med. Image Anal. 57, 2019.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        kernel: int = 3,
        bias: bool = True,
        deviation: float = 1e-5,
        bound: float | int | None = None,
        steps: int = 7,
        shrink: int = 1,
        inverse: Inverse = "evaluation",
    ) -> None:
        super().__init__()
        self.convolution = start_small(convolution(ndim, channels, ndim, kernel=kernel, bias=bias), deviation)
        self.integration = Integration(steps=steps, shrink=shrink, inverse=inverse)
        self.bound = bound

    def forward(
        self,
        features: Float[Tensor, "b k *coarse"],
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
    ) -> dict[str, Tensor]:
        """``velocity``, ``field`` and, where asked for, ``inverse``."""
        raw = in_full_precision(self.convolution, features)
        velocity = raw if self.bound is None else bounded(raw, self.bound)
        return self.integration(velocity, size_of(fixed))
