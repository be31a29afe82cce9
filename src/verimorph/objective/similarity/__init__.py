"""How alike two images are: pure functions, each a loss (lower is better), with the formula in its docstring."""

from verimorph.objective.similarity.correlation_ratio import (
    correlation_ratio,
    explained_variance,
    local_correlation_ratio,
)
from verimorph.objective.similarity.features import feature_distance
from verimorph.objective.similarity.gradient_fields import ngf
from verimorph.objective.similarity.lncc import LNCCStatistics, lncc, lncc_statistics, lncc_value_and_gradient
from verimorph.objective.similarity.lncc_gaussian import lncc_gaussian
from verimorph.objective.similarity.mind import mind, mind_distance, mind_ssc, mind_value_and_gradient
from verimorph.objective.similarity.mutual_information import (
    local_mutual_information,
    mutual_information,
    mutual_information_value_and_gradient,
)
from verimorph.objective.similarity.pearson import pearson
from verimorph.objective.similarity.squared import mae, mse, mse_value_and_gradient
from verimorph.objective.similarity.ssim import ssim

__all__ = [
    "LNCCStatistics",
    "correlation_ratio",
    "explained_variance",
    "feature_distance",
    "lncc",
    "lncc_gaussian",
    "lncc_statistics",
    "lncc_value_and_gradient",
    "local_correlation_ratio",
    "local_mutual_information",
    "mae",
    "mind",
    "mind_distance",
    "mind_ssc",
    "mind_value_and_gradient",
    "mse",
    "mse_value_and_gradient",
    "mutual_information",
    "mutual_information_value_and_gradient",
    "ngf",
    "pearson",
    "ssim",
]
