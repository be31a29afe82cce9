"""LKU-Net (Jia et al. 2022): a U-Net whose coarse levels look through large kernels; as good as transformers, smaller.

The idea: what attention brings to registration is a wide receptive field, and a 5^3 convolution beside a 3^3, a 1^3 and
the identity has one too; after training the four fold into one convolution (`verimorph.nn.features.large_kernel`). The
displacement is bounded by a softsign to half the image. Kernels are 5 in 3-D and 7 in 2-D, as published. Deviations:
the published smoothness weight 5 holds for a displacement in voxels as here; half the image is N/2 voxels, not (N -
1)/2.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from verimorph.methods.method import Citation, Method, Published, Variant
from verimorph.nn.features.large_kernel import LargeKernelBlock
from verimorph.nn.features.unet import UNet
from verimorph.nn.heads.displacement import DisplacementHead
from verimorph.nn.heads.velocity import VelocityHead
from verimorph.nn.network import RegistrationNetwork


def build(
    *, ndim: int = 3, channels: int = 1, start: int = 8, kernel: int | None = None, diffeomorphic: bool = False
) -> nn.Module:
    """U-Net with large kernels from ``start`` channels; ``kernel`` None is 5 in 3-D and 7 in 2-D."""
    c, k = start, kernel or {2: 7, 3: 5}[ndim]
    features = UNet(
        ndim=ndim,
        inputs=2 * channels,
        stem=(c, c),
        encoder=((2 * c, 2 * c), (4 * c, 4 * c), (8 * c, 8 * c), (8 * c, 8 * c)),
        decoder=((), (8 * c, 4 * c), (4 * c, 2 * c), (4 * c, 2 * c)),
        tail=(2 * c, 2 * c),
        activation="prelu",
        pooling="stride",
        upsampling="transposed",
        block=lambda _, width: partial(LargeKernelBlock, kernel=k)(ndim, width),
    )
    make = VelocityHead if diffeomorphic else DisplacementHead
    return RegistrationNetwork(
        features=features, head=make(ndim=ndim, channels=features.out_channels, bias=False, bound=1.0)
    )


_IXI = "LKU-Net repository, atlas-to-patient, 30 labels, labels warped linearly"

METHOD = Method(
    name="lku-net",
    summary="U-Net with large kernels, bounded displacement; foldable to plain convolutions",
    citation=Citation(
        authors="Jia, Bartlett, Zhang, Lu, Qiu, Duan",
        title="U-Net vs Transformer: Is U-Net Outdated in Medical Image Registration?",
        venue="Machine Learning in Medical Imaging (MLMI)",
        year=2022,
        doi="10.1007/978-3-031-21014-3_16",
    ),
    build=build,
    objective=("lncc:radius=4", "diffusion:weight=5"),
    scheme={"optimiser": {"name": "adam", "lr": 1e-4}, "batch": 1},
    variants={
        "c4": Variant("4 channels at the start", {"start": 4}, parameters=522_302),
        "c16": Variant("16 channels at the start", {"start": 16}),
        "c32": Variant(
            "32 channels at the start and labels in the loss, as on OASIS",
            {"start": 32},
            objective=("mse", "diffusion:weight=0.01", "dice"),
        ),
        "diffeomorphic": Variant(
            "stationary velocity, 7 squarings",
            {"diffeomorphic": True},
            objective=("lncc:radius=4", "diffusion:on=velocity,weight=5"),
        ),
    },
    published=(
        Published("IXI", "dice", 0.765, f"8 channels, {_IXI}"),
        Published("IXI", "dice", 0.758, f"4 channels, {_IXI}"),
        Published("IXI", "dice", 0.760, f"8 channels, diffeomorphic, {_IXI}"),
    ),
    parameters=2_086_342,
    deviations="half the image is N/2 voxels",
)
