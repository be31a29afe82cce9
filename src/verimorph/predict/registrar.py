"""A trained registration model applied to any pair: onto the model's grid, through the network, back to the images.

Writes nothing and measures nothing but the inverse; ``pair.py`` makes a registration of what is predicted here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor, nn

from verimorph import field as fields
from verimorph.errors import InputError, OptionError, nearest
from verimorph.field import Inversion
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.predict.checks import check_images, images_needed, load_for
from verimorph.predict.runner import Runner, rounded_up
from verimorph.transform import Affine, Composite, DisplacementField, NumericalInverse, Transform

if TYPE_CHECKING:
    from verimorph.data.preparation import Preparation
    from verimorph.methods.card import Card

Images = Image | Sequence[Image]

STICKING_OUT = 0.02
"""The model grid grows to hold the fixed image where more than this part of its foreground lies outside the grid."""

SAME_FLOW_VOXELS = 0.05
"""A model's field counts as the flow of its velocity if they differ by no more than this anywhere."""

POLISH = 10
"""Iterations on an inverse that the model implies: carried to the grid of the image it is off by the interpolation."""


@dataclass
class Prediction:
    """What a model says about one pair.

    Attributes
    ----------
    transform
        Fixed world to moving world: a displacement field on the grid of the fixed image that acts first, then a linear
        map.
    inverse
        Moving to fixed: the inverse linear map, then the inverse field on the grid of the fixed image.
    raw
        What the model put out, on its own grid (``extras["grid"]``), float32 on the CPU.
    features
        Those of its outputs that are called ``features/...``.
    extras
        ``grid``: the model grid in the world of the fixed image; ``tiles``: on how many it ran; ``start``: the linear
        map; ``inverse``: where it begins: ``exact`` (the flow of the reversed velocity), ``model`` or ``numerical``;
        ``seconds``.
    inversion
        The inverse field with its residual, voxels of the fixed image; None where it was not asked.
    """

    transform: Transform
    inverse: Transform
    raw: dict[str, Tensor] = field(repr=False)
    features: dict[str, Tensor] = field(repr=False)
    extras: dict[str, Any]
    inversion: Inversion | None = field(repr=False)
    draw: Callable[[torch.Generator | None], Prediction] | None = field(default=None, repr=False)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Iterator[Transform]:
        """Yield ``n`` transforms drawn from the model's distribution, one at a time; none is kept.

        Parameters
        ----------
        generator
            Where random numbers come from; the same state gives the same transforms. Default: seed 0.

        Raises
        ------
        OptionError
            If nothing in the model is random.
        """
        for prediction in self.samples(n, generator):
            yield prediction.transform

    def samples(self, n: int, generator: torch.Generator | None = None) -> Iterator[Prediction]:
        """Do what :meth:`sample` does, with the inverse and the raw outputs of each draw."""
        if self.draw is None:
            raise OptionError(
                "this model has nothing random to draw from: it always gives the same field; "
                "use a probabilistic method or variant (see 'verimorph methods')"
            )
        source = torch.Generator().manual_seed(0) if generator is None else generator
        draw = self.draw
        return (draw(source) for _ in range(n))


