"""Estienne et al. (2020): fields as sums of spatial gradients, learned in both directions, started on noisy labels.

The idea: one encoder sees each image alone; the difference of the two pyramids, moving minus fixed, goes through a
decoder to spatial gradients in (0, 1), 1/2 for no stretch, and their cumulative sum along each axis is the map.
Exchange of the images turns the difference round, so training both directions costs no weights. The large gain comes
from training on over a thousand scans first, with labels that a network drew (`estienne-segmentation`).

What is anchored: the map hangs on the first voxel of each axis and cannot shift the whole image, so pairs have to be
aligned by their centres before. Nothing forbids folds across axes, and nothing makes the two directions each other's
inverse; add the term ``icon`` for that. Deviations: corner voxels are the ends of the sampling grid in training as in
export (the released code trained half a voxel off); Dice is taken item by item, not over the flattened batch; images
are not multiplied by masks, which similarity terms take as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from verimorph.methods.method import Citation, Method, Published, Variant
from verimorph.nn.blocks import Activation, Normalisation
from verimorph.nn.difference import PyramidFusionNetwork
from verimorph.nn.features.vnet import CLASSIC, VNetDecoder, VNetEncoder
from verimorph.nn.heads.gradients import GradientHead
from verimorph.nn.matching import Fusion

#: Channels of the five levels, finest first, before multiplication.
WIDTHS = (4, 8, 16, 32, 64)


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    channel_multiplication: int = 8,
    convolutions: Sequence[int] = CLASSIC,
    fusion: str = "subtract",
    norm: Normalisation = "instance",
    activation: Activation = "relu",
    deep_supervision: bool = True,
    zero: bool = True,
) -> nn.Module:
    """Encoder, fusion at every level, decoder, gradient head; a head a coarser level for deep supervision."""
    widths = [channel_multiplication * width for width in WIDTHS]
    fuse = Fusion(fusion)
    skips = [fuse.channels(width) for width in widths]
    deep = []
    if deep_supervision:
        ins = (skips[-1], *widths[-2:0:-1])
        deep = [
            GradientHead(ndim=ndim, channels=width, factor=2 ** (len(widths) - 1 - number), zero=False)
            for number, width in enumerate(ins)
        ]
    return PyramidFusionNetwork(
        encoder=VNetEncoder(
            ndim=ndim, channels=channels, widths=widths, convolutions=convolutions, norm=norm, activation=activation
        ),
        fusion=fuse,
        decoder=VNetDecoder(
            ndim=ndim, widths=widths, skips=skips, convolutions=convolutions, norm=norm, activation=activation
        ),
        head=GradientHead(ndim=ndim, channels=widths[0], zero=zero),
        deep=deep,
    )


def _levels(term: str) -> tuple[str, ...]:
    """A similarity at the four deep heads and at the end, a fifth each."""
    joint = "," if ":" in term else ":"
    return (f"{term}{joint}weight=0.2", *(f"{term}{joint}weight=0.2,direction=stage{k}" for k in range(1, 5)))


_DICE = "dice:squared=true,smooth=1.0"
_ABDOMEN = (*_levels("mse"), _DICE, "neutral_gradients:weight=0.01")
_UNLABELLED = (*_levels("mse"), "neutral_gradients:weight=0.01")
_HIPPOCAMPUS = (*_levels("lncc:radius=4,epsilon=1e-5"), _DICE, "neutral_gradients:weight=0.1")
_HIPPOCAMPUS_UNLABELLED = (*_levels("lncc:radius=4,epsilon=1e-5"), "neutral_gradients:weight=0.1")
_ONE_WAY = {"symmetric": False}
_GOES_ON = {"symmetric": True, "strict": False}

_TASK3 = "Learn2Reg 2020 task 3, validation"
_TASK4 = "Learn2Reg 2020 task 4, validation"
_README = "repository of the authors, README"

METHOD = Method(
    name="estienne",
    summary="spatial gradients summed to a field, trained in both directions; Learn2Reg 2020 abdomen and hippocampus",
    citation=Citation(
        authors="Estienne, Vakalopoulou, Battistella, Carré, Henry, Lerousseau, Robert, Paragios, Deutsch",
        title="Deep Learning Based Registration Using Spatial Gradients and Noisy Segmentation Labels",
        venue="Segmentation, Classification, and Registration of Multi-modality Medical Imaging Data, LNCS 12587",
        year=2020,
        doi="10.1007/978-3-030-71827-5_11",
    ),
    build=build,
    objective=_ABDOMEN,
    scheme={"optimiser": {"name": "adam", "lr": 1e-4}, "batch": 2, "symmetric": True},
    variants={
        "baseline": Variant("true labels, one direction, from scratch", scheme=_ONE_WAY),
        "symmetric": Variant("true labels, both directions, from scratch", scheme={"symmetric": True}),
        "pretrained-unsupervised": Variant(
            "true labels, both directions, from a model of 'pretrain-unsupervised'", scheme=_GOES_ON
        ),
        "pretrained-noisy-labels": Variant(
            "true labels, both directions, from a model of 'pretrain-noisy-labels'", scheme=_GOES_ON
        ),
        "all-data": Variant(
            "as pretrained-noisy-labels, trained on training and validation cases (test submission)", scheme=_GOES_ON
        ),
        "pretrain-unsupervised": Variant(
            "first stage: many cohorts, no labels in the loss", objective=_UNLABELLED, scheme={"symmetric": True}
        ),
        "pretrain-noisy-labels": Variant(
            "first stage: many cohorts, labels drawn by 'estienne-segmentation', true ones put back where they exist",
            scheme={"symmetric": True},
        ),
        "hippocampus-baseline": Variant(
            "task 4: local correlation, one direction", objective=_HIPPOCAMPUS, scheme={**_ONE_WAY, "batch": 8}
        ),
        "hippocampus-symmetric": Variant(
            "task 4: local correlation, both directions", objective=_HIPPOCAMPUS, scheme={"symmetric": True, "batch": 8}
        ),
        "hippocampus-pretrain": Variant(
            "task 4, first stage: no labels in the loss",
            objective=_HIPPOCAMPUS_UNLABELLED,
            scheme={"symmetric": True, "batch": 8},
        ),
        "hippocampus-pretrained": Variant(
            "task 4: both directions, from a model of 'hippocampus-pretrain'",
            objective=_HIPPOCAMPUS,
            scheme={**_GOES_ON, "batch": 8},
        ),
    },
    published=(
        Published(_TASK3, "dice, unregistered", 0.23, _README),
        Published(_TASK3, "dice, baseline", 0.384, _README),
        Published(_TASK3, "dice, symmetric", 0.400, _README),
        Published(_TASK3, "dice, pretrained-unsupervised", 0.522, _README),
        Published(_TASK3, "dice, pretrained-noisy-labels", 0.625, _README),
        Published("Learn2Reg 2020 task 3, test", "dice, all-data", 0.64, _README),
        Published(_TASK4, "dice, unregistered", 0.55, _README),
        Published(_TASK4, "dice, hippocampus-baseline", 0.796, _README),
        Published(_TASK4, "dice, hippocampus-symmetric", 0.830, _README),
        Published(_TASK4, "dice, hippocampus-pretrained", 0.839, _README),
    ),
    parameters=30_830_000,
    deviations=(
        "align_corners throughout; Dice by item; masks enter as masks; the size of the network is that of 3 input "
        "channels, rounded as computed from the published layout"
    ),
)
