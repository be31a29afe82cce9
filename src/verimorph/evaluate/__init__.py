"""How good a registration is: metrics in the units people use.

Two modes, side by side and never mixed: *honest* (millimetres, true log-Jacobian, true folding; everything exported
here) and *challenge* (`verimorph.evaluate.challenge`: the numbers of the Learn2Reg evaluator, quirks included).
This package measures; it changes nothing and draws nothing.
"""

from verimorph.evaluate.border import BorderDistances, border_distances
from verimorph.evaluate.consistency import endpoint_error, inverse_consistency_error, lattice_points
from verimorph.evaluate.diffeomorphism import NonDiffeomorphism, non_diffeomorphic_volume
from verimorph.evaluate.landmarks import summarise_errors, target_registration_error
from verimorph.evaluate.overlap import (
    OverlapCounts,
    count_overlap,
    dice_per_label,
    jaccard_per_label,
    label_values,
    volume_similarity_per_label,
)
from verimorph.evaluate.regularity import folding_percent, jacobian_summary, sd_log_jacobian
from verimorph.evaluate.robustness import (
    robust30_hardest_entries,
    robust30_hardest_landmarks,
    robust30_quantile,
)
from verimorph.evaluate.score import score, score_labels
from verimorph.evaluate.surface import SurfaceDistances, surface_distances, surface_distances_per_label
from verimorph.io.documents import without_nan

__all__ = [
    "BorderDistances",
    "NonDiffeomorphism",
    "OverlapCounts",
    "SurfaceDistances",
    "border_distances",
    "count_overlap",
    "dice_per_label",
    "endpoint_error",
    "folding_percent",
    "inverse_consistency_error",
    "jaccard_per_label",
    "jacobian_summary",
    "label_values",
    "lattice_points",
    "non_diffeomorphic_volume",
    "robust30_hardest_entries",
    "robust30_hardest_landmarks",
    "robust30_quantile",
    "score",
    "score_labels",
    "sd_log_jacobian",
    "summarise_errors",
    "surface_distances",
    "surface_distances_per_label",
    "target_registration_error",
    "volume_similarity_per_label",
    "without_nan",
]
