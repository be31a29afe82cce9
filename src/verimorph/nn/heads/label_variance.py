"""How uncertain each voxel's label is by itself: log variances from the squared residual and the shared features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import OptionError
from verimorph.field import resize, warp
from verimorph.nn.blocks import activation, check_size, convolution, normalisation, size_of, start_small
from verimorph.nn.heads.displacement import exact, in_full_precision


class LabelVarianceHead(nn.Module):
    """``log sigma_k^2 = L tanh(g_k([e, F]))``: e the squared residual of the images, F features on any grid.

    Three blocks of convolution, batch normalisation and leaky rectifier, and a last convolution without bias that
    starts next to 0, so that every variance starts at 1. Classes are independent: no softmax.

    Parameters
    ----------
    ndim, channels, classes
        2 or 3; channels of F; classes, background included.
    hidden
        Channels of the blocks.
    limit
        L: variances stay within (exp -L, exp L).
    deviation
        Standard deviation of the last convolution's first weights.

    Attributes
    ----------
    batch_statistics
        Normalise by the volume at hand outside training, too, as the published inference does; off, by the running
        statistics.

    References
    ----------
    Chen et al., From registration uncertainty to segmentation uncertainty, ISBI 2024.
    """

    def __init__(
        self,
        *,
        ndim: int,
        channels: int,
        classes: int,
        hidden: Sequence[int] = (64, 128, 64),
        limit: float = 5.0,
        deviation: float = 1e-5,
        batch_statistics: bool = False,
    ) -> None:
        super().__init__()
        if classes < 2 or not hidden or not limit > 0:
            raise OptionError(f"give two classes or more, hidden channels and a limit above 0, got {classes}, {hidden}")
        widths = (channels + 1, *hidden)
        self.convolutions = nn.ModuleList(convolution(ndim, a, b) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(normalisation("batch", ndim, width) for width in hidden)
        self.activation = activation("leaky_relu", slope=0.01)
        self.last = start_small(convolution(ndim, widths[-1], classes, bias=False), deviation)
        self.limit, self.batch_statistics = float(limit), bool(batch_statistics)

    def _normalised(self, norm: nn.Module, x: Tensor) -> Tensor:
        if self.training or not self.batch_statistics:
            return norm(x)
        return functional.batch_norm(x, None, None, norm.weight, norm.bias, training=True, eps=norm.eps)

    def forward(
        self, residual: Float[Tensor, "b 1 *space"], features: Float[Tensor, "b c *coarse"]
    ) -> Float[Tensor, "b k *space"]:
        """Log variances, squared label units, on the grid of the residual."""
        x = torch.cat((residual.to(features.dtype), resize(features, size_of(residual)).to(features.dtype)), 1)
        for convolve, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.activation(self._normalised(norm, convolve(x)))
        return self.limit * in_full_precision(self.last, x).tanh()


class LabelUncertaintyNetwork(nn.Module):
    """Features, a head for the field, and a head for the variances of the labels that the field carries over.

    The names of the weights of the first two are those of `verimorph.nn.network.RegistrationNetwork`: a network
    trained without the third starts this one.

    Parameters
    ----------
    features, head
        As in `RegistrationNetwork`.
    variance
        `LabelVarianceHead`.
    detached
        Whether the variances leave features and field alone: no gradient goes from them into the registration.

    Attributes
    ----------
    stride
        Every side of the input must be a multiple of this.
    """

    def __init__(
        self, *, features: nn.Module, head: nn.Module, variance: LabelVarianceHead, detached: bool = False
    ) -> None:
        super().__init__()
        self.features, self.head, self.variance = features, head, variance
        self.detached = bool(detached)
        self.stride = int(features.stride)  # type: ignore[arg-type]

    def forward(
        self,
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
        condition: Float[Tensor, "b k"] | None = None,
    ) -> dict[str, Tensor]:
        """The head's outputs and ``label_log_variance`` (b, k, \\*space)."""
        if condition is not None:
            raise OptionError("this network takes no condition")
        check_size(size_of(fixed), self.stride)
        features = self.features(torch.cat((fixed, moving), 1))
        outputs = self.head(features, fixed=fixed, moving=moving)
        field = outputs["field"]
        if self.detached:
            features, field = features.detach(), field.detach()
        with torch.autocast(fixed.device.type, enabled=False):
            residual = (warp(exact(moving), field) - exact(fixed)).square().mean(1, keepdim=True)
        return {**outputs, "label_log_variance": self.variance(residual, features)}
