"""Files in, files out: images, points and transforms. Inside the package all coordinates are RAS+ millimetres.

Each format family has one module, the only place that knows its frame; nothing here computes on images.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verimorph.io.images import as_image, read_image, write_image, write_images
    from verimorph.io.points import Points, as_points, read_points, write_points
    from verimorph.io.safe import replacing, writing_folder
    from verimorph.io.transforms import read_transform, write_transform

_HOME = {
    "as_image": "images",
    "read_image": "images",
    "write_image": "images",
    "write_images": "images",
    "Points": "points",
    "as_points": "points",
    "read_points": "points",
    "write_points": "points",
    "replacing": "safe",
    "writing_folder": "safe",
    "read_transform": "transforms",
    "write_transform": "transforms",
}

__all__ = [
    "Points",
    "as_image",
    "as_points",
    "read_image",
    "read_points",
    "read_transform",
    "replacing",
    "write_image",
    "write_images",
    "write_points",
    "write_transform",
    "writing_folder",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that the command line starts quickly."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
