"""Distances between the surfaces of two label maps, in the unit of the spacing (mm).

Surface elements. Between each 2x2x2 block of voxels (2x2 in 2-D) sits one lattice point, and the pattern of set voxels
around it, one of 256 (16), tells which piece of surface passes there: the marching-cubes polygons through the edge
midpoints. The piece's area (length) is the weight of that point. So a distance statistic is an integral over the
surface and does not depend on how its staircase happens to fall on the grid. This is the measure of Nikolov et al.
(2018, arXiv 1809.04430), whose public implementation Learn2Reg uses; the areas are derived here from the geometry, see
`surface_element_areas`.

The other convention in use, unweighted border voxels (MedPy, MONAI), is in
``evaluate/border.py``. The two differ by up to about a voxel; never compare numbers across them.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, product

import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from numpy import ndarray

from verimorph.errors import InputError
from verimorph.evaluate.overlap import label_values


@dataclass(frozen=True)
class SurfaceDistances:
    """Distances from every element of each of two surfaces to the other surface, with the elements' areas.

    Attributes
    ----------
    fixed_to_moved, moved_to_fixed
        Distances, ascending; infinite where the other surface does not exist; empty where the own one does not.
    fixed_areas, moved_areas
        Weight of each element in the same order: mm^2 (mm in 2-D), or 1 for unweighted voxel borders.
    tolerance
        Distance that `surface_dice` forgives.
    """

    fixed_to_moved: Float[ndarray, " f"]
    moved_to_fixed: Float[ndarray, " m"]
    fixed_areas: Float[ndarray, " f"]
    moved_areas: Float[ndarray, " m"]
    tolerance: float = 1.0

    def hausdorff(self, percent: float = 100.0) -> float:
        """Hausdorff distance at a percentile: the larger of the two directions.

        The percentile is weighted by area: the smallest distance below which ``percent`` of the surface lies (no
        interpolation). 100 is the Hausdorff distance, 95 is HD95. Infinite if one surface is empty, NaN if both are.
        """
        if self._both_empty():
            return float("nan")
        if self._one_empty():
            return float("inf")
        return max(
            _weighted_percentile(self.fixed_to_moved, self.fixed_areas, percent),
            _weighted_percentile(self.moved_to_fixed, self.moved_areas, percent),
        )

    def directed_averages(self) -> tuple[float, float]:
        """Area-weighted mean distances, fixed to moved and moved to fixed."""
        if self._both_empty():
            return float("nan"), float("nan")
        if self._one_empty():
            return float("inf"), float("inf")
        return (
            float(np.average(self.fixed_to_moved, weights=self.fixed_areas)),
            float(np.average(self.moved_to_fixed, weights=self.moved_areas)),
        )

    def average(self, *, pooled: bool = False) -> float:
        """Average symmetric surface distance (ASSD).

        Default: the mean of the two directed averages, which counts both surfaces alike. ``pooled=True``: the mean over
        the elements of both surfaces together (MedPy's and MONAI's form), in which the larger surface counts more.
        """
        forward, backward = self.directed_averages()
        if not pooled or not np.isfinite(forward):
            return (forward + backward) / 2
        fixed, moved = self.fixed_areas.sum(), self.moved_areas.sum()
        return float((forward * fixed + backward * moved) / (fixed + moved))

    def surface_dice(self, tolerance: float | None = None) -> float:
        """Share of both surfaces that lies within ``tolerance`` of the other one, in [0, 1]; 1 is best.

        ``(area_F(d <= t) + area_M(d <= t)) / (area_F + area_M)``. 0 if one surface is empty, NaN if both are.
        """
        if self._both_empty():
            return float("nan")
        limit = self.tolerance if tolerance is None else tolerance
        near = (
            self.fixed_areas[self.fixed_to_moved <= limit].sum() + self.moved_areas[self.moved_to_fixed <= limit].sum()
        )
        return float(near / (self.fixed_areas.sum() + self.moved_areas.sum()))

    def _both_empty(self) -> bool:
        return self.fixed_to_moved.size == 0 and self.moved_to_fixed.size == 0

    def _one_empty(self) -> bool:
        return self.fixed_to_moved.size == 0 or self.moved_to_fixed.size == 0


def surface_distances(
    fixed: Bool[ndarray, "*space"],
    moved: Bool[ndarray, "..."],
    *,
    spacing: Iterable[float] | None = None,
    tolerance: float = 1.0,
) -> SurfaceDistances:
    """Measure the distances between the surfaces of two masks, elements weighted by area.

    Distances are exact Euclidean ones between surface elements (the lattice points between the voxels), so they are
    multiples of the spacing's combinations. What lies outside the array counts as background: a mask that touches the
    image edge has a surface there.

    Parameters
    ----------
    fixed, moved
        Masks of one shape, 2-D or 3-D.
    spacing
        Voxel size along each axis, mm. Default 1 (distances in voxels).
    tolerance
        Remembered for `SurfaceDistances.surface_dice`.

    Raises
    ------
    InputError
        If shapes or dimensions do not agree.
    """
    steps = _check(fixed, moved, spacing)
    weights = surface_element_areas(tuple(steps))
    box = _union_box(fixed, moved)
    if box is None:
        nothing = np.zeros(0)
        return SurfaceDistances(nothing, nothing, nothing, nothing, tolerance)
    full = (1 << (1 << fixed.ndim)) - 1
    codes = [_neighbour_codes(mask[box]) for mask in (fixed, moved)]
    borders = [(c != 0) & (c != full) for c in codes]
    areas = [weights[c[b]] for c, b in zip(codes, borders, strict=True)]
    forward, backward = _between(borders[0], borders[1], steps)
    first, second = np.argsort(forward, kind="stable"), np.argsort(backward, kind="stable")
    return SurfaceDistances(forward[first], backward[second], areas[0][first], areas[1][second], tolerance)


def surface_distances_per_label(
    fixed_labels: Shaped[ndarray, "*space"],
    moved_labels: Shaped[ndarray, "..."],
    *,
    spacing: Iterable[float] | None = None,
    labels: Iterable[int] | None = None,
    tolerance: float = 1.0,
    threads: int = 2,
) -> dict[int, SurfaceDistances]:
    """Measure `surface_distances` for each label of two label maps, each cropped to its bounding box, in threads.

    Parameters
    ----------
    fixed_labels, moved_labels
        Label maps of one shape.
    spacing
        Voxel size along each axis, mm. Default 1.
    labels
        Labels to measure; default all non-zero labels of either map.
    tolerance
        Tolerance for the surface Dice, in the unit of the spacing.
    threads
        Labels measured at a time. The result does not depend on it.

    Returns
    -------
    dict
        Label to distances, ascending labels. A label in neither map has empty distances (all its measures are NaN).
    """
    from scipy import ndimage

    fixed_array, moved_array = np.asarray(fixed_labels), np.asarray(moved_labels)
    steps = _check(fixed_array, moved_array, spacing)
    if labels is None:
        labels = set(label_values(fixed_array)) | set(label_values(moved_array))
    wanted = np.unique(np.fromiter(labels, dtype=np.int64))
    fixed_codes, moved_codes = label_codes(fixed_array, wanted), label_codes(moved_array, wanted)
    boxes = [ndimage.find_objects(codes, max_label=len(wanted)) for codes in (fixed_codes, moved_codes)]
    surface_element_areas(tuple(steps))  # fill the cache once, before the threads ask for it

    def measure(position: int) -> SurfaceDistances:
        box = _join(boxes[0][position], boxes[1][position], fixed_array.ndim)
        pair = fixed_codes[box] == position + 1, moved_codes[box] == position + 1
        return surface_distances(*pair, spacing=steps, tolerance=tolerance)

    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        found = list(pool.map(measure, range(len(wanted))))
    return {int(label): distances for label, distances in zip(wanted, found, strict=True)}


@lru_cache(maxsize=32)
def surface_element_areas(spacing: tuple[float, ...]) -> Float[ndarray, " codes"]:
    """Area of the surface piece for each pattern of set voxels in a 2x2x2 block (length, for 2x2 in 2-D).

    Bit ``2^D - 1 - (4i + 2j + k)`` of the pattern (``3 - (2i + j)`` in 2-D) is the voxel at offset ``(i, j, k)``.

    On each face of the block, segments through the edge midpoints separate set from unset corners; on a face whose
    diagonals differ, they cut off the corners of the minority (the set ones, where at most half of the block is set).
    The segments close to polygons. A polygon that is not planar is split into triangles, the split of largest area in
    the unit cube; midpoints are then scaled by the spacing. These rules give the published 256-entry table exactly.

    Parameters
    ----------
    spacing
        Voxel size along each axis.

    Returns
    -------
    ``(256,)`` in 3-D, ``(16,)`` in 2-D; 0 for the empty and the full pattern.
    """
    steps = np.array(spacing)
    areas = np.array([_piece_area(piece * steps) for piece in _unit_pieces(len(spacing))])
    areas.setflags(write=False)
    return areas


@lru_cache(maxsize=2)
def _unit_pieces(dimensions: int) -> list[Float[ndarray, "n d d"]]:
    """Surface pieces of every pattern in the unit block: triangles ``(n, 3, 3)``, or segments ``(n, 2, 2)`` in 2-D."""
    corners = np.array(list(product((0, 1), repeat=dimensions)))
    patterns = 1 << len(corners)
    pieces = [np.zeros((0, dimensions, dimensions))] * patterns
    for code in range(1, patterns - 1):
        filled = np.array([code >> (len(corners) - 1 - c) & 1 for c in range(len(corners))], bool)
        if filled.sum() > len(corners) // 2:
            continue
        segments = _segments(corners, filled)
        piece = (
            np.array(segments) if dimensions == 2 else np.concatenate([_triangles(loop) for loop in _loops(segments)])
        )
        pieces[code] = piece
        if 2 * filled.sum() < len(corners):
            pieces[patterns - 1 - code] = piece  # the complement has the same surface
    return pieces


def _piece_area(piece: Float[ndarray, "n d d"]) -> float:
    edges = piece[:, 1:] - piece[:, :1]
    if piece.shape[-1] == 2:
        return float(np.linalg.norm(edges[:, 0], axis=1).sum())
    return float(np.linalg.norm(np.cross(edges[:, 0], edges[:, 1]), axis=1).sum() / 2)


def label_codes(labels: Shaped[ndarray, "*space"], wanted: Integer[ndarray, " l"]) -> Integer[ndarray, "*space"]:
    """Renumber a label map: the n-th wanted label (ascending) becomes n, from 1; everything else 0."""
    flat = labels.ravel(order="K")
    low, high = (int(flat.min()), int(flat.max())) if flat.size else (0, 0)
    if np.issubdtype(labels.dtype, np.integer) and low >= 0 and high < 1 << 22:
        table = np.zeros(high + 1, dtype=np.int32)
        known = (wanted >= 0) & (wanted <= high)
        table[wanted[known]] = np.flatnonzero(known) + 1
        return table[labels]
    position = np.searchsorted(wanted, labels).clip(max=max(len(wanted) - 1, 0))
    return np.where(wanted[position] == labels, position + 1, 0).astype(np.int32) if len(wanted) else position * 0


def _segments(corners: ndarray, minority: ndarray) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Segments between edge midpoints, on every face of the block (the block itself in 2-D)."""
    dimensions = corners.shape[1]
    found = []
    for axes in combinations(range(dimensions), 2):
        others = [a for a in range(dimensions) if a not in axes]
        for fixed_at in product((0, 1), repeat=len(others)):
            ring = []
            for step in ((0, 0), (0, 1), (1, 1), (1, 0)):
                corner = np.zeros(dimensions, int)
                corner[others] = fixed_at
                corner[list(axes)] = step
                ring.append(corner)
            state = [bool(minority[np.ravel_multi_index(tuple(c), (2,) * dimensions)]) for c in ring]
            middle = [tuple((ring[n] + ring[(n + 1) % 4]) / 2) for n in range(4)]
            crossed = [n for n in range(4) if state[n] != state[(n + 1) % 4]]
            if len(crossed) == 2:
                found.append((middle[crossed[0]], middle[crossed[1]]))
            elif len(crossed) == 4:
                found += [(middle[n - 1], middle[n]) for n in range(4) if state[n]]
    return found