class Registrar:
    """A trained model with the preparation it was trained with.

    Parameters
    ----------
    module
        Two volumes of one shape in, named tensors out (``verimorph.nn.model.RegistrationModel``). Put into evaluation
        mode and on ``device``.
    preparation
        How images come onto the model's grid.
    device
        Where it runs.
    start
        How a pair is brought together first: ``none`` (as the preparation places each image), ``centres`` (intensity
        centres), ``rigid`` or ``affine`` (by the package's own engine), or a world matrix, fixed to moving.
    tile
        Largest input, voxels along each axis. Default: whole, or as large as memory allows.
    overlap
        Part of a tile that neighbours share.
    seed
        Of the engine, where it finds the start, or bounds the error of the result (``Registration.assess``).
    """

    def __init__(
        self,
        module: nn.Module,
        preparation: Preparation,
        *,
        device: torch.device | str = "cpu",
        start: str | Float[ndarray, "h h"] = "none",
        tile: Sequence[int] | None = None,
        overlap: float = 0.25,
        seed: int = 0,
    ) -> None:
        self.runner = Runner(module, ndim=preparation.ndim, device=device, tile=tile, overlap=overlap)
        self.preparation = preparation
        self.start, self.seed = start, seed
        self.steps = squarings(module)
        self.card: Card | None = None

    @classmethod
    def load(cls, path: str | PathLike, *, device: torch.device | str = "cpu", **settings: Any) -> Registrar:
        """Load a trained registration model: its network, weights, preparation and start.

        Raises
        ------
        InputError
            If there is no model, its card does not fit, or it is a model of another kind.
        """
        module, card, preparation = load_for(path, task="registration")
        made = cls(module, preparation, device=device, **{"start": card.start, **settings})
        made.card = card
        return made

    @property
    def images_needed(self) -> int:
        """How many images make up one side of a pair (one unless the model was trained on several contrasts)."""
        return images_needed(self.card, self.preparation)

    def __call__(
        self,
        *,
        fixed: Images,
        moving: Images,
        start: Float[ndarray, "h h"] | None = None,
        condition: Float[Tensor, "1 k"] | None = None,
        inverse: bool = True,
    ) -> Prediction:
        """Predict the transform of a pair.

        Parameters
        ----------
        fixed, moving
            One image each, or several on one grid as channels.
        start
            World matrix, fixed to moving, instead of the start of the model's card.
        condition
            For models that take one.
        inverse
            False where the inverse is not asked, as before a refinement: it is then found point by point if it is after
            all, and its residual is not known.

        Raises
        ------
        InputError
            If an image does not suit the model; one line says why.
        """
        begun = time.perf_counter()
        sides = _listed(fixed), _listed(moving)
        self._check(*sides)
        placed = self._place(sides[0][0], sides[1][0], start)
        volumes = [
            placed.preparation.volume(images, matrix)[None]
            for images, matrix in zip(sides, (placed.fixed, placed.moving), strict=True)
        ]
        prepared = time.perf_counter()

        def run(generator: torch.Generator | None, random: bool) -> Prediction:
            started = time.perf_counter()
            if random:
                from verimorph.nn.stochastic import sampling

                with sampling(self.runner.module, generator):
                    raw, tiles = self._outputs(volumes[0], volumes[1], condition)
            else:
                raw, tiles = self._outputs(volumes[0], volumes[1], condition)
            run_for = time.perf_counter() - started
            prediction = _assembled(raw, placed, sides[0][0].grid, inverse, self.steps)
            prediction.extras |= {
                "tiles": tiles,
                "seconds": {
                    "prepare": prepared - begun,
                    "network": run_for,
                    "field": time.perf_counter() - started - run_for,
                },
            }
            return prediction

        prediction = run(None, False)
        if is_random(self.runner.module):
            prediction.draw = lambda generator: run(generator, True)
        return prediction

    def _check(self, fixed: list[Image], moving: list[Image]) -> None:
        for images, role in ((fixed, "fixed image"), (moving, "moving image")):
            check_images(
                images, role, preparation=self.preparation, stride=self.runner.stride, images_needed=self.images_needed
            )

    def _place(self, fixed: Image, moving: Image, start: Float[ndarray, "h h"] | None) -> Placement:
        """Lay the model grid into both images; let it grow where the fixed image sticks out of it."""
        prepare = self.preparation
        a_fixed = prepare.index_to_world(fixed)
        if start is None:
            start = find_start(self.start, fixed, moving, seed=self.seed)
        if start is None:
            a_moving = prepare.index_to_world(moving)
        else:
            a_moving = prepare.index_to_world(moving, start, fixed=a_fixed)
        before, shape = grown(prepare.shape, fixed, a_fixed, self.runner.stride)
        shift = np.eye(prepare.ndim + 1)
        shift[:-1, -1] = [-n for n in before]
        return Placement(replace(prepare, shape=shape), a_fixed @ shift, a_moving @ shift)

    def _outputs(self, fixed: Tensor, moving: Tensor, condition: Tensor | None) -> tuple[dict[str, Tensor], int]:
        flows: list[bool] = []
        raw, tiles = self.runner(
            {"fixed": fixed, "moving": moving},
            condition=condition,
            each_tile=lambda outputs: flows.append(is_flow(outputs, self.steps)),
        )
        if tiles > 1 and all(flows) and "velocity" in raw:
            # A mean of flows is no flow; that of the mean velocity is, and so has an exact inverse.
            raw["field"] = flow_of(raw["velocity"], fixed.shape[2:], self.steps)
            raw.pop("inverse", None)
        return raw, tiles


