"""Pairs of real images whose true transform is known: one image, deformed, and shown as another scan would show it.

The fixed image is the real one read through the truth, ``fixed(x) = image(T(x))``, so that T is exact at every voxel
and no inverse is needed; then both get noise of their own, and the fixed one, in half of the pairs, another contrast
and uneven brightness. The moving image keeps its voxels.
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
from verimorph.synthetic import bias_field, noise_deformation, random_affine, random_deformation
from verimorph.transform import Affine, Composite, DisplacementField

SMALLEST = 0.002
"""A deformation that cannot be made invertible is made weaker, down to this share of the anatomy's extent."""

THIN = 3.0
"""How many times as wide as thick a stack of slices is."""


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
        Mean length of the deformation over what it moves, mm (without the affine part).
    """

    fixed: Image
    moving: Image
    truth: Composite
    foreground: Bool[ndarray, "*space"]
    strength: float


@dataclass(frozen=True)
class Appearance:
    """How a scan shows what is there: drawn anew for each image of a pair.

    Attributes
    ----------
    gamma, bias
        Exponent of the intensities; largest logarithm of the uneven brightness.
    noise
        Standard deviation of white noise, share of the range of intensities.
    clutter, grain
        The same of noise that hangs together, and over how many voxels: flow, motion, what one scan has alone.
    """

    gamma: float = 1.0
    bias: float = 0.0
    noise: float = 0.0
    clutter: float = 0.0
    grain: float = 1.0


def known_pair(image: Image, *, seed: int = 0) -> KnownPair:
    """Return a pair with a known answer, made of one real image; equal seeds give equal pairs.

    Drawn from the seed. *Motion*: odd seeds, smoothed noise over the whole image, of a width of 4 to 12 % of the
    anatomy's extent and a mean length of 0.5 to 4 % of it, in half of these after a small affine map. Even seeds, in
    two of three motion of everything, as between two people or two positions: mean displacement 0.5 to 5 % of the
    extent, on three scales of 60, 30 and 15 % of it (weights of the fine ones between none and half of the coarse; in
    half of these it fades towards the rim of the anatomy, in half it goes on beyond), rotation to 12 degrees, scale to
    8 %, translation to 8 % of each side. In one of three, of a part, as of a heart in a chest: the same within a ball
    of 15 to 35 % of the extent, 1 to 8 % of the ball, and nothing else but, in half of these, a small rigid motion.
    *Looks*: in half of the pairs both scans are of one kind; in the others the fixed one has gamma 0.7 to 1.4 and
    brightness uneven by up to a fifth. Four of five pairs have white noise in both, of 0.1 to 4 % of the range of
    intensities, and half of these noise that hangs together over 1 to 3 voxels; one of five has none, as a copy has.
    Half of the pairs are read by cubic splines, half by linear interpolation: that is how registration itself reads, so
    that the truth is softened just as a candidate is, and found too well. Of seeds one below a multiple of four the
    fixed image is a *copy*, as one tries a program: smoothed noise of a width of 5 to 15 % and a mean length of 0.2 to
    3 %, no affine map, no noise, the same look.
    """
    random = np.random.default_rng(seed)
    inside = foreground(image)
    extent = _extent(image.grid, inside)
    copy = seed % 4 == 3
    if seed % 2 == 1:
        truth, mean = _noise_motion(image.grid, inside, extent, random, seed, still=copy)
    elif random.uniform() < 2 / 3:
        truth, mean = _whole_motion(image.grid, inside, extent, random, seed)
    else:
        truth, mean = _part_motion(image.grid, inside, extent, random, seed)
    silent = random.uniform() < 0.2 or copy
    noises = np.exp(random.uniform(np.log(0.001), np.log(0.04), 2)) * (not silent)
    clutter = random.uniform(0, 0.02) if random.uniform() < 0.5 and not silent else 0.0
    interpolation = "cubic" if random.uniform() < 0.5 else "linear"
    own = {"clutter": clutter, "grain": float(random.uniform(1, 3))}
    alike = random.uniform() >= 0.5 or copy
    other = {} if alike else {"gamma": random.uniform(0.7, 1.4), "bias": random.uniform(0, 0.2)}
    first = Appearance(noise=float(noises.max()), **own, **other)
    second = Appearance(noise=float(noises.min()), **own)
    low, high = (float(v) for v in np.percentile(image.array, (0.5, 99.5)))
    spread = max(high - low, 1e-6)
    plain = Image.from_array((image.array.astype(np.float32) - low) / spread, image.grid, name=image.name)
    background = (default_background(image) - low) / spread
    seen = truth.resample(plain, image.grid, interpolation=interpolation, background=background).array
    shown = [_shown(values, look, image.grid, random, seed) for values, look in ((seen, first), (plain.array, second))]
    carried = truth.resample(
        Image.from_array(inside.astype(np.uint8), image.grid), image.grid, interpolation="nearest"
    ).array
    fixed, moving = (
        Image.from_array((values * spread + low).astype(np.float32), image.grid, name=name)
        for values, name in zip(shown, ("fixed", "moving"), strict=True)
    )
    return KnownPair(fixed, moving, truth, carried > 0, mean)


def _whole_motion(
    grid: Grid, inside: Bool[ndarray, "*space"], extent: float, random: np.random.Generator, seed: int
) -> tuple[Composite, float]:
    """A deformation of all of the anatomy, then an affine map."""
    mean = extent * float(np.exp(random.uniform(np.log(0.005), np.log(0.05))))
    fades = random.uniform() < 0.5
    bend, mean = _bend(grid, inside, extent, mean, random, seed, reach=0.0 if fades else 0.3 * extent)
    linear = _linear(grid, inside, random, seed, rotation=12.0, scale=8.0, translation=0.08)
    return Composite([bend, linear]), mean


def _noise_motion(
    grid: Grid, inside: Bool[ndarray, "*space"], extent: float, random: np.random.Generator, seed: int, *, still: bool
) -> tuple[Composite, float]:
    """Smoothed noise over the whole image, in half of the cases that do not hold still after a small affine map."""
    lengths, widths = ((0.002, 0.03), (0.05, 0.15)) if still else ((0.005, 0.04), (0.04, 0.12))
    mean = extent * float(np.exp(random.uniform(*np.log(lengths))))
    width = max(extent * float(random.uniform(*widths)), 2 * float(grid.spacing.min()))
    bend = noise_deformation(grid, mean_mm=mean, width_mm=width, mask=inside, seed=seed)
    share = 0.0 if random.uniform() < 0.5 or still else 0.5
    linear = _linear(grid, inside, random, seed, rotation=12 * share, scale=8 * share, translation=0.08 * share)
    points = grid.index_to_world(np.argwhere(inside)[::97])
    moved = np.linalg.norm(bend.map_points(points) - points, axis=1)
    return Composite([bend, linear]), float(moved.mean())


def _part_motion(
    grid: Grid, inside: Bool[ndarray, "*space"], extent: float, random: np.random.Generator, seed: int
) -> tuple[Composite, float]:
    """A deformation of what lies in a ball, and in half of the cases a small rigid motion of everything."""
    places = np.argwhere(inside)
    centre = grid.index_to_world(places[random.integers(len(places))])
    radius = extent * float(random.uniform(0.15, 0.35))
    near = np.zeros_like(inside)
    near[tuple(places.T)] = np.linalg.norm(grid.index_to_world(places) - centre, axis=1) < radius
    mean = 2 * radius * float(np.exp(random.uniform(np.log(0.01), np.log(0.08))))
    bend, mean = _bend(grid, near, 2 * radius, mean, random, seed, reach=0.0)
    still = random.uniform() < 0.5
    linear = _linear(
        grid, inside, random, seed, rotation=0.0 if still else 2.0, scale=0.0, translation=0.0 if still else 0.01
    )
    return Composite([bend, linear]), mean


def _linear(
    grid: Grid,
    inside: Bool[ndarray, "*space"],
    random: np.random.Generator,
    seed: int,
    *,
    rotation: float,
    scale: float,
    translation: float,
) -> Affine:
    """An affine map of at most this strength: degrees, per cent, and share of each side of the anatomy.

    What is less than a third as thick as it is wide, such as a stack of few slices, is turned within its plane: turned
    out of it, most of it would leave the image.
    """
    points = np.argwhere(inside)
    sides = (points.max(0) - points.min(0) + 1) * grid.spacing
    directions = grid.affine[:-1, :-1] / grid.spacing
    thin = grid.ndim == 3 and sides.min() < sides.max() / THIN
    shift = directions @ (random.uniform(-translation, translation, grid.ndim) * sides)
    return random_affine(
        grid.index_to_world(points.mean(0)),
        rotation_degrees=float(random.uniform(0, rotation)),
        scale_percent=float(random.uniform(0, scale)),
        translation_mm=shift,
        axis=directions[:, int(sides.argmin())] if thin else None,
        seed=seed + 1,
    )


def _bend(
    grid: Grid,
    where: Bool[ndarray, "*space"],
    extent: float,
    mean: float,
    random: np.random.Generator,
    seed: int,
    *,
    reach: float,
) -> tuple[DisplacementField, float]:
    """A deformation of what is in a mask, made weaker until it can be inverted, and its mean length, mm."""
    fine = random.uniform(0, 0.5, 2)
    while True:
        try:
            bend = random_deformation(
                grid,
                mean_mm=mean,
                mask=where,
                radii_mm=(0.6 * extent, 0.3 * extent, 0.15 * extent),
                weights=(1.0, float(fine[0]), float(fine[0] * fine[1])),
                reach_mm=reach,
                seed=seed,
            )
        except OptionError:
            mean *= 0.7
            if mean < SMALLEST * extent:
                raise
        else:
            return bend, mean


def _shown(
    values: Float[ndarray, "*space"], look: Appearance, grid: Grid, random: np.random.Generator, seed: int
) -> Float[ndarray, "*space"]:
    """Intensities, anatomy from 0 to 1, as a scan of this look shows them."""
    if look.gamma != 1:
        values = np.clip(values, 0, None) ** np.float32(look.gamma)
    if look.bias > 0:
        values = values * bias_field(values.shape, strength=look.bias, seed=seed)
    noise = np.float32(look.noise) * random.standard_normal(values.shape, dtype=np.float32)
    if look.clutter > 0:
        finest = float(grid.spacing.min())
        rough = random.standard_normal(values.shape, dtype=np.float32)
        soft = ndimage.gaussian_filter(rough, [look.grain * finest / float(s) for s in grid.spacing])
        noise += np.float32(look.clutter / max(float(soft.std()), 1e-12)) * soft
    return values + noise


def foreground(image: Image) -> Bool[ndarray, "*space"]:
    """Where the anatomy is: brighter than half of Otsu's threshold over the darkest, holes filled, the largest piece.

    Otsu, IEEE Trans. SMC 9, 1979, on intensities between their 0.5 and 99.5 percentiles. What is not finite is dark.
    """
    values = image.array.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.ones(values.shape, bool)
    low, high = (float(v) for v in np.percentile(values[finite], (0.5, 99.5)))
    values = np.where(finite, values, low)
    if high <= low:
        return np.ones(values.shape, bool)
    scaled = np.clip((values - low) / (high - low), 0, 1)
    inside = ndimage.gaussian_filter(scaled, 0.7) > 0.5 * _otsu(scaled)
    if image.grid.ndim == 3:
        # Slice by slice along each axis: organs filled with air are open to the outside somewhere in 3-D.
        for axis in range(3):
            for plane in np.moveaxis(inside, axis, 0):
                plane[...] = _filled(plane)
    else:
        inside = _filled(inside)
    pieces, count = ndimage.label(inside)
    if count > 1:
        sizes = np.bincount(pieces.ravel())[1:]
        inside = np.isin(pieces, 1 + np.flatnonzero(sizes > 0.1 * sizes.max()))
    return inside if inside.any() else np.ones(values.shape, bool)


def _filled(plane: Bool[ndarray, "h w"]) -> Bool[ndarray, "h w"]:
    """Without holes: SciPy's ``binary_fill_holes``, by numbering what lies outside instead of growing it in steps."""
    pieces, count = ndimage.label(~plane)
    outside = np.zeros(count + 1, bool)
    for edge in (pieces[0], pieces[-1], pieces[:, 0], pieces[:, -1]):
        outside[edge] = True
    outside[0] = False  # the plane itself
    return ~outside[pieces]


def anatomy(
    image: Image, mask: Image | None, *, inside: Bool[ndarray, "*space"] | None = None
) -> Bool[ndarray, "*space"]:
    """The foreground (``inside``, if known), within the mask where there is one: the mask alone if they do not meet."""
    inside = foreground(image) if inside is None else inside
    if mask is None:
        return inside
    both = inside & (mask.array > 0)
    return both if both.any() else mask.array > 0


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