def _loops(segments: list) -> list[list[tuple[float, ...]]]:
    """Join segments end to end into closed polygons. Each midpoint lies on two faces, so it ends two segments."""
    remaining = list(segments)
    loops = []
    while remaining:
        start, end = remaining.pop()
        loop = [start]
        while end != start:
            loop.append(end)
            following = next(s for s in remaining if end in s)
            remaining.remove(following)
            end = following[1] if following[0] == end else following[0]
        loops.append(loop)
    return loops


def _triangles(loop: list[tuple[float, ...]]) -> Float[ndarray, "n 3 3"]:
    points = np.array(loop)
    # rounded: several splits of one polygon have the same area but for the last bit, and the first must win everywhere
    return max((points[np.array(s)] for s in _splits(0, len(loop) - 1)), key=lambda piece: round(_piece_area(piece), 9))


def _splits(first: int, last: int) -> list[list[tuple[int, int, int]]]:
    """All ways to cut the polygon ``first .. last`` into triangles."""
    if last - first < 2:
        return [[]]
    return [
        left + right + [(first, middle, last)]
        for middle in range(first + 1, last)
        for left in _splits(first, middle)
        for right in _splits(middle, last)
    ]


def _neighbour_codes(mask: Bool[ndarray, "*space"]) -> Integer[ndarray, "*lattice"]:
    """Pattern of set voxels around each lattice point, one point more along each axis than there are voxels."""
    padded = np.pad(np.asarray(mask, np.uint8), 1)
    shape = tuple(n + 1 for n in mask.shape)
    codes = np.zeros(shape, np.uint8)
    last = (1 << mask.ndim) - 1
    for number, offset in enumerate(product((0, 1), repeat=mask.ndim)):
        window = tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))
        codes |= padded[window] << (last - number)
    return codes


