"""The segmentation network of Estienne et al. (2020): draws the noisy labels that `estienne` is pretrained on.

The encoder and decoder of the registration network at half its width, one image, softmax over classes. Data sets that
each drew other organs are learned together: a class enters the loss of an item only where it was drawn. Deviations: the
mean runs over the drawn foreground classes of an item, where the released code divides by the number of all of them;
predicted labels are meant to be replaced by true ones where those exist, which the released code states but does not.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from verimorph.methods.estienne import METHOD as REGISTRATION
from verimorph.methods.estienne import WIDTHS
from verimorph.methods.method import Method, Variant
from verimorph.nn.blocks import Activation, Normalisation
from verimorph.nn.features.vnet import CLASSIC, VNetDecoder, VNetEncoder, VNetSegmentation


def build(
    *,
    ndim: int = 3,
    channels: int = 1,
    classes: int = 12,
    channel_multiplication: int = 4,
    convolutions: Sequence[int] = CLASSIC,
    norm: Normalisation = "instance",
    activation: Activation = "relu",
) -> nn.Module:
    """Encoder, decoder and one convolution to ``classes`` (the background is one of them)."""
    widths = [channel_multiplication * width for width in WIDTHS]
    encoder = VNetEncoder(
        ndim=ndim, channels=channels, widths=widths, convolutions=convolutions, norm=norm, activation=activation
    )
    decoder = VNetDecoder(ndim=ndim, widths=widths, convolutions=convolutions, norm=norm, activation=activation)
    return VNetSegmentation(encoder, decoder, ndim=ndim, classes=classes)


METHOD = Method(
    name="estienne-segmentation",
    summary="V-shaped segmentation network learned from partly labelled cohorts; draws labels for pretraining",
    citation=REGISTRATION.citation,
    build=build,
    objective=("partial_dice:squared=true,smooth=1.0",),
    scheme={"optimiser": {"name": "adam", "lr": 1e-4}, "batch": 3, "data": {"pairs": {"kind": "single"}}},
    variants={
        "dice-cross-entropy": Variant(
            "Dice and cross-entropy, for data with all labels drawn: steadier where classes are small",
            objective=("partial_dice:squared=true,smooth=1.0", "cross_entropy"),
        ),
    },
    task="segmentation",
    parameters=7_690_000,
    deviations="the Dice loss is the mean over the classes drawn in an item, not their sum over the number of classes",
)
