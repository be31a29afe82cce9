"""Numerics on dense fields: sample, compose, exponentiate, invert, Jacobian, smooth, resize.

The only room that does arithmetic on displacement fields, and the only one that calls ``grid_sample``. A field is
``(B, D, *shape)``, channel d along axis d, in voxels of its own grid; fixed index ``i`` maps to ``i + u(i)``. Every
function takes 2-D and 3-D, any device; on the CPU, float32 runs in compiled kernels (``kernels/``) where numba is
present, and in plain torch otherwise: one test holds both to the same values.
"""

from verimorph.field.algebra import Inversion, compose, exponentiate, invert
from verimorph.field.jacobian import jacobian_determinant
from verimorph.field.pyramid import shrink
from verimorph.field.resize import resize, resize_displacement
from verimorph.field.sample import sample, sample_field, voxel_index, warp, warp_with_gradient
from verimorph.field.smooth import box_mean, gaussian_smooth
from verimorph.field.unfold import unfold

__all__ = [
    "Inversion",
    "box_mean",
    "compose",
    "exponentiate",
    "gaussian_smooth",
    "invert",
    "jacobian_determinant",
    "resize",
    "resize_displacement",
    "sample",
    "sample_field",
    "shrink",
    "unfold",
    "voxel_index",
    "warp",
    "warp_with_gradient",
]