def _between(fixed: ndarray, moved: ndarray, steps: ndarray) -> tuple[ndarray, ndarray]:
    """Exact distance from each set point to the nearest set point of the other array, both ways."""
    from scipy.spatial import cKDTree

    points = [np.argwhere(border) * steps for border in (fixed, moved)]
    # a k-d tree over surface points is exact, and a few times faster than a distance transform of the whole box
    trees = [cKDTree(p, balanced_tree=False, compact_nodes=False) if len(p) else None for p in points]
    distances = []
    for here, tree in ((points[0], trees[1]), (points[1], trees[0])):
        distances.append(tree.query(here)[0] if tree is not None and len(here) else np.full(len(here), np.inf))
    return distances[0], distances[1]


def _weighted_percentile(distances: ndarray, areas: ndarray, percent: float) -> float:
    share = np.cumsum(areas) / areas.sum()
    return float(distances[min(int(np.searchsorted(share, percent / 100.0)), len(distances) - 1)])


def _check(fixed: ndarray, moved: ndarray, spacing: Iterable[float] | None) -> ndarray:
    if fixed.shape != moved.shape:
        raise InputError(f"surfaces need two masks on one grid; the shapes are {fixed.shape} and {moved.shape}")
    if fixed.ndim not in (2, 3):
        raise InputError(f"surface distances are defined in 2-D and 3-D, not for shape {fixed.shape}")
    steps = np.ones(fixed.ndim) if spacing is None else np.array(tuple(spacing), dtype=float)
    if steps.shape != (fixed.ndim,) or (steps <= 0).any():
        raise InputError(f"spacing needs {fixed.ndim} positive numbers, got {steps.tolist()}")
    return steps


def _join(first: tuple | None, second: tuple | None, ndim: int) -> tuple[slice, ...]:
    if first is None or second is None:
        return first or second or (slice(0, 0),) * ndim
    return tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(first, second, strict=True))


def _union_box(fixed: ndarray, moved: ndarray) -> tuple[slice, ...] | None:
    from scipy import ndimage

    if fixed.size == 0:
        return None
    either = np.asarray(fixed, bool) | np.asarray(moved, bool)
    found = ndimage.find_objects(either.view(np.uint8), max_label=1)
    return found[0]
