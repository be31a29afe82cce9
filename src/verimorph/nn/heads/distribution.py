"""A Gaussian over velocities: mean and variance at every voxel, and draws of it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.nn.blocks import convolution, size_of, start_small
from verimorph.nn.heads.displacement import in_full_precision
from verimorph.nn.heads.velocity import Integration, Inverse


class DistributionHead(nn.Module):
    """Two convolutions, mean and log-variance of the velocity; what is integrated is a draw in training, else the mean.

    ``velocity = mean + exp(log_variance / 2) * noise``, noise from N(0, 1), independent from voxel to voxel.

    Parameters
    ----------
    ndim, channels, kernel, deviation
        As in `verimorph.nn.heads.displacement.DisplacementHead`.
    log_variance
        At the start, everywhere; natural logarithm, voxels^2.
    steps, shrink, inverse
        As in `verimorph.nn.heads.velocity.Integration`.

    Attributes
    ----------
    sampling
        Whether to draw outside training too (`verimorph.nn.stochastic.sampling` switches it).
    generator
        Where noise comes from, drawn on the generator's device; None is torch's own.

    References
    ----------
    Dalca et al., Unsupervised learning of probabilistic diffeomorphic registration, Med. Image Anal. 57, 2019.
    """

    sampling: bool
    generator: torch.Generator | None

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        kernel: int = 3,
        deviation: float = 1e-5,
        log_variance: float | int = -10.0,
        steps: int = 7,
        shrink: int = 1,
        inverse: Inverse = "evaluation",
    ) -> None:
        super().__init__()
        self.mean = start_small(convolution(ndim, channels, ndim, kernel=kernel), deviation)
        self.log_variance = start_small(convolution(ndim, channels, ndim, kernel=kernel), 1e-10, log_variance)
        self.integration = Integration(steps=steps, shrink=shrink, inverse=inverse)
        self.sampling = False
        self.generator = None

    def draw(
        self, mean: Float[Tensor, "b d *space"], log_variance: Float[Tensor, "b d *space"]
    ) -> Float[Tensor, "b d *space"]:
        """One velocity of the distribution."""
        where = mean.device if self.generator is None else self.generator.device
        noise = torch.randn(mean.shape, generator=self.generator, device=where, dtype=mean.dtype)
        return mean + torch.exp(log_variance / 2) * noise.to(mean.device)

    def forward(
        self,
        features: Float[Tensor, "b k *coarse"],
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
    ) -> dict[str, Tensor]:
        """Mean, log-variance, ``velocity`` (draw or mean), ``field`` and, where asked for, ``inverse``."""
        mean = in_full_precision(self.mean, features)
        log_variance = in_full_precision(self.log_variance, features)
        velocity = self.draw(mean, log_variance) if self.training or self.sampling else mean
        outputs = self.integration(velocity, size_of(fixed))
        return {"velocity_mean": mean, "velocity_log_variance": log_variance, **outputs}
