"""One way to draw transforms of a pair, whatever they come from: a random network, several networks, a cost volume.

Draws come one at a time and nothing is kept. The same generator state gives the same draws; seed 0 where none is given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from verimorph.errors import InputError, OptionError
from verimorph.field import gaussian_smooth, resize
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.nn.stochastic import sampling
from verimorph.prepare import default_background
from verimorph.transform import DisplacementField, Transform, chain, identity

if TYPE_CHECKING:
    from verimorph.predict.registrar import Images, Registrar


@dataclass(frozen=True)
class Draw:
    """One transform, fixed to moving, and what its source knows besides.

    Attributes
    ----------
    features
        Named tensors of this draw on the source's own grid: a network's outputs but the field (for instance
        ``label_log_variance``); a cost volume's ``mean``, ``entropy`` and ``likelihood``.
    grid
        The source's own grid in the world of the fixed image; None where it is that of the fixed image.
    """

    transform: Transform
    features: dict[str, Tensor] = field(default_factory=dict, repr=False)
    grid: Grid | None = None


@runtime_checkable
class Sampler(Protocol):
    """Draws transforms of one pair."""

    def draws(self, n: int, generator: torch.Generator | None = None) -> Iterator[Draw]:
        """Yield ``n`` draws, one at a time."""
        ...


def seeded(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or a new one of seed 0."""
    return torch.Generator().manual_seed(0) if generator is None else generator


