"""How well-behaved a deformation is: pure functions of a field, each a loss, saying what kind of field it acts on."""

from verimorph.objective.regularity.bending import bending
from verimorph.objective.regularity.diffusion import diffusion
from verimorph.objective.regularity.elasticity import linear_elasticity
from verimorph.objective.regularity.jacobian import jacobian_folding, jacobian_volume
from verimorph.objective.regularity.laplacian_prior import laplacian_prior
from verimorph.objective.regularity.neutral import neutral_gradients
from verimorph.objective.regularity.total_variation import total_variation

__all__ = [
    "bending",
    "diffusion",
    "jacobian_folding",
    "jacobian_volume",
    "laplacian_prior",
    "linear_elasticity",
    "neutral_gradients",
    "total_variation",
]
