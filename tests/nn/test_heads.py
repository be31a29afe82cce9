"""Heads: identity at the start, inverse of a flow, splines against SciPy, matrices by hand, gradients, draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn

from verimorph.errors import InputError
from verimorph.field import compose, exponentiate, warp
from verimorph.nn.heads import affine, spline
from verimorph.nn.heads.affine import AffineHead, affine_field, affine_matrix, parameter_count
from verimorph.nn.heads.displacement import DisplacementHead, bounded
from verimorph.nn.heads.distribution import DistributionHead
from verimorph.nn.heads.gradients import GradientHead
from verimorph.nn.heads.spline import SplineHead, lattice_shape, spline_field
from verimorph.nn.heads.time_varying import TimeVaryingHead
from verimorph.nn.heads.velocity import Integration, VelocityHead
from verimorph.nn.stochastic import sampling

HEADS = {
    "displacement": DisplacementHead,
    "bounded": lambda **k: DisplacementHead(**k, bound=1.0),
    "velocity": lambda **k: VelocityHead(**k, shrink=2),
    "spline displacement": lambda **k: SplineHead(**k, of="displacement"),
    "spline velocity": SplineHead,
    "affine": AffineHead,
    "distribution": DistributionHead,
    "time-varying": lambda **k: TimeVaryingHead(**k, steps=3, hidden=4),
}


def _smooth_velocity(shape: tuple[int, ...], size: float = 1.5) -> torch.Tensor:
    """Zero at the rim, so that the flow stays inside."""
    axes = torch.meshgrid(*[torch.linspace(0, math.pi, n) for n in shape], indexing="ij")
    bump = torch.stack([a.sin() ** 2 for a in axes]).prod(0)
    waves = torch.stack([torch.cos((k + 1) * axes[k] + k) for k in range(len(shape))])
    return (size * bump * waves)[None]


def _inputs(ndim: int, *, scale: int = 1, channels: int = 5, dtype=torch.float32):
    torch.manual_seed(0)
    shape = (8, 12, 10)[:ndim]
    features = torch.randn(2, channels, *(n // scale for n in shape), dtype=dtype)
    return features, torch.rand(2, 1, *shape, dtype=dtype), torch.rand(2, 1, *shape, dtype=dtype)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("name", HEADS)
def test_every_head_starts_next_to_the_identity_on_the_grid_of_the_images(name, ndim, scale):
    head = HEADS[name](ndim=ndim, channels=5).eval()
    features, fixed, moving = _inputs(ndim, scale=scale)
    field = head(features, fixed=fixed, moving=moving)["field"]
    assert field.shape == (2, ndim, *fixed.shape[2:])
    assert field.abs().max() < 0.01


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_of_a_head_gets_a_gradient(name):
    head = HEADS[name](ndim=2, channels=5).train()
    features, fixed, moving = _inputs(2)
    outputs = head(features, fixed=fixed, moving=moving)
    sum(output.square().sum() for output in outputs.values()).backward()
    assert [n for n, parameter in head.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", HEADS)
def test_fields_are_float32_under_autocast(name):
    head = HEADS[name](ndim=2, channels=5).train()
    features, fixed, moving = _inputs(2)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(features.bfloat16(), fixed=fixed, moving=moving)
    assert {k: v.dtype for k, v in outputs.items()} == dict.fromkeys(outputs, torch.float32)
    assert all(output.isfinite().all() for output in outputs.values())


@pytest.mark.parametrize("name", ["displacement", "bounded", "velocity", "spline displacement", "affine"])
def test_gradients_of_heads_against_finite_differences(name):
    torch.manual_seed(0)
    head = HEADS[name](ndim=2, channels=2).double().train()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.1)
    images = torch.rand(1, 1, 4, 4, dtype=torch.float64)
    features = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: head(f, fixed=images, moving=images)["field"], features)


def test_bound_is_half_the_image():
    field = bounded(torch.tensor([1e9, -1.0]).view(1, 2, 1, 1).expand(1, 2, 8, 12))
    assert field[0, 0].max().item() == pytest.approx(4)  # softsign tends to 1, times 8 / 2
    assert field[0, 1].max().item() == pytest.approx(-3)  # softsign(-1) = -1/2, times 12 / 2


@pytest.mark.parametrize("ndim", [2, 3])
def test_velocity_and_its_negative_give_inverse_fields(ndim):
    shape = (24, 20, 22)[:ndim]
    outputs = Integration(inverse="always")(_smooth_velocity(shape), shape)
    there_and_back = compose(outputs["field"], outputs["inverse"])
    assert outputs["field"].abs().max() > 0.5
    # What is left is the error of linear interpolation on this coarse grid.
    assert there_and_back.abs().max() < 0.06 * outputs["field"].abs().max()


def test_flow_on_a_coarser_grid_is_that_of_the_full_grid():
    shape = (48, 48)
    velocity = _smooth_velocity(shape, 3.0)
    full = Integration(shrink=1)(velocity, shape)
    half = Integration(shrink=2)(velocity, shape)
    assert half["velocity"].shape[2:] == (24, 24)
    assert (half["field"] - full["field"]).abs().max() < 0.1 * full["field"].abs().max()


def test_inverse_is_computed_when_asked_for():
    features, fixed, moving = _inputs(2)
    for inverse, training, expected in [
        ("evaluation", True, False),
        ("evaluation", False, True),
        ("never", False, False),
        ("always", True, True),
    ]:
        head = VelocityHead(ndim=2, channels=5, inverse=inverse).train(training)
        assert ("inverse" in head(features, fixed=fixed, moving=moving)) is expected


@pytest.mark.parametrize("spacing", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 7, 10, 11])
def test_spline_is_that_of_scipy(spacing, n):
    size = lattice_shape((n, n), (spacing, spacing))[0]
    random = np.random.default_rng(0)
    lattice = random.normal(size=(size, size))
    # Control point k stands at (k - 1) s; SciPy's k-th cubic starts at its k-th knot, two spacings earlier.
    knots = spacing * (np.arange(size + 4) - 3.0)
    basis = np.stack([BSpline.basis_element(knots[k : k + 5], extrapolate=False)(np.arange(n)) for k in range(size)])
    basis = np.nan_to_num(basis)
    expected = basis.T @ lattice @ basis
    got = spline_field(torch.from_numpy(lattice)[None, None], (n, n), (spacing, spacing))
    np.testing.assert_allclose(got[0, 0].numpy(), expected, atol=1e-12)


def test_spline_in_3d_is_separable_and_reproduces_linear_functions():
    shape, spacing = (7, 9, 8), (2, 3, 4)
    lattice = lattice_shape(shape, spacing)
    axes = [s * (torch.arange(n, dtype=torch.float64) - 1) for s, n in zip(spacing, lattice, strict=True)]
    control = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    expected = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij"))
    torch.testing.assert_close(spline_field(control, shape, spacing)[0], expected)


def test_wrong_lattice_is_refused():
    with pytest.raises(InputError, match=r"needs .* control points"):
        spline_field(torch.zeros(1, 2, 4, 4), (10, 10), (3, 3))


def test_spline_head_names_its_parameters():
    features, fixed, moving = _inputs(3)
    outputs = SplineHead(ndim=3, channels=5, spacing=(2, 3, 4)).eval()(features, fixed=fixed, moving=moving)
    assert outputs["parameters"].shape[2:] == lattice_shape((8, 12, 10), (2, 3, 4))
    assert set(outputs) == {"parameters", "velocity", "field", "inverse"}
    torch.testing.assert_close(
        outputs["velocity"], spline_field(outputs["parameters"], (8, 12, 10), (2, 3, 4)), check_stride=False
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["translation", "rigid", "similarity", "affine"])
def test_linear_maps_start_at_the_identity_and_keep_their_kind(kind, ndim):
    shape = (9, 11, 7)[:ndim]
    count = parameter_count(kind, ndim)
    none = affine_matrix(torch.zeros(1, count, dtype=torch.float64), shape, kind)
    torch.testing.assert_close(none[0], torch.eye(ndim, ndim + 1, dtype=torch.float64))
    torch.manual_seed(0)
    matrix = affine_matrix(0.3 * torch.randn(2, count, dtype=torch.float64), shape, kind)
    gram = matrix[:, :, :ndim].mT @ matrix[:, :, :ndim]
    size = gram.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] if kind == "similarity" else 1.0
    rigid = torch.allclose(gram / size, torch.eye(ndim, dtype=torch.float64).expand_as(gram))
    assert rigid is (kind != "affine")
    assert (torch.linalg.det(matrix[:, :, :ndim]) > 0).all()


def test_linear_map_turns_about_the_centre_and_shifts_by_half_images():
    quarter = torch.tensor([[0.0, 0.5, math.pi / 2]], dtype=torch.float64)
    matrix = affine_matrix(quarter, (5, 8), "rigid")
    centre = torch.tensor([2.0, 3.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(matrix[0] @ centre, torch.tensor([2.0, 3.5 + 0.5 * 4], dtype=torch.float64))
    along_first = matrix[0] @ torch.tensor([3.0, 3.5, 1.0], dtype=torch.float64) - matrix[0] @ centre
    torch.testing.assert_close(along_first, torch.tensor([0.0, 1.0], dtype=torch.float64))


def test_affine_field_moves_as_its_matrix():
    torch.manual_seed(0)
    shape = (4, 5, 6)
    matrix = affine_matrix(0.2 * torch.randn(2, 12), shape)
    field = affine_field(matrix, shape)
    index = torch.tensor([1.0, 3.0, 2.0])
    torch.testing.assert_close(field[:, :, 1, 3, 2] + index, (matrix @ torch.cat((index, torch.ones(1))))[:, :])
    assert affine.AffineHead(ndim=3, channels=2).linear.out_features == 12


def test_distribution_draws_in_training_and_while_sampling_only():
    features, fixed, moving = _inputs(2)
    head = DistributionHead(ndim=2, channels=5, log_variance=0.0).eval()

    def velocity():
        return head(features, fixed=fixed, moving=moving)["velocity"]

    torch.testing.assert_close(velocity(), head(features, fixed=fixed, moving=moving)["velocity_mean"])
    with sampling(head, torch.Generator().manual_seed(3)):
        first, second = velocity(), velocity()
    with sampling(head, torch.Generator().manual_seed(3)):
        again = velocity()
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert not torch.equal(head.train()(features, fixed=fixed, moving=moving)["velocity"], first)


def test_draws_have_the_mean_and_variance_they_say():
    head = DistributionHead(ndim=2, channels=1)
    mean, log_variance = torch.full((1, 2, 200, 200), 0.7), torch.full((1, 2, 200, 200), math.log(0.09))
    torch.manual_seed(0)
    draw = head.draw(mean, log_variance)
    assert draw.mean().item() == pytest.approx(0.7, abs=0.005)
    assert draw.std().item() == pytest.approx(0.3, abs=0.005)


class _Constant(nn.Module):
    """A step that always returns one velocity and remembers what it was shown."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.shown = velocity, None

    def forward(self, features, fixed, moved):
        self.shown = moved
        return self.velocity


