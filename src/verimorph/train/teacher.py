"""A teacher: the average of the weights, run several times at random, says what the student may be sure of.

Its draws give three tensors that an objective reads: ``teacher/field``, their mean, for the term ``teacher``; and
``teacher/smoothness`` and ``teacher/consistency``, one number a pair, for weights:

    lncc + diffusion:weight=teacher/smoothness + teacher:weight=teacher/consistency
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.nn.stochastic import sampling
from verimorph.objective import build_objective
from verimorph.train.passes import Batch, registration_tensors
from verimorph.uncertainty.accumulate import RunningMoments
from verimorph.uncertainty.double import DoubleWeighting

TENSORS = ("teacher/field", "teacher/smoothness", "teacher/consistency")
_SEEN = build_objective("mse")  # reads what a teacher is asked for: the field, and the moved image


@dataclass(frozen=True)
class Teacher:
    """Mean teacher with double uncertainty.

    Parameters
    ----------
    draws
        Passes of the teacher, its random parts drawing, each step; 2 or more.
    weighting
        How weights follow from the draws: of the transformation the square root of the trace of its covariance, voxels;
        of the appearance the variance of the moved image, mean over channels.

    References
    ----------
    Xu et al., Double-uncertainty guided spatial and temporal consistency regularization weighting for learning-based
    abdominal registration, MICCAI 2022; Tarvainen & Valpola, Mean teachers are better role models, NIPS 2017.
    """

    draws: int = 6
    weighting: DoubleWeighting = field(default_factory=DoubleWeighting)

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise OptionError(f"draws of the teacher is {self.draws}; a spread needs 2 or more")

    @torch.no_grad()
    def tensors(self, average: nn.Module, batch: Batch, *, symmetric: bool) -> dict[str, Float[Tensor, "..."]]:
        """What the objective of the student reads of its teacher, for a batch of pairs.

        Raises
        ------
        OptionError
            If nothing in the model draws: all its passes would be equal, and sure of everything.
        """
        if not any(hasattr(part, "sampling") for part in average.modules()):
            raise OptionError("a teacher needs a model that draws at random, such as transmorph with dropout")
        moves, looks = RunningMoments(), RunningMoments()
        average.eval()
        with sampling(average):
            for _ in range(self.draws):
                drawn = registration_tensors(average, batch, _SEEN, symmetric=symmetric)
                moves.add(drawn["field"])
                looks.add(drawn["moved"])
        spread = moves.variance.sum(1, keepdim=True).sqrt()
        smoothness, consistency = self.weighting(spread, looks.variance.mean(1, keepdim=True))
        return dict(zip(TENSORS, (moves.mean, smoothness, consistency), strict=True))
