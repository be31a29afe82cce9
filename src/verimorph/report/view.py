"""Where the report cuts an image and how a cut lies on the screen.

Planes follow the voxel axes of the fixed image that are nearest to the world axes and are shown the way radiologists
read them: the patient's right on the left of axial and coronal pictures, anterior on the left of sagittal ones, head
up. Every picture has square pixels of one physical size, so anisotropic voxels keep their true proportions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from verimorph.field import sample
from verimorph.grid import Grid

FEWEST_PIXELS = 200
MOST_PIXELS = 320
LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
_WORLD_PLANES = (  # name, world axis to the right, its sign, world axis upwards, its sign
    ("axial", 0, -1, 1, +1),
    ("coronal", 0, -1, 2, +1),
    ("sagittal", 1, -1, 2, +1),
)


@dataclass(frozen=True, eq=False)
class Plane:
    """One cut through a grid along two of its axes, with the lattice of square pixels that shows it.

    Parameters
    ----------
    name
        ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"image"`` in 2-D.
    grid
        Grid that is cut.
    right, down
        Voxel axis that runs to the right and downwards on the screen.
    right_sign, down_sign
        +1 where the index grows that way, -1 where it falls.
    at
        Voxel index of the cut; the entries of ``right`` and ``down`` do not matter.
    pixel_mm
        Edge length of a pixel, mm.
    letters
        Anatomical directions at the left, right, top and bottom edge; empty strings where there are none.
    """

    name: str
    grid: Grid
    right: int
    right_sign: int
    down: int
    down_sign: int
    at: tuple[float, ...]
    pixel_mm: float
    letters: tuple[str, str, str, str]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        extent = self.grid.extent
        return tuple(max(1, round(float(extent[a]) / self.pixel_mm)) for a in (self.down, self.right))  # type: ignore[return-value]

    @property
    def normal(self) -> int | None:
        """Voxel axis the cut is perpendicular to; ``None`` in 2-D."""
        rest = set(range(self.grid.ndim)) - {self.right, self.down}
        return rest.pop() if rest else None

    @cached_property
    def index(self) -> Float[ndarray, "rows columns d"]:
        """Voxel index of every pixel centre. The outer edges of pixels and of voxels coincide."""
        rows, columns = self.shape
        index = np.empty((rows, columns, self.grid.ndim))
        index[:] = self.at
        index[..., self.down] = self._positions(self.down, self.down_sign, rows)[:, None]
        index[..., self.right] = self._positions(self.right, self.right_sign, columns)[None, :]
        return index

    def _positions(self, axis: int, sign: int, count: int) -> ndarray:
        along = (np.arange(count) + 0.5) * self.grid.shape[axis] / count - 0.5
        return along if sign > 0 else along[::-1]

    @cached_property
    def world(self) -> Float[ndarray, "rows columns d"]:
        """World position of every pixel centre, mm."""
        return self.grid.index_to_world(self.index)

    def pixel_of(self, points: Float[ndarray, "n d"]) -> Float[ndarray, "n 2"]:
        """Column and row (fractions; pixel centres at whole numbers) of world points projected onto the cut."""
        index = self.grid.world_to_index(points)
        made = []
        for axis, sign, count in (
            (self.right, self.right_sign, self.shape[1]),
            (self.down, self.down_sign, self.shape[0]),
        ):
            position = (index[:, axis] + 0.5) * count / self.grid.shape[axis] - 0.5
            made.append(position if sign > 0 else count - 1 - position)
        return np.stack(made, -1)

    def values(
        self, image: Tensor, grid: Grid, *, mode: str = "linear", background: float = 0.0
    ) -> Float[ndarray, "rows columns"]:
        """Sample a ``(1, 1, *shape)`` tensor, which lies on ``grid``, at the pixel centres."""
        index = self.index if grid is self.grid else grid.world_to_index(self.world)
        points = torch.from_numpy(np.ascontiguousarray(np.moveaxis(index, -1, 0), dtype=np.float32))[None]
        if grid.ndim == 3:  # a 3-D image is sampled on a 3-D lattice, here one pixel thick
            points = points[..., None]
        rows, columns = self.shape
        return sample(image, points, mode=mode, background=background).reshape(rows, columns).numpy()

    @property
    def position(self) -> str:
        """Where the cut is, in words: ``"12 mm R"``; empty in 2-D."""
        if self.normal is None:
            return ""
        axis = int(np.abs(self.grid.direction[:, self.normal]).argmax())
        where = self.grid.index_to_world(np.array(self.at))[axis]
        return f"{abs(where):.0f} mm {LETTERS[axis][int(where >= 0)]}"


def planes_through(grid: Grid, point: Float[ndarray, " d"], *, as_stored: bool = True) -> list[Plane]:
    """Return the three planes of ``grid`` through a world point (one picture in 2-D).

    A 2-D image has no letters: which plane it shows is not known. With ``as_stored`` its first axis runs to the right
    and its second downwards, as in picture files; otherwise world x runs to the left and world y upwards, as on the
    axial plane of a 3-D image.
    """
    finest = min(grid.spacing)
    pixels = np.clip(grid.extent.max() / finest, FEWEST_PIXELS, MOST_PIXELS)
    pixel_mm = float(grid.extent.max() / pixels)
    at = tuple(np.clip(np.round(grid.world_to_index(point)), 0, np.array(grid.shape) - 1))
    if grid.ndim == 2:
        right, down, signs = 0, 1, (1, 1)
        if not as_stored:
            right = int(np.abs(grid.direction[0]).argmax())
            down = 1 - right
            signs = (-int(np.sign(grid.direction[0, right])), -int(np.sign(grid.direction[1, down])))
        return [Plane("image", grid, right, signs[0], down, signs[1], at, pixel_mm, ("", "", "", ""))]
    orientation = nib.orientations.io_orientation(grid.affine)
    axis_of = {int(world): (voxel, int(sign)) for voxel, (world, sign) in enumerate(orientation)}
    planes = []
    for name, right, right_sign, up, up_sign in _WORLD_PLANES:
        (right_axis, right_way), (up_axis, up_way) = axis_of[right], axis_of[up]
        letters = (
            LETTERS[right][int(right_sign < 0)],
            LETTERS[right][int(right_sign > 0)],
            LETTERS[up][int(up_sign > 0)],
            LETTERS[up][int(up_sign < 0)],
        )
        planes.append(
            Plane(name, grid, right_axis, right_sign * right_way, up_axis, -up_sign * up_way, at, pixel_mm, letters)
        )
    return planes


def tilt_degrees(grid: Grid) -> float:
    """Largest angle between a voxel axis and its nearest world axis, degrees."""
    return float(np.degrees(np.arccos(np.clip(np.abs(grid.direction).max(axis=0), 0, 1)).max()))
