"""Double uncertainty (Xu et al. 2022): how much to smooth and how much to trust a teacher, from what draws say.

A teacher (an average of the student's weights) runs T times with dropout. Where much of the image moves uncertainly,
smooth more; where its moved images agree, hold the student closer to it. Functions of maps, which the trainer's teacher
asks for two weights a step. The idea is the paper's; of the numbers below, which are the defaults, no source was at
hand, and they are UNVERIFIED.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError, OptionError


@dataclass(frozen=True)
class DoubleWeighting:
    """Weights of every pair from the two maps of uncertainty of the teacher's draws.

    ``smoothness = k1 share(U_tr > tau1 max U_tr)`` and ``consistency = k2 share(U_ap < tau2)``, shares of the voxels.
    That tau1 is relative to the largest value of the map is a reading of "10 %", not confirmed.

    Parameters
    ----------
    smoothness, consistency
        k1 and k2 (5 and 1, UNVERIFIED).
    transformation_threshold, appearance_threshold
        tau1, a part of the map's largest value, and tau2, squared intensities of images in [0, 1] (0.1 and 0.01,
        UNVERIFIED).

    References
    ----------
    Xu et al., Double-uncertainty guided spatial and temporal consistency regularization weighting for learning-based
    abdominal registration, MICCAI 2022.

    Examples
    --------
    >>> import torch
    >>> uncertain = torch.tensor([0.0, 0.05, 0.5, 1.0]).view(1, 1, 2, 2)
    >>> DoubleWeighting()(uncertain, torch.zeros(1, 1, 2, 2))
    (tensor([2.5000]), tensor([1.]))
    """

    smoothness: float = 5.0
    consistency: float = 1.0
    transformation_threshold: float = 0.1
    appearance_threshold: float = 0.01

    def __post_init__(self) -> None:
        if min(self.smoothness, self.consistency) < 0 or not 0 <= self.transformation_threshold <= 1:
            raise OptionError("weights must be at least 0 and the transformation's threshold within [0, 1]")

    def __call__(
        self, transformation: Float[Tensor, "b 1 *space"], appearance: Float[Tensor, "b 1 *space"]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Weight of the smoothness term and weight of the distance to the teacher's field, of every pair."""
        if transformation.shape != appearance.shape:
            raise InputError(f"maps differ in shape: {tuple(transformation.shape)} and {tuple(appearance.shape)}")
        moves, looks = transformation.flatten(1), appearance.flatten(1)
        uncertain = moves > self.transformation_threshold * moves.amax(1, keepdim=True)
        certain = looks < self.appearance_threshold
        return self.smoothness * uncertain.float().mean(1), self.consistency * certain.float().mean(1)
