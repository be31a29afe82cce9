"""What a model is: an ``nn.Module`` on plain tensors whose outputs have the names that the objective reads.

Names of outputs
----------------
``field``
    (b, d, \\*space), always: forward displacement on the input grid, voxels; fixed index i reads
    moving index i + field(i).
``velocity``
    (b, d, \\*space'), stationary velocity in voxels of its own grid, which may be coarser than the input's.
``velocity_mean``, ``velocity_log_variance``
    The same for a distribution of velocities; ``velocity`` is then the draw (or the mean) that was integrated.
``inverse``
    Displacement of the inverse map on the input grid, where the model has it at little cost.
``parameters``
    Control values of a spline, (b, d, \\*lattice), voxels of the input grid.
``gradients``
    Spatial gradients of the sampling map, (b, d, \\*space), before they are summed.
``affine``
    (b, d, d + 1), moving index = affine @ [fixed index, 1].
``stageK/field``
    The field of an intermediate stage K = 1, 2, ... (coarse first), on the input grid.
``label_log_variance``
    Log of the variance of the moved labels about the true ones, (b, k, \\*space), background first.
``logits``
    Of an image model: (b, k, \\*space).

Raw parameters, forward field and inverse field stay distinct: a regulariser says which one it acts on.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class RegistrationModel(Protocol):
    """Two images of one shape in, named tensors out.

    Attributes
    ----------
    stride
        Every side of the input must be a multiple of this.
    """

    stride: int

    def __call__(
        self,
        *,
        fixed: Float[Tensor, "b c *space"],
        moving: Float[Tensor, "b c *space"],
        condition: Float[Tensor, "b k"] | None = None,
    ) -> dict[str, Tensor]: ...


@runtime_checkable
class ImageModel(Protocol):
    """One image in, named tensors out: segmentation, representation, translation."""

    stride: int

    def __call__(
        self, *, image: Float[Tensor, "b c *space"], condition: Float[Tensor, "b k"] | None = None
    ) -> dict[str, Tensor]: ...