def test_time_varying_steps_compose_and_see_the_moved_image():
    shape = (32, 32)
    velocity = _smooth_velocity(shape, 2.0) / 8
    head = TimeVaryingHead(ndim=2, channels=1, steps=8, hidden=4)
    head.steps = nn.ModuleList(_Constant(velocity) for _ in range(8))
    moving = torch.rand(1, 1, *shape)
    field = head(torch.zeros(1, 1, *shape), fixed=moving, moving=moving)["field"]
    flow = exponentiate(velocity * 8, steps=3)  # the same eight steps, squared
    torch.testing.assert_close(field, flow, atol=0.02, rtol=0)
    torch.testing.assert_close(head.steps[1].shown, warp(moving, velocity))


def test_released_update_resamples_the_step_by_itself():
    shape = (16, 16)
    first, second = _smooth_velocity(shape, 1.0), -0.5 * _smooth_velocity(shape, 1.0).flip(1)
    head = TimeVaryingHead(ndim=2, channels=1, steps=2, hidden=4, update="released")
    head.steps = nn.ModuleList([_Constant(first), _Constant(second)])
    image = torch.rand(1, 1, *shape)
    field = head(torch.zeros(1, 1, *shape), fixed=image, moving=image)["field"]
    torch.testing.assert_close(field, warp(first, first) + warp(second, second))


def test_lattice_of_weights_sums_to_one():
    for s in (1, 2, 5):
        weights = spline.cubic_weights(s, torch.zeros(1, dtype=torch.float64))
        for phase in range(s):
            start = (2 * s - 1 - phase) % s
            assert weights[start::s].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("make", [DisplacementHead, VelocityHead, GradientHead, DistributionHead])
def test_autocast_does_not_round_fields(make):
    """Displacements near 16 voxels would come in steps of an eighth."""
    torch.manual_seed(0)
    head = make(ndim=3, channels=4).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, 1)
    features, image = torch.randn(1, 4, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8)
    exact = head(features, fixed=image, moving=image)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head(features, fixed=image, moving=image)
    torch.testing.assert_close(cast["field"], exact["field"])
