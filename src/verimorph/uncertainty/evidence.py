"""What can be known about the error of a registration without knowing the truth: independent looks, and the images.

A *look* is a quick registration of the same two images, at half or a quarter of the resolution (small images: all or
half of it), the start knocked off its place; with noise added, or from the moving image to the fixed one. Where looks
and result disagree, something is not determined by the images. What looks cannot see (they share the images' lack of
texture) is read from the images: the structure tensor, the local correlation that is left, the stretch of the field.

Every quantity is a map on the evidence grid (the fixed grid at about half resolution), lengths in units of the fixed
grid's mean voxel, so that one calibration serves images of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from verimorph import field, pipeline
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.solve.deformable import DeformableSettings, solve_deformable
from verimorph.solve.measure import make_measure
from verimorph.solve.pyramid import Level, Volume, make_level
from verimorph.solve.schedule import preset
from verimorph.transform import Transform
from verimorph.transform.dense import displacement_on, field_then_matrix

SMALL = 400_000
"""An image of fewer voxels is looked at in full resolution: at half of it little would be left of it."""


@dataclass(frozen=True)
class Look:
    """One independent registration.

    Attributes
    ----------
    backward
        From moving to fixed.
    levels, iterations
        Shrink factors beyond the evidence grid, and iterations.
    noise
        Standard deviation of what is added to both images, in units of their own noise.
    knock
        How far the start is put off, in voxels of the evidence grid.
    """

    name: str
    backward: bool = False
    levels: tuple[int, ...] = (2, 1)
    iterations: tuple[int, ...] = (80, 40)
    noise: float = 1.0
    knock: float = 1.0


LOOKS = (
    Look("forward", noise=0.25, knock=0.5),
    Look("backward", backward=True, noise=0.0, knock=0.5),
    Look("quarter", levels=(4, 2), iterations=(80, 60), noise=0.25),
    Look("quarter back", backward=True, levels=(4, 2), iterations=(80, 60), noise=0.0),
)
"""Two at half resolution, two at a quarter that cost next to nothing: those say most where texture is poor, the former
where it is rich. More noise, or a farther start, told less: looks then differ where the result does not err."""


AROUND = (1.0, 4.0)
"""Widths over which distances of looks are averaged, voxels of the evidence grid."""
PATCHES = (1.5, 4.0)
"""Of the neighbourhoods that images are compared over."""
SOFT_PATCH = 2.5
"""Of the neighbourhoods that smoothed images are compared over."""
SHIFTS = (1.5, 3.0, 6.0)
"""Of the neighbourhoods that are asked how far they are still off: :func:`remaining_shift`."""
LIKELY_SHIFT = 0.5
"""How far a neighbourhood is off before it is asked, standard deviation in units: keeps bare ones from any answer."""
RIPPLES = (1.0, 2.0, 3.0, 5.0, 8.0)
"""Of the Gaussians that :func:`ripple` is measured with."""
MAPS = (
    *(f"{look.name} {width:g}" for look in LOOKS for width in AROUND),
    *(f"{name} {width:g}" for width in PATCHES for name in ("mismatch", "contrast")),
    *("soft mismatch", "noise", "texture"),
    *(f"{name} {width:g}" for width in SHIFTS for name in ("shift", "shift error")),
    *("stretch", "shear", "bend"),
    *(f"ripple {width:g}" for width in RIPPLES),
    "border",
)
"""All that is measured, in order."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Maps on the evidence grid.

    Attributes
    ----------
    grid
        Where the maps are.
    maps
        Float32, by name; lengths in units of ``unit_mm``.
    unit_mm
        Geometric mean of the spacing of the fixed grid.
    spread
        Displacement of the looks against the result, its standard deviation, units.
    """

    grid: Grid
    maps: dict[str, Float[Tensor, "*space"]]
    unit_mm: float
    spread: Float[Tensor, "*space"]


def gather(
    *,
    fixed: Image,
    moving: Image,
    transform: Transform,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    looks: Sequence[Look] = LOOKS,
    recipe: pipeline.Recipe | None = None,
) -> Evidence:
    """Look again, and measure. The transform may come from anywhere: the engine, a network, another program.

    ``recipe`` says how images are prepared and compared, which axes are frozen, and the seed; default: the defaults.
    """
    recipe = recipe or pipeline.make_recipe()
    first, second = pipeline.prepare_pair(
        fixed=fixed, moving=moving, fixed_mask=fixed_mask, moving_mask=moving_mask, recipe=recipe
    )
    base = base_level(first, second)
    del first, second
    grid = base.fixed.grid
    unit = float(np.prod(fixed.grid.spacing) ** (1 / fixed.grid.ndim))
    matrix, u = as_field(transform, fixed.grid, grid)
    u = u.to(base.fixed.tensor)
    random = torch.Generator().manual_seed(recipe.seed)
    here = _positions(u, matrix @ grid.affine)
    distances: dict[str, Tensor] = {}
    total = torch.zeros_like(here)
    square = torch.zeros_like(here[0])
    seen = 1
    for look in looks:
        found = _look(look, base, matrix, recipe, random)
        if look.backward:
            distances[look.name] = _round_trip(found, u, matrix, base)
        else:
            away = _positions(*found) - here
            total += away
            square += away.square().sum(0)
            seen += 1
            distances[look.name] = away.square().sum(0).sqrt()
    variance = (square - total.square().sum(0) / seen) / max(seen - 1, 1)
    maps = _agreement(distances, grid, unit) | _image_maps(base, u, matrix, unit)
    return Evidence(grid, maps, unit, variance.clamp_min(0).sqrt() / unit)


def base_level(first: Volume, second: Volume) -> Level:
    """A prepared pair at the resolution at which it is looked at."""
    shrink = 1 if first.tensor.numel() < SMALL else 2
    return make_level(fixed=first, moving=second, shrink=shrink, spacing_mm=shrink * float(first.grid.spacing.min()))


def mismatch_after(
    look: Look, base: Level, matrix: Float[ndarray, "h h"], recipe: pipeline.Recipe, where: Bool[ndarray, "*space"]
) -> float:
    """Mean of the mismatch (``1 - r^2`` over 1.5 voxels) that a look from this linear start leaves in a region.

    ``where`` is on the grid of ``base.fixed``; 1 where it is empty.
    """
    if not where.any():
        return 1.0
    found, to_world = _look(look, base, matrix, recipe, torch.Generator().manual_seed(recipe.seed))
    moved = field.warp(base.moving.tensor, found, matrix=base.moving.grid.inverse_affine @ to_world)
    mismatch = _local_correlation(base.fixed.tensor, moved, base.fixed.grid, 1.5)[0]
    return float(mismatch[torch.from_numpy(where).to(mismatch.device)].mean())


def as_field(transform: Transform, fixed: Grid, grid: Grid) -> tuple[ndarray, Tensor]:
    """The transform as a world matrix after a field on the evidence grid."""
    simple = field_then_matrix(transform, fixed)
    d = fixed.ndim
    if simple is not None:
        if simple.displacement is None:
            return simple.matrix, torch.zeros(1, d, *grid.shape)
        return simple.matrix, field.resize_displacement(simple.displacement.cpu(), grid.shape).contiguous()
    return _nearest_matrix(transform, grid)


def _nearest_matrix(transform: Transform, grid: Grid) -> tuple[ndarray, Tensor]:
    """Any transform: the affine map nearest to it, and what the field has to add before it."""
    d = grid.ndim
    whole = displacement_on(transform, grid).clone()
    axes = [np.arange(0, n, max(1, n // 16)) for n in grid.shape]
    points = grid.index_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d))
    moves = transform.map_points(points) - points
    # Of least norm about the middle: along an axis of one slice, where nothing can be fitted, nothing changes.
    middle = points.mean(0)
    slope, *_ = np.linalg.lstsq(points - middle, moves - moves.mean(0), rcond=None)
    matrix = np.eye(d + 1)
    matrix[:d, :d] += slope.T
    matrix[:d, d] = moves.mean(0) - slope.T @ middle
    voxel = grid.inverse_affine @ matrix @ grid.affine
    back = torch.from_numpy(np.linalg.inv(voxel)).float()
    index_all = field.voxel_index(tuple(grid.shape)) + whole
    before = torch.einsum("ij,bj...->bi...", back[:d, :d], index_all) + back[:d, d].view(1, d, *[1] * d)
    return matrix, (before - field.voxel_index(tuple(grid.shape))).contiguous()


def _positions(u: Float[Tensor, "1 d *space"], matrix: Float[ndarray, "h h"]) -> Float[Tensor, "d *space"]:
    """``matrix @ (i + u(i))``, mm."""
    d = u.shape[1]
    index = field.voxel_index(tuple(u.shape[2:]), device=u.device, dtype=u.dtype)[0] + u[0]
    turn = torch.tensor(matrix[:d, :d], device=u.device, dtype=u.dtype)
    shift = torch.tensor(matrix[:d, d], device=u.device, dtype=u.dtype)
    return torch.einsum("ij,j...->i...", turn, index) + shift.view(d, *[1] * d)


def _look(
    look: Look, base: Level, matrix: ndarray, recipe: pipeline.Recipe, random: torch.Generator
) -> tuple[Tensor, ndarray]:
    """Field in voxels of its own grid, and the matrix from that grid's voxels to the other world."""
    fixed, moving = (base.moving, base.fixed) if look.backward else (base.fixed, base.moving)
    start = np.linalg.inv(matrix) if look.backward else matrix
    start = _knocked(fixed.grid, start, look.knock, random)
    fixed, moving = (_noisier(volume, look.noise, random) for volume in (fixed, moving))
    finest = float(fixed.grid.spacing.min())
    makers = [partial(make_level, fixed=fixed, moving=moving, shrink=n, spacing_mm=n * finest) for n in look.levels]
    found = solve_deformable(
        levels=makers,
        iterations=look.iterations,
        measure=make_measure(recipe.similarity, radius=preset(recipe.quality).lncc_radius),
        linear=start,
        grid=fixed.grid,
        settings=DeformableSettings(free_axes=recipe.free_axes),
    )
    return found.displacement, start @ fixed.grid.affine


