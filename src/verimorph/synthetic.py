"""Pairs with a known answer: random invertible deformations, and what scanners do to grey values.

The deformations are sums of compactly supported bumps in world space. No solver of this package searches that family,
so a small error against them is a measurement, not a matter of course.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from scipy import ndimage

from verimorph import field
from verimorph.errors import NoInverseError, OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import Affine, Composite, DisplacementField

LEAST_DETERMINANT = 0.2
NODES_PER_RADIUS = 9
NODES_PER_WIDTH = 4
ATTEMPTS = 12


def random_affine(
    centre: Float[ndarray, " d"],
    *,
    rotation_degrees: float = 15.0,
    scale_percent: float = 10.0,
    translation_mm: float | Float[ndarray, " d"] = 10.0,
    axis: Float[ndarray, " d"] | None = None,
    seed: int = 0,
) -> Affine:
    """Return an affine map of given strength about a point: ``y = c + R S (x - c) + t``.

    Parameters
    ----------
    centre
        The point c that only the translation moves, mm.
    rotation_degrees
        Angle of R.
    axis
        Direction that R turns about (3-D); default random.
    scale_percent
        S is diagonal with one factor ``1 + scale_percent / 100`` and the others between its inverse and it.
    translation_mm
        Length of t, in a random direction; or t itself.
    seed
        Equal seeds give equal maps.
    """
    random = np.random.default_rng(seed)
    d = len(centre)
    angle = np.radians(rotation_degrees)
    if d == 2:
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    else:
        drawn = _direction(random, 3)
        x, y, z = drawn if axis is None else axis / np.linalg.norm(axis)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        turn = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross  # Rodrigues' formula
    most = np.log1p(scale_percent / 100)
    factors = np.exp(random.permutation(np.append(most, random.uniform(-most, most, d - 1))))
    matrix = np.eye(d + 1)
    matrix[:d, :d] = turn * factors
    shift = translation_mm if isinstance(translation_mm, np.ndarray) else translation_mm * _direction(random, d)
    matrix[:d, d] = centre - matrix[:d, :d] @ centre + shift
    return Affine(matrix)


def random_deformation(
    grid: Grid,
    *,
    mean_mm: float,
    mask: Bool[ndarray, "*space"] | None = None,
    radii_mm: Sequence[float] = (100.0, 60.0, 34.0),
    weights: Sequence[float] = (1.0, 0.5, 0.2),
    reach_mm: float = 0.0,
    seed: int = 0,
) -> DisplacementField:
    """Return a smooth random invertible deformation with a given mean displacement.

    ``u(x) = sum_k a_k phi(|x - c_k| / R_k)`` with Wendland's function ``phi(r) = (1 - r)^4 (4 r + 1)`` for r < 1, else
    0: twice continuously differentiable and exactly zero beyond the radius R_k. Centres c_k are drawn from the mask,
    vectors a_k from a normal distribution, on several scales. The sum is stored on its own lattice of
    isotropic spacing, which holds the support of every bump, and is linear between its nodes: what
    :meth:`DisplacementField.map_points` returns *is* the deformation, without any further approximation.

    Parameters
    ----------
    grid
        Grid of the image to deform.
    mean_mm
        Mean length of the displacement over the mask.
    mask
        Where the anatomy is, on ``grid``; default everywhere.
    radii_mm, weights
        Support of the bumps and relative displacement of each scale, coarse first.
    reach_mm
        How far outside the mask centres may lie, along each axis. With 0 the deformation fades towards its rim.
    seed
        Equal seeds give equal deformations.

    Returns
    -------
    DisplacementField
        With its numerical inverse attached (residual in ``inverse_residual``).

    Raises
    ------
    OptionError
        If no attempt gives Jacobian determinants above 0.2 everywhere: too much motion for these radii.

    References
    ----------
    Wendland, Piecewise polynomial, positive definite and compactly supported radial functions of minimal degree,
    Adv. Comput. Math. 4, 1995.
    """
    if len(radii_mm) != len(weights):
        raise OptionError(f"{len(radii_mm)} radii but {len(weights)} weights; give one weight for each radius")
    random = np.random.default_rng(seed)
    inside = np.ones(grid.shape, bool) if mask is None else np.asarray(mask) > 0
    if not inside.any():
        raise OptionError("the mask is empty: nowhere to deform")
    points = grid.index_to_world(np.argwhere(inside))
    low, high = points.min(0), points.max(0)
    rim = max(radii_mm) + reach_mm
    lattice = _lattice(low - rim, high + rim, min(radii_mm) / NODES_PER_RADIUS)
    probe = points[:: max(1, len(points) // 50_000)]

    scales = []
    for radius in radii_mm:
        count = int(np.clip(4 * np.prod((high - low + 2 * reach_mm) / radius + 0.5), 8, 500))
        centres = points[random.integers(len(points), size=count)]
        if reach_mm > 0:
            centres = centres + random.uniform(-reach_mm, reach_mm, centres.shape)
        vectors = random.standard_normal((count, grid.ndim))
        bumps = _sum_of_bumps(lattice, centres, vectors, radius)
        scales.append(bumps / _mean_length(lattice, bumps, probe))

    damping = 1.0
    for _ in range(ATTEMPTS):
        shares = np.array(weights) * damping ** np.arange(len(scales))
        mixed = np.tensordot(shares.astype(np.float32), np.stack(scales), 1)
        mixed *= np.float32(mean_mm / _mean_length(lattice, mixed, probe))
        displacement = torch.from_numpy((mixed / lattice.spacing[0]).astype(np.float32))[None]
        if float(field.jacobian_determinant(displacement).min()) >= LEAST_DETERMINANT:
            return _with_inverse(lattice, displacement)
        damping *= 0.7  # motion moves to the coarse scales, where the same length bends space less
    raise OptionError(
        f"a mean displacement of {mean_mm:g} mm cannot be made invertible with bumps of {max(radii_mm):g} mm; "
        "lower it or enlarge the radii"
    )


def noise_deformation(
    grid: Grid,
    *,
    mean_mm: float,
    width_mm: float,
    mask: Bool[ndarray, "*space"] | None = None,
    seed: int = 0,
) -> DisplacementField:
    """Return smoothed noise as a deformation: as strong at the border of the image as in its middle.

    White noise on a lattice over the whole grid, smoothed by a Gaussian of standard deviation ``width_mm``, scaled to a
    mean length over the mask, linear between the nodes; weaker than asked where it would fold.

    Parameters
    ----------
    grid
        Grid of the image to deform.
    mean_mm, width_mm
        Mean length of the displacement over the mask; standard deviation of the Gaussian.
    mask
        Where the anatomy is, on ``grid``; default everywhere.
    seed
        Equal seeds give equal deformations.

    Returns
    -------
    DisplacementField
        Jacobian determinants on its lattice are 0.2 or more; no inverse is attached.

    Raises
    ------
    OptionError
        If the mask is empty.
    """
    random = np.random.default_rng(seed)
    corners = np.array(list(np.ndindex(*(2,) * grid.ndim))) * (np.array(grid.shape) - 1)
    box = grid.index_to_world(corners)
    lattice = _lattice(box.min(0) - width_mm, box.max(0) + width_mm, width_mm / NODES_PER_WIDTH)
    noise = random.standard_normal((grid.ndim, *lattice.shape), dtype=np.float32)
    smooth = np.stack([ndimage.gaussian_filter(one, NODES_PER_WIDTH, mode="wrap") for one in noise])
    inside = np.ones(grid.shape, bool) if mask is None else np.asarray(mask) > 0
    if not inside.any():
        raise OptionError("the mask is empty: nowhere to deform")
    points = grid.index_to_world(np.argwhere(inside))
    smooth *= np.float32(mean_mm / _mean_length(lattice, smooth, points[:: max(1, len(points) // 50_000)]))
    while True:
        displacement = torch.from_numpy(smooth / np.float32(lattice.spacing[0]))[None]
        if float(field.jacobian_determinant(displacement).min()) >= LEAST_DETERMINANT:
            return DisplacementField(lattice, displacement)
        smooth *= np.float32(0.8)


def random_transform(
    grid: Grid,
    *,
    mask: Bool[ndarray, "*space"] | None = None,
    mean_mm: float = 6.0,
    rotation_degrees: float = 15.0,
    scale_percent: float = 10.0,
    translation_mm: float = 10.0,
    seed: int = 0,
) -> Composite:
    """Return a random deformation followed by a random affine map, fixed to moving; see the two functions above."""
    inside = np.ones(grid.shape, bool) if mask is None else np.asarray(mask) > 0
    centre = grid.index_to_world(np.argwhere(inside).mean(0))
    bend = random_deformation(grid, mean_mm=mean_mm, mask=mask, seed=seed)
    linear = random_affine(
        centre,
        rotation_degrees=rotation_degrees,
        scale_percent=scale_percent,
        translation_mm=translation_mm,
        seed=seed + 1,
    )
    return Composite([bend, linear])


def preimage(
    bend: DisplacementField, points: Float[ndarray, "n d"], *, tolerance_mm: float = 1e-3
) -> Float[ndarray, "n d"]:
    """Find x with ``x + u(x) = y`` for every point y, to ``tolerance_mm``, by the fixed point ``x <- y - u(x)``.

    The stored inverse field is exact at its nodes only (0.1 mm off between nodes of 4 mm); an image that is to have a
    known truth is therefore resampled at points found here. Contracts because :func:`random_deformation` bends gently.

    Raises
    ------
    NoInverseError
        If the tolerance is not reached in 60 steps.
    """
    points = np.asarray(points, dtype=np.float64)
    found = bend.inverse().map_points(points)
    active = np.arange(len(points))
    for _ in range(60):
        here = found[active]
        residual = points[active] - bend.map_points(here)
        found[active] = here + residual
        active = active[np.abs(residual).max(axis=1) > tolerance_mm / 2]
        if active.size == 0:
            return found
    raise NoInverseError(f"{active.size} points of the random deformation have no preimage to {tolerance_mm:g} mm")


def change_contrast(values: Float[ndarray, "*space"], *, gamma: float = 0.7, fold: float = 0.0) -> ndarray:
    """Map grey values through ``(1 - fold) t^gamma + fold 4 t (1 - t)``, t = value over the 99.5th percentile.

    t is clipped to [0, 1]. With ``fold = 0`` the order of tissues stays; from about 0.3 the brightest turn darker than
    the middle ones, as between T1 and T2 weighting. Zero stays zero.
    """
    if gamma <= 0 or not 0 <= fold <= 1:
        raise OptionError(f"gamma {gamma:g} must be positive and fold {fold:g} lie in [0, 1]")
    top = np.percentile(values[values > 0], 99.5) if (values > 0).any() else 1.0
    t = np.clip(values / top, 0, 1).astype(np.float32)
    return (1 - fold) * t**gamma + fold * 4 * t * (1 - t)


def bias_field(shape: tuple[int, ...], *, strength: float = 0.25, seed: int = 0) -> Float[ndarray, "*space"]:
    """Return a smooth multiplicative field ``exp(strength p)``, p a random cubic polynomial scaled to [-1, 1]."""
    random = np.random.default_rng(seed)
    axes = [np.linspace(-1, 1, n, dtype=np.float32) for n in shape]
    total = np.zeros(shape, np.float32)
    for powers in np.ndindex(*(4,) * len(shape)):
        if 0 < sum(powers) <= 3:
            term = np.float32(random.standard_normal())
            for axis, power in enumerate(powers):
                term = term * (axes[axis] ** power).reshape([-1 if a == axis else 1 for a in range(len(shape))])
            total += term
    total -= (total.max() + total.min()) / 2
    return np.exp(strength * total / max(float(np.abs(total).max()), 1e-12))


def rician_noise(values: Float[ndarray, "*space"], *, sigma: float, seed: int = 0) -> ndarray:
    """Return ``sqrt((v + n1)^2 + n2^2)`` with normal n of standard deviation ``sigma``: noise of magnitude images.

    References
    ----------
    Gudbjartsson and Patz, The Rician distribution of noisy MRI data, Magn. Reson. Med. 34, 1995.
    """
    random = np.random.default_rng(seed)
    noise = random.standard_normal((2, *values.shape), dtype=np.float32) * np.float32(sigma)
    return np.hypot(values + noise[0], noise[1])


def scan(
    image: Image,
    *,
    gamma: float = 0.7,
    fold: float = 0.0,
    bias: float = 0.25,
    noise: float = 0.03,
    seed: int = 0,
) -> Image:
    """Return the image as another scanner might show it: other contrast, uneven brightness, noise (int16, 0 to 1000).

    Parameters
    ----------
    image
        Grey values of a magnetic resonance image, air at zero.
    gamma, fold
        See :func:`change_contrast`.
    bias
        See :func:`bias_field`.
    noise
        Standard deviation of the Rician noise over the brightest tissue.
    seed
        Equal seeds give equal images.
    """
    values = change_contrast(image.array.astype(np.float32), gamma=gamma, fold=fold)
    values = values * bias_field(image.grid.shape, strength=bias, seed=seed)
    values = rician_noise(values, sigma=noise, seed=seed + 1) if noise > 0 else values
    return image.with_array(np.round(1000 * values).astype(np.int16))


def _direction(random: np.random.Generator, d: int) -> Float[ndarray, " d"]:
    vector = random.standard_normal(d)
    return vector / np.linalg.norm(vector)


def _lattice(low: ndarray, high: ndarray, spacing: float) -> Grid:
    d = len(low)
    affine = np.eye(d + 1)
    affine[:d, :d] *= spacing
    affine[:d, d] = low - spacing
    return Grid(tuple(int(n) for n in np.ceil((high - low) / spacing) + 3), affine)


def _sum_of_bumps(lattice: Grid, centres: ndarray, vectors: ndarray, radius: float) -> Float[ndarray, "d *space"]:
    """Add the bumps on the lattice, each within its own support; mm."""
    total = np.zeros((lattice.ndim, *lattice.shape), np.float32)
    spacing = lattice.spacing[0]
    for centre, vector in zip(lattice.world_to_index(centres), vectors, strict=True):
        first = np.maximum(np.ceil(centre - radius / spacing), 0).astype(int)
        last = np.minimum(np.floor(centre + radius / spacing) + 1, lattice.shape).astype(int)
        offsets = [np.arange(a, b) - c for a, b, c in zip(first, last, centre, strict=True)]
        squared = sum(
            o.reshape([-1 if a == axis else 1 for a in range(len(offsets))]) ** 2 for axis, o in enumerate(offsets)
        )
        r = np.sqrt(squared, dtype=np.float32) * np.float32(spacing / radius)
        bump = np.clip(1 - r, 0, None) ** 4 * (4 * r + 1)
        where = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        for axis in range(lattice.ndim):
            total[axis][where] += np.float32(vector[axis]) * bump
    return total


def _mean_length(lattice: Grid, vectors_mm: ndarray, points: ndarray) -> float:
    moved = DisplacementField(lattice, torch.from_numpy((vectors_mm / lattice.spacing[0]).astype(np.float32))[None])
    return float(np.linalg.norm(moved.map_points(points) - points, axis=1).mean())


def _with_inverse(lattice: Grid, displacement: torch.Tensor) -> DisplacementField:
    found = field.invert(displacement, iterations=100, tolerance=1e-4)
    if found.max_residual > 0.5:
        left = f"{found.max_residual:.2g} lattice steps"
        raise NoInverseError(f"the random deformation was inverted only to {left}; lower mean_mm")
    return DisplacementField(lattice, displacement, found.displacement, (found.mean_residual, found.max_residual))
