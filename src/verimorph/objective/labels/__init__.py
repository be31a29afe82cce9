"""Supervision: labels, landmarks and known fields."""

from verimorph.objective.labels.beta_nll import beta_nll
from verimorph.objective.labels.cross_entropy import cross_entropy
from verimorph.objective.labels.dice import generalised_dice, partial_dice, soft_dice
from verimorph.objective.labels.landmarks import known_field_distance, landmark_distance

__all__ = [
    "beta_nll",
    "cross_entropy",
    "generalised_dice",
    "known_field_distance",
    "landmark_distance",
    "partial_dice",
    "soft_dice",
]