def _knocked(grid: Grid, matrix: ndarray, size: float, random: torch.Generator) -> ndarray:
    """The matrix after a small affine map about the middle of the grid, moving its rim by about ``size`` voxels."""
    d = grid.ndim
    unit = float(np.prod(grid.spacing) ** (1 / d)) * size
    reach = float(grid.extent.max()) / 2
    centre = _world(grid.affine, (np.array(grid.shape) - 1) / 2)
    small = torch.randn(d, d + 1, generator=random, dtype=torch.float64).numpy()
    off = np.eye(d + 1)
    off[:d, :d] += small[:, :d] * unit / reach / math.sqrt(d)
    off[:d, d] = centre - off[:d, :d] @ centre + small[:, d] * unit / math.sqrt(d)
    return matrix @ off


def _world(affine: ndarray, index: ndarray) -> ndarray:
    return affine[:-1, :-1] @ index + affine[:-1, -1]


def _noisier(volume: Volume, factor: float, random: torch.Generator) -> Volume:
    """More of the noise that an image has already: a robust spread of its differences to its neighbours' mean."""
    if factor == 0:
        return volume
    x = volume.tensor
    sigma = noise_level(x)
    noise = torch.randn(x.shape, generator=random).to(x)
    return replace(volume, tensor=x + factor * sigma * noise)


