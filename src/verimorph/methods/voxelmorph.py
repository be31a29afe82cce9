"""VoxelMorph (Balakrishnan et al. 2019): a U-Net on both images predicts the displacement, trained without truth.

The idea: what a registration would minimise for one pair is minimised over all pairs of a collection by the weights of
a network, and a new pair costs one forward pass. The layout is that of the released code; `vm1` and `vm2` are the
earlier ones by which most papers compare (strided convolutions, the images themselves as the last skip). Deviations:
the weights 0.01 (mse) and 1 (lncc) of the smoothness term are the released code's and hold for a field in voxels,
averaged over axes as here; convolutions that follow an upsampling are computed without making the upsampled features
(same values).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from verimorph.methods.method import Citation, Method, Published, Variant
from verimorph.nn.features.unet import UNet
from verimorph.nn.heads.displacement import DisplacementHead
from verimorph.nn.network import RegistrationNetwork


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    encoder: Sequence[int] = (16, 32, 32, 32),
    decoder: Sequence[int] = (32, 32, 32, 32),
    tail: Sequence[int] = (32, 16, 16),
    pooling: Literal["max", "stride"] = "max",
) -> nn.Module:
    """U-Net and displacement head."""
    features = UNet(ndim=ndim, inputs=2 * channels, encoder=encoder, decoder=decoder, tail=tail, pooling=pooling)
    return RegistrationNetwork(features=features, head=DisplacementHead(ndim=ndim, channels=features.out_channels))


_BENCHMARK = "TransMorph repository, IXI atlas-to-patient, 30 labels, labels warped linearly"

METHOD = Method(
    name="voxelmorph",
    summary="U-Net on both images, displacement, trained without truth; the baseline of every comparison",
    citation=Citation(
        authors="Balakrishnan, Zhao, Sabuncu, Guttag, Dalca",
        title="VoxelMorph: A Learning Framework for Deformable Medical Image Registration",
        venue="IEEE Transactions on Medical Imaging 38(8)",
        year=2019,
        doi="10.1109/TMI.2019.2897538",
    ),
    build=build,
    objective=("lncc:radius=4", "diffusion:weight=1"),
    scheme={"optimiser": {"name": "adam", "lr": 1e-4}, "batch": 1},
    variants={
        "mse": Variant(
            "squared intensity differences instead of local correlation",
            objective=("mse", "diffusion:weight=0.01"),
        ),
        "semi": Variant(
            "labels of the training images enter the loss",
            objective=("lncc:radius=4", "diffusion:weight=1", "dice:weight=0.01"),
        ),
        "vm1": Variant(
            "VoxelMorph-1 of the comparisons: 8 channels at the top",
            settings={"encoder": (8, 32, 32, 32), "tail": (32, 8, 8), "pooling": "stride"},
            parameters=274_387,
        ),
        "vm2": Variant(
            "VoxelMorph-2 of the comparisons: strided convolutions, the images as the last skip",
            settings={"pooling": "stride"},
            parameters=301_411,
        ),
    },
    published=(
        Published("OASIS, ADNI and others, 30 structures", "dice", 0.753, "paper, table of results, CC"),
        Published("OASIS, ADNI and others, 30 structures", "dice", 0.752, "paper, table of results, MSE"),
        Published("IXI", "dice", 0.729, f"VoxelMorph-1, {_BENCHMARK}"),
        Published("IXI", "dice", 0.732, f"VoxelMorph-2, {_BENCHMARK}"),
    ),
    parameters=327_331,
    deviations="none in the network; the smoothness term is averaged over voxels, axes and components",
)