class ModuleSampler:
    """Draws of a network on volumes that lie on its grid already: dropout or a posterior, whatever in it is random.

    Parameters
    ----------
    module
        `verimorph.nn.model.RegistrationModel`, in evaluation mode (or training mode for stochastic depth besides).
    fixed, moving
        Prepared volumes, ``(1, c, *space)``.
    grid
        Where they lie in the world; default: voxel units, index i at the point i.
    random
        False: the deterministic pass, n times the same field (dropout off).
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        fixed: Float[Tensor, "1 c *space"],
        moving: Float[Tensor, "1 c *space"],
        grid: Grid | None = None,
        random: bool = True,
    ) -> None:
        self.module, self.fixed, self.moving, self.random = module, fixed, moving, random
        self.grid = Grid(tuple(fixed.shape[2:])) if grid is None else grid

    def draws(self, n: int, generator: torch.Generator | None = None) -> Iterator[Draw]:
        """Yield draws; each runs the network once."""
        source = seeded(generator)
        for _ in range(n):
            with torch.no_grad():
                if self.random:
                    with sampling(self.module, source):
                        outputs = self.module(fixed=self.fixed, moving=self.moving)
                else:
                    outputs = self.module(fixed=self.fixed, moving=self.moving)
            features = {name: value.float().cpu() for name, value in outputs.items() if name != "field"}
            yield Draw(DisplacementField(self.grid, outputs["field"].float().cpu()), features, self.grid)


class RegistrarSampler:
    """Draws of a trained model on two images as they are.

    Any model with a random part does: ``transmorph`` of variant ``bayes``, ``transmorph-uncertainty``,
    ``voxelmorph-diff``.

    Parameters
    ----------
    registrar
        The model with its preparation.
    fixed, moving
        One image each, or several as channels.

    Raises
    ------
    OptionError
        When draws are asked of a model with nothing random in it.
    """

    def __init__(self, registrar: Registrar, *, fixed: Images, moving: Images) -> None:
        self.prediction = registrar(fixed=fixed, moving=moving)

    def draws(self, n: int, generator: torch.Generator | None = None) -> Iterator[Draw]:
        """Yield draws; each runs the network once."""
        for one in self.prediction.samples(n, seeded(generator)):
            outputs = {name: value for name, value in one.raw.items() if name != "field"}
            yield Draw(one.transform, {**outputs, **one.features}, one.extras["grid"])


class EnsembleSampler:
    """Draws of several models, in turn: each draw is the next member's.

    Members trained from different seeds, or on different data, disagree where the data left them free. A member with
    nothing random gives its one transform; with such members n is at most their number.

    Parameters
    ----------
    members
        Trained models.
    fixed, moving
        As of a registrar.

    References
    ----------
    Lakshminarayanan et al., Simple and scalable predictive uncertainty estimation using deep ensembles, NeurIPS 2017.
    """

    def __init__(self, members: Sequence[Registrar], *, fixed: Images, moving: Images) -> None:
        if len(members) < 2:
            raise OptionError(f"an ensemble needs two models or more, got {len(members)}")
        self.predictions = [member(fixed=fixed, moving=moving) for member in members]

    def draws(self, n: int, generator: torch.Generator | None = None) -> Iterator[Draw]:
        """Yield draws, member by member."""
        source = seeded(generator)
        if n > len(self.predictions) and any(one.draw is None for one in self.predictions):
            raise OptionError(
                f"{n} draws of {len(self.predictions)} models, of which some always give the same field; "
                f"ask for {len(self.predictions)} at most"
            )
        for number in range(n):
            member = self.predictions[number % len(self.predictions)]
            one = member if member.draw is None else member.draw(source)
            outputs = {name: value for name, value in one.raw.items() if name != "field"}
            yield Draw(one.transform, {**outputs, **one.features}, one.extras["grid"])


class CostVolumeSampler:
    """Draws of the discrete posterior of a local cost volume: no training, any pair.

    On a control grid of the fixed image, every displacement d of a lattice around zero has the local cost

        c(x, d) = mean over the cell of x of |F(y) - M(y + d)|^2

    of descriptors F, M of the images (MIND-SSC, or the grey values). The posterior of a control point is a softmax,
    coupled to its neighbours by the mean field of a quadratic prior, iterated a few times::

        q(x, d) = softmax_d( -c(x, d) / (T s) - coupling |d - u(x)|^2 / 2 ),   u = Gaussian mean of sum_d q d

    with s the mean over x of the lowest cost: a temperature T of 1 makes a cost of twice the noise less likely by e. A
    draw takes one d at each control point, independently given u, and is read between them linearly.

    Parameters
    ----------
    fixed, moving
        Images; the moving one is first brought onto the fixed grid through ``start``.
    start
        Linear map, fixed to moving, world; default identity.
    spacing
        Of the control points, in voxels.
    reach, step
        Displacements from -reach to reach in steps, voxels along each axis (number or one an axis).
    descriptor
        ``mind`` or ``grey``.
    temperature, coupling, rounds
        T; of the prior, 1 / voxel^2; iterations of the mean field.
    sigma
        Of the Gaussian mean, control points.

    References
    ----------
    Heinrich et al., Non-parametric discrete registration with convex optimisation, WBIR 2014; Luo et al., On the
    applicability of registration uncertainty, MICCAI 2019, for what such a posterior does and does not tell.
    """

    def __init__(
        self,
        *,
        fixed: Image,
        moving: Image,
        start: Transform | None = None,
        spacing: int = 4,
        reach: int | Sequence[int] = 6,
        step: int | Sequence[int] = 2,
        descriptor: Literal["mind", "grey"] = "mind",
        temperature: float = 1.0,
        coupling: float = 0.05,
        rounds: int = 3,
        sigma: float = 1.0,
    ) -> None:
        if not temperature > 0 or coupling < 0 or spacing < 1 or rounds < 0:
            raise OptionError(
                "give a temperature above 0, a coupling and rounds of at least 0, a spacing of at least 1"
            )
        if descriptor not in ("mind", "grey"):
            raise OptionError(f"unknown descriptor '{descriptor}'; known: mind, grey")
        self.grid, self.start = fixed.grid, identity(fixed.grid.ndim) if start is None else start
        moved = self.start.resample(moving, fixed.grid, background=default_background(moving))
        self.spacing = spacing
        descriptors = [_described(image, descriptor) for image in (fixed, moved)]
        steps = per_axis(step, self.grid.ndim)
        self.labels = _lattice(per_axis(reach, self.grid.ndim), steps)
        cost = cost_volume(descriptors[0], descriptors[1], self.labels, spacing)
        noise = cost.amin(0).mean().clamp_min(torch.finfo(cost.dtype).tiny)
        self.steps = steps
        self.posterior = _posterior(
            cost / (temperature * noise), self.labels.float(), coupling=coupling, rounds=rounds, sigma=sigma
        )

    def draws(self, n: int, generator: torch.Generator | None = None) -> Iterator[Draw]:
        """Yield draws; each reads every control point's posterior once."""
        source = seeded(generator)
        count, *coarse = self.posterior.shape
        flat = self.posterior.reshape(count, -1).T
        known = {"mean": self.mean, "entropy": self.entropy}
        for _ in range(n):
            chosen = torch.multinomial(flat, 1, generator=source)[:, 0]
            at_points = self.labels[chosen].float().T.reshape(1, -1, *coarse)
            likelihood = flat.gather(1, chosen[:, None]).T.reshape(1, 1, *coarse)
            yield Draw(self._transform(at_points), {**known, "likelihood": likelihood})

    @property
    def mean(self) -> Float[Tensor, "1 d *control"]:
        """Mean displacement at the control points, voxels of the fixed grid."""
        return torch.einsum("n...,nd->d...", self.posterior, self.labels.float())[None]

    @property
    def entropy(self) -> Float[Tensor, "1 1 *control"]:
        """Entropy of the posterior at the control points, nats."""
        return -torch.xlogy(self.posterior, self.posterior).sum(0)[None, None]

    def _transform(self, at_points: Float[Tensor, "1 d *control"]) -> Transform:
        # Cells have a fixed width and the last may be cut: its control point stays where that of a whole one would be.
        displacement = resize(at_points, tuple(self.spacing * m for m in at_points.shape[2:]))
        for axis, n in enumerate(self.grid.shape):
            displacement = displacement.narrow(2 + axis, 0, n)
        displacement = displacement.contiguous()
        return chain([DisplacementField(self.grid, displacement), self.start])