def noise_level(x: Float[Tensor, "1 1 *space"]) -> float:
    """Standard deviation of an image's noise: a robust spread of the differences to the mean of the neighbours.

    The median absolute value of a normal variable is 0.6745 of its standard deviation. Air that is exactly zero, as
    after skull stripping, says nothing and is left out.
    """
    step = max(1, x.numel() // 100_000)
    while any(math.gcd(step, size) > 1 for size in x.shape):  # else whole slices would never be met
        step += 1
    rough = (x - field.box_mean(x, 1)).reshape(-1)[::step].abs()
    rough = rough[rough > 0]
    return float(rough.median()) / 0.6745 if len(rough) else 0.0


def _round_trip(found: tuple[Tensor, ndarray], u: Tensor, matrix: ndarray, base: Level) -> Tensor:
    """``|b(t(x)) - x|``, mm: there by the result, back by a look from moving to fixed."""
    back, to_world = found
    to_moving = base.moving.grid.inverse_affine @ matrix @ base.fixed.grid.affine
    d = u.shape[1]
    read = field.warp(back, u, matrix=to_moving)
    index = _positions(u, to_moving) + read[0]
    turn = torch.tensor(to_world[:d, :d], device=u.device, dtype=u.dtype)
    shift = torch.tensor(to_world[:d, d], device=u.device, dtype=u.dtype)
    arrived = torch.einsum("ij,j...->i...", turn, index) + shift.view(d, *[1] * d)
    return (arrived - _positions(torch.zeros_like(u), base.fixed.grid.affine)).square().sum(0).sqrt()


def _agreement(distances: dict[str, Tensor], grid: Grid, unit: float) -> dict[str, Tensor]:
    """Distances of the looks, as they are and averaged over neighbourhoods: what is wrong here is wrong nearby."""
    out = {}
    for name, distance in distances.items():
        square = (distance / unit).square()[None, None]
        for width in AROUND:
            out[f"{name} {width:g}"] = _smooth(square, grid, width).sqrt()[0, 0]
    return out


def _smooth(x: Tensor, grid: Grid, width: float) -> Tensor:
    sigma = [width * float(grid.spacing.min() / s) for s in grid.spacing]
    return field.gaussian_smooth(x, sigma, border="renormalise")


def _image_maps(base: Level, u: Tensor, matrix: ndarray, unit: float) -> dict[str, Tensor]:
    """Local correlation that is left, texture in its weakest direction, shape of the field, borders."""
    grid = base.fixed.grid
    fixed = base.fixed.tensor
    moved = field.warp(base.moving.tensor, u, matrix=base.moving.grid.inverse_affine @ matrix @ grid.affine)
    out: dict[str, Tensor] = {}
    for width in PATCHES:
        mismatch, contrast = _local_correlation(fixed, moved, grid, width)
        out[f"mismatch {width:g}"], out[f"contrast {width:g}"] = mismatch, contrast
    # Noise alone hardly survives smoothing, what is out of place does: together with the mismatch, which of the two.
    soft = [_smooth(image, grid, 1.0) for image in (fixed, moved)]
    out["soft mismatch"] = _local_correlation(*soft, grid, SOFT_PATCH)[0]
    rough = sum((image - one).square() for image, one in zip((fixed, moved), soft, strict=True)) / 2
    out["noise"] = _smooth(rough, grid, PATCHES[-1]).sqrt()[0, 0]
    out["texture"] = _texture(fixed, grid)
    out |= remaining_shift(fixed, moved, grid, unit)
    out["stretch"] = field.jacobian_determinant(u)[0].clamp_min(1e-3).log().abs()
    out["shear"], out["bend"] = shearing(u, grid), bending(u, grid, unit)
    for width in RIPPLES:
        out[f"ripple {width:g}"] = ripple(u, grid, unit, width)
    out["border"] = border(base, u, matrix, unit)
    return out


def _local_correlation(fixed: Tensor, moved: Tensor, grid: Grid, width: float) -> tuple[Tensor, Tensor]:
    """``1 - r^2`` of the two images over a Gaussian neighbourhood, and the geometric mean of their local contrasts."""
    mean_f, mean_m = _smooth(fixed, grid, width), _smooth(moved, grid, width)
    var_f = (_smooth(fixed.square(), grid, width) - mean_f.square()).clamp_min(0)
    var_m = (_smooth(moved.square(), grid, width) - mean_m.square()).clamp_min(0)
    cross = _smooth(fixed * moved, grid, width) - mean_f * mean_m
    mismatch = (1 - cross.square() / (var_f * var_m + 1e-8)).clamp(0, 1)[0, 0]
    return mismatch, (var_f.sqrt() * var_m.sqrt()).sqrt()[0, 0]


def remaining_shift(
    fixed: Float[Tensor, "1 1 *space"], moved: Float[Tensor, "1 1 *space"], grid: Grid, unit: float
) -> dict[str, Float[Tensor, "*space"]]:
    """How far neighbourhoods of two aligned images are still off, as they tell themselves, and how well they can tell.

    Length of the shift that explains best what differs, and its standard error, units (``unit`` in mm). With f and w
    the images less their means over a Gaussian of 4 voxels, b the slope of f on w there (at most 5 either way: more is
    noise over nothing), ``r = f - b w``, g the gradient of ``(f + b w) / 2``, and sums over the ``n = prod 2 sqrt(pi)
    sigma`` voxels of a Gaussian neighbourhood,

        shift = C sum(g r) / s^2,    C = s^2 (sum(g g^T) + s^2 / t^2)^-1,    standard error = sqrt(trace C)

    with s^2 the mean of r^2 over the Gaussian of 4 voxels and t what shifts are before anything is seen
    (``LIKELY_SHIFT``). Neither changes with the scale of the intensities, so both mean the same for images of any kind.

    Limits: n counts voxels beyond the border, too, so errors are larger there than is said. Where both images are bare
    and without noise (air that is exactly 0) the error is 0, not t. Along an axis of one slice nothing can be told: t.

    Lucas and Kanade, An iterative image registration technique, IJCAI 1981; the standard error is Cramer's and Rao's,
    of independent noise.
    """
    d = grid.ndim
    f, w = (image - _smooth(image, grid, PATCHES[-1]) for image in (fixed, moved))
    slope = _smooth(f * w, grid, PATCHES[-1]) / (_smooth(w.square(), grid, PATCHES[-1]) + 1e-8)
    w = slope.clamp(-5, 5) * w
    left = f - w
    noise = _smooth(left.square(), grid, PATCHES[-1])
    middle = ((f + w) / 2)[0, 0]
    gradient = [(unit * _along(middle, a, grid))[None, None] for a in range(d)]
    del f, w, slope, middle
    pairs = [(a, b) for a in range(d) for b in range(a, d)]
    out = {}
    for width in SHIFTS:
        # Voxels of the neighbourhood; along thick slices at least one, which a Gaussian of 0.3 voxels holds.
        count = math.prod(2 * math.sqrt(math.pi) * max(width * grid.spacing.min() / s, 0.3) for s in grid.spacing)
        variance = (noise / count).reshape(-1)
        tensor = torch.stack([_smooth(gradient[a] * gradient[b], grid, width).reshape(-1) for a, b in pairs], 1)
        pull = torch.stack([_smooth(one * left, grid, width).reshape(-1) for one in gradient], 1)
        shift, error = torch.empty_like(variance), torch.empty_like(variance)
        for start in range(0, len(variance), SOLVED_AT_ONCE):
            piece = slice(start, start + SOLVED_AT_ONCE)
            inverse = _inverse(tensor[piece], pairs, variance[piece] / LIKELY_SHIFT**2 + 1e-10).float().to(fixed.device)
            shift[piece] = (inverse @ pull[piece, :, None]).norm(dim=(1, 2))
            error[piece] = (variance[piece] * inverse.diagonal(dim1=1, dim2=2).sum(1)).clamp_min(0).sqrt()
        out[f"shift {width:g}"], out[f"shift error {width:g}"] = (x.reshape(noise.shape[2:]) for x in (shift, error))
    return out


SOLVED_AT_ONCE = 1_000_000
"""Voxels whose small systems are held in memory together."""


def _inverse(
    upper: Float[Tensor, "n c"], pairs: Sequence[tuple[int, int]], ridge: Float[Tensor, " n"]
) -> Float[Tensor, "n d d"]:
    """Inverses of symmetric matrices, of their upper triangles, with this on the diagonal.

    A millionth of the trace comes on top: along an edge, where nothing tells in one direction, sums of single precision
    need not be positive definite. In double precision, for which mps hands over to the CPU: it has none.
    """
    d = pairs[-1][0] + 1
    upper, ridge = (x.to("cpu" if x.device.type == "mps" else x.device).double() for x in (upper, ridge))
    full = upper.new_empty(len(upper), d, d)
    for column, (a, b) in enumerate(pairs):
        full[:, a, b] = full[:, b, a] = upper[:, column]
    diagonal = full.diagonal(dim1=1, dim2=2)
    diagonal += (ridge + 1e-6 * diagonal.sum(1))[:, None]
    return torch.linalg.inv(full)


def _slopes(u: Float[Tensor, "1 d *space"], grid: Grid) -> list[list[Tensor]]:
    """``du_c / dx_a`` along the axes of the grid, by c and then a; no unit."""
    d = grid.ndim
    mm = u[0] * torch.tensor(grid.spacing, dtype=u.dtype, device=u.device).view(d, *[1] * d)
    return [[_along(mm[c], a, grid) for a in range(d)] for c in range(d)]


def _along(values: Float[Tensor, "*space"], axis: int, grid: Grid) -> Float[Tensor, "*space"]:
    """Derivative along an axis, per mm; 0 where there is one slice."""
    if values.shape[axis] < 2:
        return torch.zeros_like(values)
    return torch.gradient(values, dim=axis, spacing=float(grid.spacing[axis]))[0]


def shearing(u: Float[Tensor, "1 d *space"], grid: Grid) -> Float[Tensor, "*space"]:
    """Change of shape without that of volume: Frobenius norm of the strain less a third (2-D: half) of its trace."""
    d = grid.ndim
    slopes = _slopes(u, grid)
    volume = torch.stack([slopes[a][a] for a in range(d)]).sum(0) / d
    total = torch.zeros_like(u[0, 0])
    for c in range(d):
        for a in range(d):
            total += ((slopes[c][a] + slopes[a][c]) / 2 - (volume if a == c else 0)).square()
    return _smooth(total[None, None], grid, 1.0).sqrt()[0, 0]


def bending(u: Float[Tensor, "1 d *space"], grid: Grid, unit: float) -> Float[Tensor, "*space"]:
    """Root of the summed squares of all ``d2 u_c / dx_a2``, per ``unit`` (mm): where a smooth field turns fast."""
    slopes = _slopes(u, grid)
    total = torch.zeros_like(u[0, 0])
    for row in slopes:
        for a, slope in enumerate(row):
            total += _along(slope, a, grid).square()
    return unit * _smooth(total[None, None], grid, 1.0).sqrt()[0, 0]


def ripple(u: Float[Tensor, "1 d *space"], grid: Grid, unit: float, width: float) -> Float[Tensor, "*space"]:
    """Length of what a Gaussian of this width (voxels) would take from the field, units: ``|u - G * u|``.

    What a solution has of fine motion tells what it lacks: its own smoothing has taken more of the same.
    """
    mm = u * torch.tensor(grid.spacing, dtype=u.dtype, device=u.device).view(1, -1, *[1] * grid.ndim)
    return (mm - _smooth(mm, grid, width))[0].square().sum(0).sqrt() / unit


def border(base: Level, u: Tensor, matrix: ndarray, unit: float) -> Tensor:
    """Distance of a voxel to the nearest face of the fixed image, or of where it goes to one of the moving image."""
    grid, other = base.fixed.grid, base.moving.grid
    away = torch.full(tuple(grid.shape), math.inf, dtype=u.dtype, device=u.device)
    here = field.voxel_index(tuple(grid.shape), device=u.device, dtype=u.dtype)[0]
    there = _positions(u, other.inverse_affine @ matrix @ grid.affine)
    for index, own in ((here, grid), (there, other)):
        for axis, (size, spacing) in enumerate(zip(own.shape, own.spacing, strict=True)):
            inset = torch.minimum(index[axis], size - 1 - index[axis]) + 0.5
            away = torch.minimum(away, inset.clamp_min(0) * (float(spacing) / unit))
    return away


def _texture(image: Tensor, grid: Grid) -> Tensor:
    """Square root of the structure tensor's smallest eigenvalue, nearly: the slope along the direction with least.

    ``det S / sum of the principal minors`` is the smallest eigenvalue where one is much smaller than the others, and at
    most so much as it (harmonic sum) elsewhere; 2-D: det over trace.
    """
    d = grid.ndim
    finest = float(grid.spacing.min())
    slope = [
        torch.gradient(image[0, 0], dim=a)[0] * (finest / float(grid.spacing[a]))
        if image.shape[2 + a] > 1
        else torch.zeros_like(image[0, 0])
        for a in range(d)
    ]
    s = {}
    for a in range(d):
        for b in range(a, d):
            s[a, b] = _smooth((slope[a] * slope[b])[None, None], grid, 2.0)[0, 0]
    if d == 2:
        return ((s[0, 0] * s[1, 1] - s[0, 1] ** 2) / (s[0, 0] + s[1, 1] + 1e-12)).clamp_min(0).sqrt()
    m0 = s[1, 1] * s[2, 2] - s[1, 2] ** 2
    m1 = s[0, 0] * s[2, 2] - s[0, 2] ** 2
    m2 = s[0, 0] * s[1, 1] - s[0, 1] ** 2
    det = (
        s[0, 0] * m0
        - s[0, 1] * (s[0, 1] * s[2, 2] - s[1, 2] * s[0, 2])
        + s[0, 2] * (s[0, 1] * s[1, 2] - s[1, 1] * s[0, 2])
    )
    return (det / (m0 + m1 + m2 + 1e-18)).clamp_min(0).sqrt()
