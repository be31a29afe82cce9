"""Registration uncertainty to segmentation uncertainty (Chen et al. 2024): four maps from one network with dropout on.

The idea: how far drawn fields lie apart says little about how wrong the labels are that they carry over; the entropy
of the averaged labels (epistemic) and a variance that a small network predicts from the squared residual and the
decoder's features (aleatoric) do. The backbone is TransMorph's time-varying form with three stages, seven velocities
and dropout that stays on; its loss and the variance's are one, and both networks learn together. Deviations: velocities
are predicted and summed at half resolution (published: at full, each from upsampled features); windows are shifted
along every axis that has two (published: along none, since a window of depth 1 stopped the shift on all); the update
is a true composition unless ``update`` says ``released``. The maps are made in `verimorph.uncertainty.segmentation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from verimorph.methods import transmorph
from verimorph.methods.method import Citation, Method, Published, Variant
from verimorph.nn.heads.label_variance import LabelUncertaintyNetwork, LabelVarianceHead


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    classes: int = 4,
    embedding: int = 128,
    depths: Sequence[int] = (4, 4, 5),
    heads: Sequence[int] = (8, 8, 8),
    window: Sequence[int] = (4, 4, 1),
    mlp_ratio: float = 4.0,
    drop_path: float = 0.3,
    always_on_dropout: float = 0.15,
    steps: int = 7,
    update: Literal["compose", "released"] = "compose",
    aleatoric: bool = True,
    hidden: Sequence[int] = (64, 128, 64),
    detached: bool = False,
    batch_statistics: bool = False,
    checkpointing: bool = False,
) -> nn.Module:
    """TransMorph's time-varying form, and a head for the variance of each of ``classes`` labels (``aleatoric``).

    ``detached`` keeps the head's gradients out of the registration, for a frozen or separately trained backbone;
    ``batch_statistics`` normalises in the head by the volume at hand outside training too.
    """
    backbone = transmorph.build(
        ndim=ndim,
        channels=channels,
        embedding=embedding,
        depths=depths,
        heads=heads,
        window=window,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
        transform="time-varying",
        always_on_dropout=always_on_dropout,
        steps=steps,
        update=update,
        checkpointing=checkpointing,
    )
    if not aleatoric:
        return backbone
    features: nn.Module = backbone.features  # type: ignore[assignment]
    variance = LabelVarianceHead(
        ndim=ndim,
        channels=int(features.out_channels),  # type: ignore[arg-type]
        classes=classes,
        hidden=hidden,
        batch_statistics=batch_statistics,
    )
    return LabelUncertaintyNetwork(
        features=features,
        head=backbone.head,  # type: ignore[arg-type]
        variance=variance,
        detached=detached,
    )


_TABLE = "Table 1, cardiac cine MR, end of diastole and systole, both directions"
_ACCURACY = ("lncc:radius=2", "diffusion:weight=1", "dice:include_background=true")

METHOD = Method(
    name="transmorph-uncertainty",
    summary="TransMorph, time-varying, with dropout always on and a variance of the moved labels",
    citation=Citation(
        authors="Chen, Liu, Wei, Bian, Carass, Du",
        title="From Registration Uncertainty to Segmentation Uncertainty",
        venue="ISBI",
        year=2024,
        doi="10.1109/ISBI56570.2024.10635251",
    ),
    build=build,
    objective=(*_ACCURACY, "beta_nll"),
    scheme={
        "optimiser": {
            "name": "adamw",
            "lr": 1e-4,
            "amsgrad": True,
            "weight_decay": 0.0,
            "schedule": "poly",
            "power": 0.9,
        },
        "batch": 1,
    },
    variants={
        "backbone": Variant("the registration alone, without variances", {"aleatoric": False}, objective=_ACCURACY),
        "detached": Variant("variances that leave the registration alone", {"detached": True}),
        "half": Variant("half of the channels", {"embedding": 64, "heads": (4, 4, 4), "hidden": (32, 64, 32)}),
        "half-backbone": Variant(
            "half of the channels, without variances",
            {"embedding": 64, "heads": (4, 4, 4), "hidden": (32, 64, 32), "aleatoric": False},
            objective=_ACCURACY,
        ),
    },
    published=(
        Published("ACDC and M&Ms", "dice", 0.839, _TABLE),
        Published("ACDC and M&Ms", "correlation of epistemic + aleatoric with label error", 0.583, _TABLE),
        Published("ACDC and M&Ms", "correlation of epistemic with label error", 0.552, _TABLE),
        Published("ACDC and M&Ms", "correlation of aleatoric with label error", 0.382, _TABLE),
        Published("ACDC and M&Ms", "correlation of the transformation's with label error", 0.088, _TABLE),
    ),
    needs=("train",),
    deviations="velocities at half resolution, windows shifted along each axis, true composition; see this module",
)
