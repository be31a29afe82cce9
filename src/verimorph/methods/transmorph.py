"""TransMorph (Chen et al. 2022): a Swin transformer encodes the pair, convolutions decode it, at several transforms.

The idea: attention in shifted windows relates distant voxels of both images from the first stage on, where convolutions
would need many levels; a convolutional decoder with convolutional skips keeps the detail. Variants change the transform
or make it random: `bayes` keeps dropout on in the transformer, `bspline` predicts control values of a velocity,
`diffeomorphic` a distribution of velocities (as in `voxelmorph-diff`), `time-varying` a sequence of velocities
(TransMorph-TVF, WBIR 2022). Deviations: maps smaller than a multiple of the window are padded, and the padding is
masked (no difference at the published 160x192x224, for which the window is a 32nd of each side); the bspline head is
one convolution on the lattice; `diffeomorphic` integrates at half resolution; the time-varying update is a true
composition unless ``update`` says ``released``, and every step has its own convolutions as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from verimorph.errors import OptionError, nearest
from verimorph.methods.method import Citation, Method, Published, Variant
from verimorph.nn.features.swin import SwinUNet, with_dropout_always_on
from verimorph.nn.heads.displacement import DisplacementHead
from verimorph.nn.heads.distribution import DistributionHead
from verimorph.nn.heads.spline import SplineHead
from verimorph.nn.heads.time_varying import TimeVaryingHead
from verimorph.nn.network import RegistrationNetwork


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    embedding: int = 96,
    depths: Sequence[int] = (2, 2, 4, 2),
    heads: Sequence[int] = (4, 4, 8, 8),
    window: Sequence[int] = (5, 6, 7),
    mlp_ratio: float = 4.0,
    drop_path: float = 0.3,
    transform: str = "displacement",
    always_on_dropout: float = 0.0,
    spacing: int = 3,
    steps: int = 7,
    update: Literal["compose", "released"] = "compose",
    checkpointing: bool = False,
) -> nn.Module:
    """Swin encoder, convolutional decoder, and the head of a ``transform``.

    ``transform`` is ``displacement``, ``bspline``, ``diffeomorphic`` or ``time-varying``; ``steps`` are squarings, or
    velocities in time. In 2-D the first two numbers of ``window`` count.
    """
    known = ("displacement", "bspline", "diffeomorphic", "time-varying")
    if transform not in known:
        raise OptionError(f"unknown transform '{transform}' of transmorph{nearest(transform, known)}")
    features: nn.Module = SwinUNet(
        ndim=ndim,
        inputs=2 * channels,
        embedding=embedding,
        depths=depths,
        heads=heads,
        window=tuple(window)[:ndim],
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
        coarse_levels=int(transform in ("diffeomorphic", "time-varying")),
        checkpointing=checkpointing,
    )
    shared = {"ndim": ndim, "channels": features.out_channels}
    if transform == "bspline":
        head: nn.Module = SplineHead(**shared, spacing=spacing, of="velocity", steps=steps)
    elif transform == "diffeomorphic":
        head = DistributionHead(**shared, steps=steps, shrink=2)
    elif transform == "time-varying":
        head = TimeVaryingHead(**shared, images=channels, steps=steps, update=update)
    else:
        head = DisplacementHead(**shared)
    if always_on_dropout > 0:
        features = with_dropout_always_on(features, always_on_dropout)
    return RegistrationNetwork(features=features, head=head)


_IXI = "TransMorph repository, atlas-to-patient, 30 labels, labels warped linearly"

METHOD = Method(
    name="transmorph",
    summary="Swin transformer encoder, convolutional decoder; displacement or one of five variants",
    citation=Citation(
        authors="Chen, Frey, He, Segars, Li, Du",
        title="TransMorph: Transformer for Unsupervised Medical Image Registration",
        venue="Medical Image Analysis 82",
        year=2022,
        doi="10.1016/j.media.2022.102615",
    ),
    build=build,
    objective=("lncc:radius=4", "diffusion:weight=1"),
    scheme={"optimiser": {"name": "adam", "lr": 1e-4, "amsgrad": True, "schedule": "poly", "power": 0.9}, "batch": 1},
    variants={
        "bayes": Variant("dropout in the transformer that stays on for sampling", {"always_on_dropout": 0.15}),
        "bspline": Variant("control values of a B-spline velocity", {"transform": "bspline"}),
        "diffeomorphic": Variant(
            "distribution of velocities at half resolution",
            {"transform": "diffeomorphic"},
            objective=("mse:weight=1250", "laplacian_prior:precision=10,weight=0.5"),
        ),
        "time-varying": Variant(
            "twelve velocities in turn, each seeing the image as moved so far",
            {"transform": "time-varying", "steps": 12},
            objective=("lncc:radius=4", "dice:weight=1", "diffusion:weight=1"),
        ),
        "semi": Variant(
            "labels of the training images enter the loss, both directions",
            objective=("lncc:radius=4", "dice:weight=1", "diffusion:weight=1"),
            scheme={"symmetric": True},
        ),
        "tiny": Variant("6 channels", {"embedding": 6, "heads": (2, 2, 4, 4)}),
        "small": Variant("48 channels", {"embedding": 48, "heads": (4, 4, 4, 4)}, parameters=11_760_000),
        "large": Variant(
            "128 channels, 12 blocks in the third stage",
            {"embedding": 128, "depths": (2, 2, 12, 2), "heads": (4, 4, 8, 16)},
            parameters=108_340_000,
        ),
    },
    published=(
        Published("IXI", "dice", 0.753, _IXI),
        Published("IXI", "dice", 0.754, f"bayes, {_IXI}"),
        Published("IXI", "dice", 0.761, f"bspline, {_IXI}"),
        Published("IXI", "dice", 0.594, f"diffeomorphic, {_IXI}"),
        Published("OASIS, Learn2Reg validation", "dice", 0.8575, "TransMorph repository, semi"),
        Published("OASIS, Learn2Reg test", "dice", 0.8241, "time-varying, WBIR 2022 paper"),
    ),
    parameters=46_771_251,
    needs=("train",),
    deviations="masked padding, one-convolution spline head, true composition; see the text of this module",
)