def per_axis(value: int | Sequence[int], ndim: int) -> tuple[int, ...]:
    """One whole number an axis, at least 0."""
    values = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(values) != ndim or min(values) < 0:
        raise OptionError(f"{value} does not give {ndim} whole numbers of voxels, one an axis")
    return values


def _lattice(reach: Sequence[int], steps: Sequence[int]) -> Tensor:
    """Displacements, (n, d), voxels; zero is among them."""
    axes = []
    for far, step in zip(reach, steps, strict=True):
        count = far // step if step else 0
        axes.append([step * k for k in range(-count, count + 1)])
    return torch.tensor(list(itertools.product(*axes)))


def _described(image: Image, descriptor: str) -> Tensor:
    values = image.tensor().float()
    if descriptor == "mind":
        from verimorph.objective.similarity import mind_ssc

        return mind_ssc(values)
    low, high = values.amin(), values.amax()
    return (values - low) / (high - low).clamp_min(1e-12)


def cost_volume(
    fixed: Float[Tensor, "1 c *space"], moving: Float[Tensor, "1 c *space"], labels: Tensor, spacing: int
) -> Float[Tensor, "n *control"]:
    """Mean squared difference of descriptors over cells of ``spacing`` voxels, for each displacement; edges repeated.

    ``labels`` is (n, d), whole voxels. One displacement is in memory at a time; cells that the edge cuts count the
    voxels they have.
    """
    if fixed.shape != moving.shape:
        raise InputError(f"descriptors differ in shape: {tuple(fixed.shape)} and {tuple(moving.shape)}")
    shape = fixed.shape[2:]
    reach = [int(labels[:, axis].abs().max()) for axis in range(len(shape))]
    mode = "replicate"
    wide = functional.pad(moving, [r for r in reversed(reach) for _ in range(2)], mode=mode)
    pool = functional.avg_pool2d if len(shape) == 2 else functional.avg_pool3d
    costs = []
    for label in labels.tolist():
        view = wide
        for axis, (shift, far, n) in enumerate(zip(label, reach, shape, strict=True)):
            view = view.narrow(2 + axis, far + shift, n)
        local = (fixed - view).square().mean(1, keepdim=True)
        # count_include_pad does not concern cells that are cut by ceil_mode: torch leaves those out by itself.
        costs.append(pool(local, spacing, ceil_mode=True)[0, 0])
    return torch.stack(costs)


def _posterior(
    energy: Float[Tensor, "n *control"], labels: Float[Tensor, "n d"], *, coupling: float, rounds: int, sigma: float
) -> Float[Tensor, "n *control"]:
    """Softmax of the energies, coupled to the neighbours' means."""
    ndim = energy.ndim - 1
    q = (-energy).softmax(0)
    for _ in range(rounds if coupling > 0 else 0):
        mean = gaussian_smooth(torch.einsum("n...,nd->d...", q, labels)[None].contiguous(), sigma)[0]
        away = (labels.view(-1, ndim, *[1] * ndim) - mean).square().sum(1)
        q = (-energy - coupling * away / 2).softmax(0)
    return q


def displacement_of(transform: Transform, grid: Grid) -> Float[Tensor, "1 d *space"]:
    """Dense displacement of a draw in millimetres along the grid's own axes, ``spacing * u``.

    What `verimorph.uncertainty.accumulate.FieldSpread` takes; lengths are those of world vectors where the grid's axes
    are at right angles.
    """
    displacement = transform.displacement_on(grid)
    spacing = torch.tensor([float(length) for length in grid.spacing], dtype=displacement.dtype)
    if not all(math.isfinite(float(length)) for length in spacing):
        raise InputError(f"the grid has no finite spacing: {grid.spacing}")
    return displacement * spacing.view(1, -1, *[1] * grid.ndim)
