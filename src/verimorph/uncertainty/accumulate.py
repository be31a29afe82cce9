"""Maps of many draws, one draw at a time: spread of fields, of appearance, votes for labels.

Never holds more than a few volumes, however many draws there are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError, OptionError

LOG_FLOOR = 1e-6
"""What the published binary entropy adds within its logarithms."""


class RunningMoments:
    """Mean and unbiased variance of tensors of one shape, by Welford's updates.

    Draws that are equal bit for bit have a variance of exactly 0.

    References
    ----------
    Welford, Note on a method for calculating corrected sums of squares and products, Technometrics 4, 1962.

    Examples
    --------
    >>> moments = RunningMoments()
    >>> for value in (1.0, 2.0, 6.0):
    ...     moments.add(torch.tensor([value]))
    >>> moments.mean, moments.variance
    (tensor([3.]), tensor([7.]))
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, value: Float[Tensor, "*shape"]) -> None:
        """Take one draw in."""
        value = value.detach()
        if self._mean is None or self._squares is None:
            self.count, self._mean, self._squares = 1, value.clone(), torch.zeros_like(value)
            return
        if value.shape != self._mean.shape:
            raise InputError(f"a draw has the shape {tuple(value.shape)}, those before it {tuple(self._mean.shape)}")
        self.count += 1
        delta = value - self._mean
        self._mean += delta / self.count
        self._squares += delta * (value - self._mean)

    @property
    def mean(self) -> Float[Tensor, "*shape"]:
        """Mean of the draws."""
        if self._mean is None:
            raise OptionError("there is no draw yet; add some first")
        return self._mean

    @property
    def variance(self) -> Float[Tensor, "*shape"]:
        """Sum of squared deviations over n - 1."""
        if self._squares is None or self.count < 2:
            raise OptionError(f"a variance needs two draws, there are {self.count}")
        return self._squares / (self.count - 1)


class FieldSpread:
    """How far drawn displacements lie apart, voxel by voxel.

    Displacements u_t are ``(1, d, *space)``, in millimetres (or voxels: the maps are then in voxels, too).

    Examples
    --------
    >>> spread = FieldSpread()
    >>> for x in (-1.0, 1.0):  # one direction and its opposite: the length never changes
    ...     spread.add(torch.tensor([x, 0.0, 0.0]).view(1, 3, 1, 1, 1))
    >>> float(spread.variance_of_magnitude), float(spread.trace)
    (0.0, 2.0)
    """

    def __init__(self) -> None:
        self._vectors = RunningMoments()
        self._lengths = RunningMoments()

    @property
    def count(self) -> int:
        """Number of draws so far."""
        return self._vectors.count

    def add(self, displacement: Float[Tensor, "1 d *space"]) -> None:
        """Take one draw in."""
        if displacement.ndim not in (4, 5) or displacement.shape[:2] != (1, displacement.ndim - 2):
            raise InputError(f"a displacement must be (1, d, *space), got {tuple(displacement.shape)}")
        self._vectors.add(displacement)
        self._lengths.add(displacement.square().sum(1, keepdim=True).sqrt())

    @property
    def mean(self) -> Float[Tensor, "1 d *space"]:
        """Mean displacement. No mean of the maps: it may fold where no draw does."""
        return self._vectors.mean

    @property
    def variance_of_magnitude(self) -> Float[Tensor, "1 1 *space"]:
        """``Var_t |u_t|``, unbiased, squared units: the published transformation uncertainty, blind to direction."""
        return self._lengths.variance

    @property
    def trace(self) -> Float[Tensor, "1 1 *space"]:
        """``tr Cov_t(u_t)``, unbiased, squared units."""
        return self._vectors.variance.sum(1, keepdim=True)

    @property
    def std(self) -> Float[Tensor, "1 1 *space"]:
        """``sqrt(tr Cov_t(u_t))``, the root mean squared distance from the mean displacement."""
        return self.trace.sqrt()


class Appearance:
    """How the moved images of the draws look: against the fixed image, and among each other.

    Parameters
    ----------
    fixed
        The fixed image, ``(1, c, *space)``; maps are means over its channels, in squared intensities.
    """

    def __init__(self, fixed: Float[Tensor, "1 c *space"]) -> None:
        self._fixed = fixed
        self._errors = RunningMoments()
        self._images = RunningMoments()

    @property
    def count(self) -> int:
        """Number of draws so far."""
        return self._images.count

    def add(self, moved: Float[Tensor, "1 c *space"]) -> None:
        """Take the moving image as one draw moves it."""
        if moved.shape != self._fixed.shape:
            raise InputError(f"moved is {tuple(moved.shape)}, the fixed image {tuple(self._fixed.shape)}")
        self._errors.add((moved - self._fixed).square().mean(1, keepdim=True))
        self._images.add(moved)

    @property
    def expected_error(self) -> Float[Tensor, "1 1 *space"]:
        """``mean_t (I_m o phi_t - I_f)^2``, the published appearance uncertainty."""
        return self._errors.mean

    @property
    def predictive_variance(self) -> Float[Tensor, "1 1 *space"]:
        """``Var_t (I_m o phi_t)``, unbiased: it does not know the fixed image."""
        return self._images.variance.mean(1, keepdim=True)

    @property
    def mean(self) -> Float[Tensor, "1 c *space"]:
        """Mean moved image."""
        return self._images.mean