@dataclass(frozen=True)
class Placement:
    """Where the model grid lies in both images."""

    preparation: Preparation
    fixed: Float[ndarray, "h h"]
    """Index of the model grid to the world of the fixed image."""
    moving: Float[ndarray, "h h"]


def is_random(module: nn.Module) -> bool:
    """Whether any part of a module draws random numbers when asked to (``verimorph.nn.stochastic``)."""
    return any(hasattr(part, "sampling") and hasattr(part, "generator") for part in module.modules())


def find_start(
    start: str | Float[ndarray, "h h"], fixed: Image, moving: Image, *, seed: int = 0
) -> Float[ndarray, "h h"] | None:
    """World matrix, fixed to moving, by the name of a start; None for ``none``: each image is placed by itself."""
    if not isinstance(start, str):
        return np.asarray(start, dtype=np.float64)
    if start == "none":
        return None
    if start == "centres":
        from verimorph.data.preparation import intensity_centre

        matrix = np.eye(fixed.grid.ndim + 1)
        matrix[:-1, -1] = intensity_centre(moving) - intensity_centre(fixed)
        return matrix
    if start in ("rigid", "affine"):
        from verimorph import pipeline

        recipe = pipeline.make_recipe(transform=start, seed=seed)
        first, second = pipeline.prepare_pair(
            fixed=fixed, moving=moving, fixed_mask=None, moving_mask=None, recipe=recipe
        )
        return pipeline.run(fixed=first, moving=second, recipe=recipe, rough=True).linear
    raise OptionError(f"unknown start '{start}'{nearest(start, ('none', 'centres', 'rigid', 'affine'))}")


