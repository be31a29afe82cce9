"""Transforms in a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.errors import InputError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import dense, resampling
from verimorph.transform.protocol import Linear, Transform, parts_of


@dataclass(frozen=True, eq=False)
class Composite:
    """Several transforms, one after the other.

    Parameters
    ----------
    parts
        ``parts[0]`` acts first on a fixed point, the last one leads into the moving image. Composites inside are
        unpacked, neighbouring linear maps multiplied into one, so that two ways to write the same map are one object.

    Raises
    ------
    InputError
        If there is no part, or parts differ in their number of axes.
    """

    parts: Sequence[Transform]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InputError("a composite transform needs at least one part")
        if len({part.ndim for part in self.parts}) > 1:
            raise InputError(f"cannot chain transforms of {' and '.join(f'{part.ndim}-D' for part in self.parts)}")
        object.__setattr__(self, "parts", tuple(_simplified(self.parts)))

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return self.parts[0].ndim

    @property
    def kind(self) -> str:
        """``"composite"``."""
        return "composite"

    def map_points(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n d"]:
        """Send the points through all parts in order."""
        points = np.asarray(points, dtype=np.float64)
        for part in self.parts:
            points = part.map_points(points)
        return points

    def displacement_on(self, grid: Grid) -> Float[Tensor, "1 d *space"]:
        """Dense form of the whole chain on a grid, in voxels of that grid."""
        return dense.displacement_on(self, grid)

    def resample(
        self, image: Image, reference: Grid, *, interpolation: str = "linear", background: float = 0.0
    ) -> Image:
        """Carry a moving image onto ``reference``; see :func:`verimorph.transform.resampling.resample`."""
        return resampling.resample(self, image, reference, interpolation=interpolation, background=background)

    def inverse(self) -> Transform:
        """Return the inverses of the parts in reverse order."""
        return chain([part.inverse() for part in reversed(self.parts)])

    def then(self, after: Transform) -> Transform:
        """Return this chain followed by ``after``."""
        return chain([self, after])

    def jacobian_determinant(self, grid: Grid) -> Float[Tensor, "1 *space"]:
        """Change of volume by the whole chain."""
        return dense.jacobian_determinant(self, grid)


def chain(parts: Iterable[Transform]) -> Transform:
    """Put transforms in a row, ``parts[0]`` acting first, without identities; a row of one is that transform."""
    made = Composite(tuple(parts)).parts
    kept = [part for part in made if part.kind != "identity"] or list(made[:1])
    return kept[0] if len(kept) == 1 else Composite(kept)


def _simplified(parts: Iterable[Transform]) -> list[Transform]:
    from verimorph.transform.linear import Affine  # which needs chain() from here

    out: list[Transform] = []
    for part in parts:
        for piece in parts_of(part):
            before = out[-1] if out else None
            if isinstance(piece, Linear) and isinstance(before, Linear):
                out[-1] = Affine(piece.matrix @ before.matrix)
            else:
                out.append(piece)
    return out