def binary_entropy(p: Float[Tensor, "*shape"], floor: float = LOG_FLOOR) -> Float[Tensor, "*shape"]:
    """``-[p ln(p + floor) + (1 - p) ln(1 - p + floor)]`` in nats, at least 0, at most ln 2.

    As published; where p is 0 or 1 the formula is ``-ln(1 + floor)``, and 0 is given.
    """
    return -(p * (p + floor).log() + (1 - p) * (1 - p + floor).log()).clamp_max(0)


def entropy(p: Float[Tensor, "b k *space"]) -> Float[Tensor, "b 1 *space"]:
    """``-sum_k p_k ln p_k`` over classes, nats, at most ln k; 0 ln 0 = 0."""
    return -torch.xlogy(p, p).sum(1, keepdim=True)


class LabelVotes:
    """What the draws say about each voxel's label.

    Draws are label probabilities p_t ``(1, k, *space)``, background first: warped one-hot maps, soft at borders by
    linear interpolation.
    """

    def __init__(self) -> None:
        self._soft = RunningMoments()
        self._entropy = RunningMoments()
        self._binary = RunningMoments()
        self._hard = RunningMoments()

    @property
    def count(self) -> int:
        """Number of draws so far."""
        return self._soft.count

    def add(self, probabilities: Float[Tensor, "1 k *space"]) -> None:
        """Take one draw in."""
        if probabilities.ndim < 3 or probabilities.shape[0] != 1 or probabilities.shape[1] < 2:
            raise InputError(f"label probabilities must be (1, k, *space), k >= 2, got {tuple(probabilities.shape)}")
        self._soft.add(probabilities)
        self._entropy.add(entropy(probabilities))
        self._binary.add(binary_entropy(probabilities))
        winner = probabilities.argmax(1, keepdim=True)
        self._hard.add(torch.zeros_like(probabilities).scatter_(1, winner, 1.0))

    @property
    def mean(self) -> Float[Tensor, "1 k *space"]:
        """``p_bar``, the mean over draws."""
        return self._soft.mean

    @property
    def variance(self) -> Float[Tensor, "1 k *space"]:
        """``Var_t(p_t)`` per class, unbiased."""
        return self._soft.variance

    @property
    def class_entropy(self) -> Float[Tensor, "1 k *space"]:
        """Binary entropy of ``p_bar`` per class, nats: the published epistemic segmentation uncertainty.

        Above 0 at every border even without any spread: linear interpolation makes labels soft.
        """
        return binary_entropy(self.mean)

    @property
    def class_mutual_information(self) -> Float[Tensor, "1 k *space"]:
        """Binary entropy of ``p_bar`` less the mean of the draws' own, per class, nats: disagreement alone."""
        return (self.class_entropy - self._binary.mean).clamp_min(0)

    @property
    def total_entropy(self) -> Float[Tensor, "1 1 *space"]:
        """Entropy of ``p_bar`` over all classes, nats."""
        return entropy(self.mean)

    @property
    def expected_entropy(self) -> Float[Tensor, "1 1 *space"]:
        """Mean over draws of the entropy of each, nats."""
        return self._entropy.mean

    @property
    def mutual_information(self) -> Float[Tensor, "1 1 *space"]:
        """``H(p_bar) - mean_t H(p_t)``, nats: at least 0, and 0 where all draws agree."""
        return (self.total_entropy - self.expected_entropy).clamp_min(0)

    @property
    def votes(self) -> Float[Tensor, "1 k *space"]:
        """Share of draws in which a class is the likeliest."""
        return self._hard.mean

    @property
    def class_vote_entropy(self) -> Float[Tensor, "1 k *space"]:
        """Binary entropy of the hard votes per class, nats: blind to soft borders."""
        return binary_entropy(self.votes)

    @property
    def vote_entropy(self) -> Float[Tensor, "1 1 *space"]:
        """Entropy of the hard votes over all classes, nats."""
        return entropy(self.votes)
