"""How alike two images are: pure functions, each a loss (lower is better), with the formula in its docstring."""

from verimorph.objective.similarity.lncc import LNCCStatistics, lncc, lncc_statistics, lncc_value_and_gradient
from verimorph.objective.similarity.lncc_gaussian import lncc_gaussian
from verimorph.objective.similarity.mind import mind, mind_distance, mind_ssc, mind_value_and_gradient
from verimorph.objective.similarity.mutual_information import (
    local_mutual_information,
    mutual_information,
    mutual_information_value_and_gradient,
)
from verimorph.objective.similarity.squared import mae, mse, mse_value_and_gradient

__all__ = [
    "LNCCStatistics",
    "lncc",
    "lncc_gaussian",
    "lncc_statistics",
    "lncc_value_and_gradient",
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
]
