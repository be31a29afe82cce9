"""One image in a file: a path and, where the file holds several, which part. Also the two formats of this field alone.

Those are VoxelMorph's ``.npz`` (arrays ``vol`` and ``seg``) and TransMorph's ``.pkl`` (a tuple of arrays), which holds
no place in the world. A pickle is read by an unpickler that makes NumPy arrays and nothing else.
"""

from __future__ import annotations

import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verimorph.errors import InputError
from verimorph.image import Image
from verimorph.io import read_image

_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class Source:
    """Where an image is.

    Parameters
    ----------
    path
        The file.
    part
        Volume of a 4-D image, from 0; name of an array in ``.npz``; number of the array in ``.pkl``.
    spacing_mm
        Voxel size where the file holds none (``.npz``, ``.pkl``).
    """

    path: Path
    part: int | str | None = None
    spacing_mm: float | None = None

    def read(self) -> Image:
        """Read the image; a file without a place in the world lies at the origin, its axes to the right, front, top.

        Raises
        ------
        InputError
            If it is missing or cannot be used.
        """
        suffix = self.path.suffix.lower()
        if suffix not in (".npz", ".npy", ".pkl"):
            return read_image(self.path, volume=None if self.part is None else int(self.part))
        if not self.path.is_file():
            raise InputError(f"{self.path}: no such file; check the path")
        voxels = _pickled(self.path, self.part) if suffix == ".pkl" else _stored(self.path, self.part)
        while voxels.ndim > 3 and voxels.shape[0] == 1:
            voxels = voxels[0]
        affine = np.diag([*[float(self.spacing_mm or 1.0)] * voxels.ndim, 1.0])
        return Image.from_array(voxels, affine, name=str(self))

    def __str__(self) -> str:
        return self.path.name if self.part is None else f"{self.path.name}::{self.part}"


def as_source(thing: Source | str | os.PathLike | None) -> Source | None:
    """Make a :class:`Source` of a path; ``file::part`` names a part."""
    if thing is None or isinstance(thing, Source):
        return thing
    text = os.fspath(thing)
    file, found, part = text.rpartition("::")
    if not found or Path(text).exists():
        return Source(Path(text))
    return Source(Path(file), int(part) if part.isdigit() else part)


def _stored(path: Path, part: int | str | None) -> np.ndarray:
    try:
        content = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable NumPy file ({error}); copy or download it again") from None
    if isinstance(content, np.ndarray):
        return content
    names = list(content.files)
    name = part if part is not None else ("vol" if "vol" in names else names[0])
    if name not in names:
        raise InputError(f"{path}: holds no array '{name}'; it has {', '.join(names)}")
    return content[name]


class _ArraysOnly(pickle.Unpickler):
    """Makes NumPy arrays and plain containers; whatever else a pickle names is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise InputError(f"holds a {module}.{name}; only NumPy arrays are read from a pickle")
        return super().find_class(module, name)


def _pickled(path: Path, part: int | str | None) -> np.ndarray:
    try:
        with path.open("rb") as opened:
            content = _ArraysOnly(opened).load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path}: not a readable pickle of arrays ({error}); copy or download it again") from None
    arrays = [content] if isinstance(content, np.ndarray) else list(content)
    number = int(part or 0)
    if number >= len(arrays) or not isinstance(arrays[number], np.ndarray):
        raise InputError(f"{path}: holds {len(arrays)} arrays, number {number} was asked for")
    return arrays[number]
