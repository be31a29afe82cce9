"""X5, the draft exchange format of BIDS transforms, through nitransforms. Experimental: the draft may still change.

HDF5 with one node a transform and, for several, a chain that names them in the order in which they act. Reference to
moving, RAS mm, displacements as ``(X, Y, Z, 3)``: no frame to change.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from verimorph.errors import InputError, MissingExtraError
from verimorph.grid import Grid
from verimorph.io.transforms.common import dense_grid, finite, only_3d, voxel_centres
from verimorph.transform import Affine, DisplacementField, Transform, chain, parts_of
from verimorph.transform.displacement import displacement_from_vectors, vectors_from_displacement

FORMAT = "X5"


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import h5py
        from nitransforms.io import x5
    except ImportError:
        raise MissingExtraError("nitransforms", "formats", "reading and writing X5 files") from None
    return x5, h5py


def read(path: Path, *, fixed: Grid | None = None, moving: Grid | None = None) -> Transform:
    """Read linear and dense nodes; of several, those of chain 0 in its order."""
    x5, h5py = _library()
    try:
        nodes = x5.from_filename(path)
        with h5py.File(path, "r") as file:
            chains = file.get("TransformChain")
            order = chains["0"][()].decode() if chains is not None and "0" in chains else None
    except (TypeError, KeyError, OSError, ValueError):
        raise InputError(f"{path}: is not a readable X5 file") from None
    if order is None and len(nodes) != 1:
        raise InputError(f"{path}: holds {len(nodes)} transforms and no chain that says how they follow each other")
    chosen = nodes if order is None else [nodes[int(n)] for n in order.split("/")]
    return chain([_from_node(node, path) for node in chosen])


def write(
    transform: Transform,
    path: Path,
    *,
    fixed: Grid | None = None,
    moving: Grid | None = None,
    grid: Grid | None = None,
) -> None:
    """Write matrices and displacement fields as nodes, a composite with its chain."""
    only_3d(transform, FORMAT)
    x5, h5py = _library()
    parts = parts_of(transform)
    x5.to_filename(path, [_to_node(x5, part, fixed, grid) for part in parts])
    if len(parts) > 1:
        with h5py.File(path, "r+") as file:
            file.create_group("TransformChain").create_dataset("0", data="/".join(map(str, range(len(parts)))))


def _from_node(node: Any, path: Path) -> Transform:
    if node.type == "linear":
        matrices = np.atleast_3d(node.transform.T).T
        if len(matrices) != 1:
            raise InputError(f"{path}: holds a series of {len(matrices)} matrices, one is expected")
        return Affine(matrices[0])
    if node.type != "nonlinear" or node.subtype == "bspline" or node.domain is None:
        raise InputError(f"{path}: a transform of type {node.type}/{node.subtype} is not supported")
    grid = Grid(tuple(int(n) for n in node.domain.size), node.domain.mapping)
    vectors = np.asarray(node.transform)
    if vectors.shape != (*grid.shape, 3):
        raise InputError(f"{path}: the field has shape {vectors.shape}, its domain {grid.shape}")
    if node.representation == "deformations":
        vectors = vectors - voxel_centres(grid)
    return DisplacementField(grid, displacement_from_vectors(finite(vectors, path), grid.affine[:3, :3]))


def _to_node(x5: ModuleType, part: Transform, fixed: Grid | None, grid: Grid | None) -> Any:
    metadata = {"WrittenBy": "verimorph"}
    kinds = ("space",) * 3 + ("vector",)
    if isinstance(part, Affine):
        domain = None if fixed is None else _domain(x5, fixed)
        return x5.X5Transform(
            type="linear",
            subtype="affine",
            representation="matrix",
            metadata=metadata,
            transform=np.array(part.matrix),
            dimension_kinds=kinds,
            domain=domain,
        )
    where = dense_grid(part, fixed, grid, FORMAT)
    return x5.X5Transform(
        type="nonlinear",
        subtype="densefield",
        representation="displacements",
        metadata=metadata,
        transform=vectors_from_displacement(part.displacement_on(where), where.affine[:3, :3]),
        dimension_kinds=kinds,
        domain=_domain(x5, where),
    )


def _domain(x5: ModuleType, grid: Grid) -> Any:
    return x5.X5Domain(grid=True, size=grid.shape, mapping=np.array(grid.affine), coordinates="cartesian")
