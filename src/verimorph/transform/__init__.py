"""Maps of world points, fixed to moving: rigid, similarity, affine, displacement, velocity, spline, composite.

A transform says where a point of the fixed image lies in the moving image (RAS+ mm). No file format, no other frame and
no optimisation belongs here.
"""

from verimorph.transform.composite import Composite, chain
from verimorph.transform.displacement import DisplacementField
from verimorph.transform.inversion import NumericalInverse, map_points_back
from verimorph.transform.linear import Affine, Decomposition, identity, rigid, similarity
from verimorph.transform.protocol import Dense, Linear, Transform, parts_of
from verimorph.transform.resampling import INTERPOLATIONS, resample
from verimorph.transform.spline import Spline
from verimorph.transform.velocity import VelocityField
from verimorph.transform.voting import looks_like_labels

__all__ = [
    "INTERPOLATIONS",
    "Affine",
    "Composite",
    "Decomposition",
    "Dense",
    "DisplacementField",
    "Linear",
    "NumericalInverse",
    "Spline",
    "Transform",
    "VelocityField",
    "chain",
    "identity",
    "looks_like_labels",
    "map_points_back",
    "parts_of",
    "resample",
    "rigid",
    "similarity",
]
