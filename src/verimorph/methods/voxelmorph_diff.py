"""Diffeomorphic VoxelMorph (Dalca et al. 2019): the network predicts a distribution of stationary velocities.

The idea: the variational posterior of a velocity field given both images is a Gaussian with a mean and a variance at
every voxel; training draws from it and weighs the likelihood of the moved image against the divergence from a prior
that prefers smooth fields. Velocities live at half resolution; scaling and squaring makes the maps invertible.
`deterministic` is the later form without a distribution. Deviations: with `laplacian_prior` a mean over voxels and
components, the weight 0.5 balances it against the likelihood term mse / (2 sigma^2), sigma = 0.02, as the released code
does on the mean velocity; there the variance counts 1.5 times as much in 3-D. Released layouts differ; this is the
U-Net of `voxelmorph` without its last upsampling, so its tail runs at half resolution.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from verimorph.methods.method import Citation, Method, Published, Variant
from verimorph.nn.features.unet import UNet
from verimorph.nn.heads.distribution import DistributionHead
from verimorph.nn.heads.velocity import VelocityHead
from verimorph.nn.network import RegistrationNetwork


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    encoder: Sequence[int] = (16, 32, 32, 32),
    decoder: Sequence[int] = (32, 32, 32, 32),
    tail: Sequence[int] = (32, 16, 16),
    probabilistic: bool = True,
    coarse_levels: int = 1,
    shrink: int = 2,
    steps: int = 7,
) -> nn.Module:
    """U-Net and a head for a distribution of velocities or one velocity, integrated on a grid ``shrink`` coarser."""
    features = UNet(
        ndim=ndim, inputs=2 * channels, encoder=encoder, decoder=decoder, tail=tail, coarse_levels=coarse_levels
    )
    make = DistributionHead if probabilistic else VelocityHead
    head = make(ndim=ndim, channels=features.out_channels, steps=steps, shrink=shrink)
    return RegistrationNetwork(features=features, head=head)


METHOD = Method(
    name="voxelmorph-diff",
    summary="U-Net, distribution of stationary velocities at half resolution, invertible maps",
    citation=Citation(
        authors="Dalca, Balakrishnan, Guttag, Sabuncu",
        title="Unsupervised Learning of Probabilistic Diffeomorphic Registration for Images and Surfaces",
        venue="Medical Image Analysis 57",
        year=2019,
        doi="10.1016/j.media.2019.07.006",
    ),
    build=build,
    objective=("mse:weight=1250", "laplacian_prior:precision=10,weight=0.5"),
    scheme={"optimiser": {"name": "adam", "lr": 1e-4}, "batch": 1},
    variants={
        "deterministic": Variant(
            "one velocity at full resolution, integrated at half, smoothness of the velocity as regulariser",
            settings={"probabilistic": False, "coarse_levels": 0},
            objective=("lncc:radius=4", "diffusion:on=velocity,weight=1"),
            parameters=327_331,
        ),
    },
    published=(
        Published("OASIS, ADNI and others, 30 structures", "dice", 0.753, "paper, table of results"),
        Published("IXI", "dice", 0.580, "TransMorph repository, atlas-to-patient, 30 labels, labels warped linearly"),
    ),
    deviations="weights of the two parts of the divergence; see the text of this module",
)
