"""An image that knows where it is: voxels and a grid, loaded when first needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verimorph.errors import InputError
from verimorph.grid import Grid


@dataclass(frozen=True, eq=False)
class Image:
    """One scalar image (or label map) on a grid.

    Parameters
    ----------
    grid
        Where the voxels are.
    loader
        Returns the voxels in their stored type, shaped as the grid. Called once, when ``array`` is first read.
    name
        What messages call this image; a file name where there is one.
    path
        File the image came from, if any (provenance).
    stored_dtype
        Type of the voxels as the header tells it, so that asking for ``dtype`` does not load them.
    """

    grid: Grid
    loader: Callable[[], np.ndarray] = field(repr=False)
    name: str = "image"
    path: Path | None = None
    stored_dtype: np.dtype | None = field(default=None, repr=False)

    @classmethod
    def from_array(
        cls, array: np.ndarray | Tensor, grid: Grid | np.ndarray | None = None, *, name: str = "array"
    ) -> Image:
        """Make an image from voxels and a grid or voxel-to-world affine (RAS+ mm; default unit spacing).

        >>> Image.from_array(np.zeros((4, 5), np.uint8)).grid.shape
        (4, 5)
        """
        voxels = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
        affine = np.eye(voxels.ndim + 1) if grid is None else grid
        where = affine if isinstance(affine, Grid) else Grid(voxels.shape, affine)
        if where.shape != voxels.shape:
            raise InputError(f"{name} has shape {voxels.shape}, its grid {where.shape}; they must be equal")
        return cls(where, lambda: voxels, name)

    @cached_property
    def array(self) -> np.ndarray:
        """Voxels in their stored type, shaped as the grid. Do not write to it."""
        voxels = self.loader()
        if voxels.shape != self.grid.shape:
            raise InputError(f"{self.name} holds {voxels.shape} voxels, its header says {self.grid.shape}")
        return voxels

    @property
    def dtype(self) -> np.dtype:
        """Stored type of the voxels."""
        return self.array.dtype if self.stored_dtype is None else self.stored_dtype

    @property
    def is_integer(self) -> bool:
        """Whether the voxels are integers (as label maps are)."""
        return self.dtype.kind in "bui"

    def tensor(self, device: torch.device | str = "cpu") -> Float[Tensor, "1 1 *space"]:
        """Voxels as a float32 tensor ``(1, 1, *shape)``."""
        voxels = np.ascontiguousarray(self.array, dtype=np.float32)
        return torch.from_numpy(voxels.copy() if voxels is self.array else voxels).to(device)[None, None]

    def with_array(self, array: np.ndarray | Tensor, *, name: str | None = None) -> Image:
        """Return an image on the same grid with other voxels."""
        made = Image.from_array(array, self.grid, name=name or self.name)
        return replace(made, path=None, stored_dtype=None)
