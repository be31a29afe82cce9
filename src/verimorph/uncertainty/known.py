"""Pairs of real images whose true transform is known: one image, deformed, and shown as another scan would show it.

The fixed image is the real one read through the truth, ``fixed(x) = image(T(x))``, so that T is exact at every voxel
and no inverse is needed; then both get other noise, and the fixed one another contrast and uneven brightness. The
moving image keeps its voxels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.prepare import default_background
from verimorph.synthetic import bias_field, random_affine, random_deformation
from verimorph.transform import Composite

SMALLEST = 0.002
"""A deformation that cannot be made invertible is made weaker, down to this share of the anatomy's extent."""


@dataclass(frozen=True, eq=False)
class KnownPair:
    """Two images and the map between them.

    Attributes
    ----------
    fixed, moving
        The deformed image, and the one it was made from.
    truth
        Fixed to moving, exact.
    foreground
        Where the anatomy is, on the fixed grid.
    strength
        Mean length of the deformation over the anatomy, mm (without the affine part).
    """

    fixed: Image
    moving: Image
    truth: Composite
    foreground: Bool[ndarray, "*space"]
    strength: float


def known_pair(image: Image, *, seed: int = 0) -> KnownPair:
    """Return a pair with a known answer, made of one real image; equal seeds give equal pairs.

    Drawn from the seed: mean displacement 0.5 to 5 % of the anatomy's extent, on three scales of 60, 30 and 15 % of it
    (weights of the fine ones between none and half of the coarse); rotation to 12 degrees, scale to 8 %, translation to
    8 % of the extent; gamma 0.7 to 1.4, brightness uneven by up to a fifth, normal noise of 0.5 to 4 % of the range of
    intensities in the fixed image and a quarter of it in the moving one.
    """
    random = np.random.default_rng(seed)
    inside = foreground(image)
    extent = _extent(image.grid, inside)
    mean = extent * float(np.exp(random.uniform(np.log(0.005), np.log(0.05))))
    fine = random.uniform(0, 0.5, 2)
    bend = None
    while bend is None:
        try:
            bend = random_deformation(
                image.grid,
                mean_mm=mean,
                mask=inside,
                radii_mm=(0.6 * extent, 0.3 * extent, 0.15 * extent),
                weights=(1.0, float(fine[0]), float(fine[0] * fine[1])),
                seed=seed,
            )
        except OptionError:
            mean *= 0.7
            if mean < SMALLEST * extent:
                raise
    linear = random_affine(
        image.grid.index_to_world(np.argwhere(inside).mean(0)),
        rotation_degrees=float(random.uniform(0, 12)),
        scale_percent=float(random.uniform(0, 8)),
        translation_mm=float(random.uniform(0, 0.08)) * extent,
        seed=seed + 1,
    )
    truth = Composite([bend, linear])
    low, high = (float(v) for v in np.percentile(image.array, (0.5, 99.5)))
    spread = max(high - low, 1e-6)
    values = image.array.astype(np.float32)
    background = (default_background(image) - low) / spread
    plain = Image.from_array((values - low) / spread, image.grid, name=image.name)
    seen = truth.resample(plain, image.grid, interpolation="linear", background=background).array
    gamma, bias, noise = random.uniform(0.7, 1.4), random.uniform(0, 0.2), random.uniform(0.005, 0.04)
    shown = np.clip(seen, 0, None) ** np.float32(gamma) * bias_field(image.grid.shape, strength=bias, seed=seed)
    shown += np.float32(noise) * random.standard_normal(shown.shape, dtype=np.float32)
    kept = plain.array + np.float32(noise / 4) * random.standard_normal(shown.shape, dtype=np.float32)
    carried = truth.resample(
        Image.from_array(inside.astype(np.uint8), image.grid), image.grid, interpolation="nearest"
    ).array
    return KnownPair(
        Image.from_array((shown * spread + low).astype(np.float32), image.grid, name="fixed"),
        Image.from_array((kept * spread + low).astype(np.float32), image.grid, name="moving"),
        truth,
        carried > 0,
        mean,
    )


def foreground(image: Image) -> Bool[ndarray, "*space"]:
    """Where the anatomy is: brighter than half of Otsu's threshold over the darkest, holes filled, the largest piece.

    Otsu, IEEE Trans. SMC 9, 1979, on intensities between their 0.5 and 99.5 percentiles.
    """
    values = image.array.astype(np.float32)
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    if high <= low:
        return np.ones(values.shape, bool)
    scaled = np.clip((values - low) / (high - low), 0, 1)
    inside = ndimage.gaussian_filter(scaled, 0.7) > 0.5 * _otsu(scaled)
    if image.grid.ndim == 3:
        # Slice by slice along each axis: organs filled with air are open to the outside somewhere in 3-D.
        for axis in range(3):
            for plane in np.moveaxis(inside, axis, 0):
                plane[...] = ndimage.binary_fill_holes(plane)
    else:
        inside = ndimage.binary_fill_holes(inside)
    pieces, count = ndimage.label(inside)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        inside = np.isin(pieces, 1 + np.flatnonzero(sizes > 0.1 * sizes.max()))
    return inside if inside.any() else np.ones(values.shape, bool)


def _otsu(scaled: Float[ndarray, "*space"]) -> float:
    counts, edges = np.histogram(scaled, bins=256, range=(0, 1))
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts).astype(float)
    above = below[-1] - below
    first = np.cumsum(counts * middles) / np.maximum(below, 1)
    second = (np.sum(counts * middles) - np.cumsum(counts * middles)) / np.maximum(above, 1)
    return float(middles[np.argmax(below * above * (first - second) ** 2)])


def _extent(grid: Grid, inside: Bool[ndarray, "*space"]) -> float:
    """Geometric mean of the sides of the box around the anatomy, mm."""
    points = np.argwhere(inside)
    sides = (points.max(0) - points.min(0) + 1) * grid.spacing
    return float(np.prod(sides) ** (1 / grid.ndim))
