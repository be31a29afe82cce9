"""A teacher: the average of the weights, run several times at random, says what the student may be sure of.

Its draws give three tensors that an objective reads: ``teacher/field``, their mean, for the term ``teacher``; and
``teacher/smoothness`` and ``teacher/consistency``, one number a pair, for weights:

    lncc + diffusion:weight=teacher/smoothness + teacher:weight=teacher/consistency
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verimorph.errors import OptionError
from verimorph.nn.stochastic import sampling
from verimorph.objective import Objective, build_objective
from verimorph.objective.terms import base_name
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
        """What the objective of the student reads of its teacher, for a batch of pairs."""
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


def heard(objective: Objective) -> list[str]:
    """What an objective reads of a teacher.

    Raises
    ------
    OptionError
        If it asks for another level or direction than that of the field.
    """
    read = [name for name in (*objective.needs, *objective.weight_names) if base_name(name) in TENSORS]
    if other := [name for name in read if name not in TENSORS]:
        raise OptionError(f"'{other[0]}': a teacher has one level and direction; leave them out, or give scales")
    return read


def check_teacher(teacher: Teacher | None, model: nn.Module, objectives: Iterable[Objective]) -> None:
    """Refuse a teacher that nobody listens to or that cannot draw, and an objective that listens to none.

    Passes of a model that does not draw are all equal: it would seem sure of everything.
    """
    read = sorted({name for objective in objectives for name in heard(objective)})
    if teacher is None and read:
        raise OptionError(f"the objective reads {read[0]} and there is no teacher; write teacher: {{}} and ema: 0.99")
    if teacher is None:
        return
    if not read:
        raise OptionError(f"no objective reads what the teacher says ({', '.join(TENSORS)}); leave the teacher out")
    if not any(hasattr(part, "sampling") and getattr(part, "p", 1) > 0 for part in model.modules()):
        raise OptionError("a teacher needs a model that draws at random, such as transmorph with its variant bayes")
