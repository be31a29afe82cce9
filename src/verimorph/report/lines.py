"""Lines over pictures: edges, outlines of labels and the deformed grid, as compact SVG paths in pixel coordinates."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from contourpy import contour_generator
from jaxtyping import Float
from numpy import ndarray

from verimorph.field import gaussian_smooth

SUBPIXEL = 10  # path coordinates are whole numbers of tenths of a pixel; the page scales them back


def svg_path(polylines: Iterable[Float[ndarray, "_ 2"]]) -> str:
    """Write polylines of (column, row) pixel centres as one path in tenths of a pixel, origin at the outer pixel edge.

    Relative integer steps keep it a third of the size of decimal coordinates.
    """
    parts = []
    for line in polylines:
        points = np.round((np.asarray(line) + 0.5) * SUBPIXEL).astype(int)
        steps = np.diff(points, axis=0)
        steps = steps[steps.any(axis=1)]
        if len(steps):
            parts.append(f"M{points[0, 0]} {points[0, 1]}l{' '.join(map(str, steps.ravel().tolist()))}")
    return "".join(parts)


def edges(picture: Float[ndarray, "rows columns"], *, sigma: float = 1.5, least_length: float = 12.0) -> list[ndarray]:
    """Trace edges to a fraction of a pixel: zero crossings of the Laplacian of a Gaussian where the gradient is strong.

    An edge is kept where its gradient stays above a low bound and somewhere exceeds a high one (hysteresis as in
    Canny), and where it is at least ``least_length`` pixels long.

    Parameters
    ----------
    picture
        Grey values.
    sigma
        Width of the Gaussian, pixels.
    least_length
        Shortest edge that is kept, pixels.

    Returns
    -------
    list of (n, 2) arrays
        Polylines of (column, row).

    References
    ----------
    Marr and Hildreth, Theory of edge detection, Proc. R. Soc. B 207, 1980; Canny, IEEE PAMI 8(6), 1986 (hysteresis).
    """
    if min(picture.shape) < 4:
        return []
    values = torch.from_numpy(np.ascontiguousarray(np.nan_to_num(picture), dtype=np.float32))[None, None]
    smooth = gaussian_smooth(values, sigma)[0, 0].numpy()
    down, right = np.gradient(smooth)
    strength = np.hypot(down, right)
    scale = float(np.percentile(smooth, 99.5) - np.percentile(smooth, 0.5))
    steep = strength[strength > 0.01 * scale]
    if scale <= 0 or steep.size == 0:
        return []
    high = float(np.percentile(steep, 70))
    padded = np.pad(smooth, 1, mode="edge")
    laplacian = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * smooth
    found = contour_generator(z=np.ma.masked_array(laplacian, strength < 0.4 * high)).lines(0.0)
    kept = []
    for line in found:
        if np.hypot(*np.diff(line, axis=0).T).sum() < least_length:
            continue
        column, row = np.round(line).astype(int).T
        if strength[row, column].max() >= high:
            kept.append(line)
    return kept


def outlines(labels: Float[ndarray, "rows columns"]) -> str:
    """Trace the borders between labels along the edges of the pixels, as an SVG path like that of :func:`svg_path`.

    One line between two touching labels, straight runs merged; nothing is smoothed: what is drawn is what is counted.
    """
    padded = np.pad(labels, 1)
    parts = []
    for turned, template in ((False, "M{0} {1}h{2}"), (True, "M{1} {0}v{2}")):
        map_ = padded.T if turned else padded
        border = map_[1:, 1:-1] != map_[:-1, 1:-1]  # edge above pixel row r, at every column
        line, start = np.nonzero(np.diff(border.astype(np.int8), axis=1, prepend=0) == 1)
        _, stop = np.nonzero(np.diff(border.astype(np.int8), axis=1, append=0) == -1)
        runs = np.stack([start, line, stop + 1 - start], 1) * SUBPIXEL
        parts += [template.format(*run) for run in runs.tolist()]
    return "".join(parts)


def grid_lines(
    mapped: Float[ndarray, "rows columns 2"], step_mm: float, *, every: int = 2
) -> list[Float[ndarray, "_ 2"]]:
    """Return the pictures of straight grid lines of moving space in a fixed plane.

    A line of the moving image where a world coordinate is a multiple of ``step_mm`` shows up in the fixed plane where
    the transform takes that value: the level lines of the mapped coordinates. They bend exactly as the moved image
    does; closed loops and crossings betray folding.

    Parameters
    ----------
    mapped
        The two in-plane world coordinates in moving space of every pixel, mm.
    step_mm
        Distance between lines, mm.
    every
        Keep every n-th pixel along both axes (smooth maps need no more).
    """
    rows, columns = mapped.shape[:2]
    row = np.unique(np.append(np.arange(0, rows, every), rows - 1))
    column = np.unique(np.append(np.arange(0, columns, every), columns - 1))
    found = []
    for axis in range(2):
        values = mapped[row][:, column, axis]
        if min(values.shape) < 2 or not np.isfinite(values).all():
            continue
        generator = contour_generator(x=column, y=row, z=values)
        first, last = np.ceil(values.min() / step_mm), np.floor(values.max() / step_mm)
        for level in np.arange(first, last + 1):
            found += generator.lines(level * step_mm)
    return found


def nice_step(extent_mm: float, count: int = 20) -> float:
    """Round a distance that divides ``extent_mm`` about ``count`` times to 1, 2, 2.5 or 5 times a power of ten."""
    raw = extent_mm / count
    base = 10.0 ** np.floor(np.log10(raw))
    return float(min((m * base for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(np.log(s / raw))))