def grown(
    shape: Sequence[int], fixed: Image, index_to_world: Float[ndarray, "h h"], stride: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return by how many voxels the grid grows before its first voxel, and its new shape, multiples of ``stride``.

    It grows only where more than ``STICKING_OUT`` of the fixed image's foreground (voxels above its mean) lies outside.
    """
    from verimorph.data.preparation import canonical_order

    before = [0] * len(shape)
    sides = list(shape)
    voxels, grid = canonical_order(fixed.array, fixed.grid)
    inner = np.linalg.inv(index_to_world) @ grid.affine
    step = max(1, round((grid.size / 50_000) ** (1 / grid.ndim)))
    coarse = voxels[(slice(None, None, step),) * grid.ndim]
    bright = np.argwhere(coarse > coarse.mean()) * step
    index = bright @ inner[:-1, :-1].T + inner[:-1, -1]
    outside = ((index < -0.5) | (index > np.array(shape) - 0.5)).any(axis=1)
    if len(outside) and outside.mean() > STICKING_OUT:
        corners = np.linalg.inv(index_to_world) @ np.c_[fixed.grid.corners(), np.ones(2**fixed.grid.ndim)].T
        low, high = corners[:-1].min(axis=1), corners[:-1].max(axis=1)
        for axis, n in enumerate(shape):
            before[axis] = max(0, math.ceil(-low[axis] - 1e-6))
            sides[axis] = before[axis] + n + max(0, math.ceil(high[axis] - (n - 1) - 1e-6))
    return tuple(before), tuple(rounded_up(n, stride) for n in sides)


def onto_grid(
    displacement: Float[Tensor, "1 d *space"], index_to_world: Float[ndarray, "h h"], grid: Grid
) -> Float[Tensor, "1 d *out"]:
    """Carry a field from the model grid to another grid in the same world, in voxels of that grid.

    With ``K = A^-1 G`` from voxels of the grid to model voxels, ``w(j) = K_lin^-1 u(K j)``: linear between model
    voxels, and beyond the model grid what stands at its edge, so that the map has no jump there.
    """
    d = grid.ndim
    inner = np.linalg.inv(index_to_world) @ grid.affine
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in grid.shape], indexing="ij"), -1).reshape(-1, d)
    reached = corners @ inner[:d, :d].T + inner[:d, d]
    sides = []
    for axis, n in enumerate(displacement.shape[2:]):
        below = max(0, math.ceil(-float(reached[:, axis].min()) - 0.25))
        above = max(0, math.ceil(float(reached[:, axis].max()) - (n - 1) - 0.25))
        sides.append((below, above))
    if any(map(any, sides)):
        flat = [n for pair in reversed(sides) for n in pair]
        displacement = torch.nn.functional.pad(displacement, flat, mode="replicate")
        inner = inner.copy()
        inner[:d, d] += [below for below, _ in sides]
    read = fields.warp(displacement.contiguous(), torch.zeros(1, d, *grid.shape), matrix=inner)
    turn = torch.from_numpy(np.linalg.inv(inner[:d, :d])).to(read.dtype)
    if torch.equal(turn, torch.eye(d)):
        return read
    return torch.einsum("ij,bj...->bi...", turn, read).contiguous()


def squarings(module: nn.Module) -> int | None:
    """With how many squarings a model integrates its velocity; None if its parts do not say, or not the same."""
    from verimorph.nn.heads.velocity import Integration

    found = {part.steps for part in module.modules() if isinstance(part, Integration)}
    return found.pop() if len(found) == 1 else None


def flow_of(
    velocity: Float[Tensor, "1 d *space"], shape: Sequence[int], steps: int | None = None
) -> Float[Tensor, "1 d *out"]:
    """Displacement of the flow of a velocity, integrated on its own grid, on a grid of another shape.

    ``steps`` is the model's own number of squarings: with others the fields are a tenth of a voxel apart.
    """
    return fields.resize_displacement(fields.exponentiate(velocity.contiguous(), steps=steps), tuple(shape))


def is_flow(raw: Mapping[str, Tensor], steps: int | None = None) -> bool:
    """Whether a model's field is the flow of its velocity and nothing more."""
    if "velocity" not in raw:
        return False
    flow = flow_of(raw["velocity"], raw["field"].shape[2:], steps)
    return float((flow - raw["field"]).abs().amax()) <= SAME_FLOW_VOXELS


def inverse_on_model_grid(raw: Mapping[str, Tensor], steps: int | None = None) -> tuple[Tensor | None, str]:
    """The inverse displacement that the outputs imply, and where it comes from; None where they imply none.

    Of a velocity it is the flow backwards, ``exp(-v)``, if the model's field really is ``exp(v)`` (a model may do more
    than integrate).
    """
    if "inverse" in raw:
        return raw["inverse"], "model"
    if is_flow(raw, steps):
        return flow_of(-raw["velocity"], raw["field"].shape[2:], steps), "exact"
    return None, "numerical"


def _assembled(raw: dict[str, Tensor], placed: Placement, grid: Grid, inverse: bool, steps: int | None) -> Prediction:
    if "field" not in raw:
        raise InputError("the model put out no 'field'; is it a registration model?")
    if not torch.isfinite(raw["field"]).all():
        raise InputError("the model put out values that are not finite; its weights are damaged or training diverged")
    forward = onto_grid(raw["field"], placed.fixed, grid)
    linear = Affine(placed.moving @ np.linalg.inv(placed.fixed))
    implied, source = inverse_on_model_grid(raw, steps) if inverse else (None, "numerical")
    inversion: Inversion | None = None
    back: Transform
    if implied is not None:
        inversion = fields.invert(forward, start=onto_grid(implied, placed.fixed, grid), iterations=POLISH)
    elif inverse:
        inversion = fields.invert(forward)
    if inversion is None:
        there = DisplacementField(grid, forward)
        back = NumericalInverse(there)
    else:
        residual = (inversion.mean_residual, inversion.max_residual)
        there = DisplacementField(grid, forward, inversion.displacement, residual)
        back = DisplacementField(grid, inversion.displacement, forward, residual)
    return Prediction(
        Composite([there, linear]),
        Composite([linear.inverse(), back]),
        raw={name: value for name, value in raw.items() if not name.startswith("features/")},
        features={name: value for name, value in raw.items() if name.startswith("features/")},
        extras={
            "grid": placed.preparation.grid(placed.fixed),
            "start": linear.matrix,
            "inverse": source,
        },
        inversion=inversion,
    )


def _listed(images: Images) -> list[Image]:
    return [images] if isinstance(images, Image) else list(images)
