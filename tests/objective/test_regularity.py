"""Regularisers: closed forms, null spaces, spacing, masks, MONAI, a dense matrix, finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from verimorph.errors import InputError, OptionError
from verimorph.objective import regularity as r

REGULARISERS = {
    "diffusion": (r.diffusion, {}),
    "tv": (r.total_variation, {}),
    "tv_isotropic": (r.total_variation, {"form": "isotropic"}),
    "bending": (r.bending, {}),
    "bending_nested": (r.bending, {"stencil": "nested"}),
    "elasticity": (r.linear_elasticity, {"mu": 0.7, "lam": 1.3}),
    "folding": (r.jacobian_folding, {"margin": 0.9}),
    "folding_central": (r.jacobian_folding, {"margin": 0.9, "stencil": "central"}),
    "volume_log": (r.jacobian_volume, {}),
    "volume_symmetric": (r.jacobian_volume, {"form": "symmetric", "stencil": "central"}),
    "laplacian_prior": (lambda field, **o: r.laplacian_prior(field, 0.3 * field.flip(2), **o), {"precision": 2.0}),
}
SPACED = [name for name in REGULARISERS if "folding" not in name and "volume" not in name]

each = pytest.mark.parametrize("name", REGULARISERS)
both = pytest.mark.parametrize("shape", [(9, 8), (8, 9, 7)], ids=["2d", "3d"])


def run(name, field, **options):
    measure, settings = REGULARISERS[name]
    return measure(field, **{**settings, **options})


def index(*shape: int) -> torch.Tensor:
    """Voxel coordinates (D, *shape)."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n), dtype=torch.float64) for n in shape), indexing="ij"))


@pytest.fixture
def smooth():
    def make(shape: tuple[int, ...], seed: int = 0, batch: int = 1, size: float = 0.5) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return size * torch.randn(batch, len(shape), *shape, generator=generator, dtype=torch.float64)

    return make


@each
@both
def test_a_translation_costs_nothing(name, shape):
    field = torch.ones(1, len(shape), *shape, dtype=torch.float64) * 1.7
    least = {"tv_isotropic": 1e-3 / len(shape)}
    if name == "laplacian_prior":
        return
    assert run(name, field).item() == pytest.approx(least.get(name, 0.0), abs=1e-12)


@each
@both
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_the_finite_difference(name, shape, masked, smooth):
    field = smooth(shape, 1, size=0.3).requires_grad_()
    options = {}
    if masked:
        options["mask"] = (smooth(shape, 2)[:, :1] > -0.6).double()
        options["weight"] = smooth(shape, 3)[:, :1].abs()
    assert torch.autograd.gradcheck(lambda x: run(name, x, **options), (field,), fast_mode=True, atol=1e-6)


@each
@both
def test_masked_equals_cropped(name, shape, smooth):
    field = smooth(shape, 1, batch=2)
    box = (..., *(slice(1, n - 1) for n in shape))
    mask = torch.zeros(1, 1, *shape, dtype=torch.float64)
    mask[box] = 1
    if name == "laplacian_prior":
        crop = r.laplacian_prior(field[box], 0.3 * field.flip(2)[box], precision=2.0)
        masked = r.laplacian_prior(field, 0.3 * field.flip(2), precision=2.0, mask=mask)
    else:
        crop, masked = run(name, field[box]), run(name, field, mask=mask)
    torch.testing.assert_close(masked, crop)


@each
@both
def test_a_constant_weight_multiplies(name, shape, smooth):
    field = smooth(shape, 1)
    weight = torch.full((1, 1, *shape), 2.5, dtype=torch.float64)
    torch.testing.assert_close(run(name, field, weight=weight), 2.5 * run(name, field))


@each
def test_stiffness_counts_where_it_is(name, smooth):
    field = smooth((8, 9), 1)
    field[..., 4:] = 0.0  # all motion is on the left
    if name == "laplacian_prior":
        return
    weight = torch.ones(1, 1, 8, 9, dtype=torch.float64)
    weight[..., 6:] = 100.0
    still = 0.1 if name == "tv_isotropic" else 1e-9  # that form has a floor of its own
    torch.testing.assert_close(run(name, field, weight=weight), run(name, field), rtol=still, atol=still)
    weight = weight.flip(-1)
    assert run(name, field, weight=weight) > 2 * run(name, field)


@each
@both
def test_the_map_lies_on_the_grid_and_is_zero_where_nothing_moves(name, shape, smooth):
    field = smooth(shape, 1)
    local = run(name, field, map=True)
    assert local.shape == (1, 1, *shape)
    if "laplacian" in name:
        torch.testing.assert_close(local.mean(), run(name, field))
        return
    assert local.max() > 0
    field[:, :, : shape[0] // 2] = 0
    assert run(name, field, map=True)[:, :, : shape[0] // 2 - 2].abs().max() <= 1e-3


@pytest.mark.parametrize("name", SPACED)
@both
def test_equal_spacing_changes_only_the_unit(name, shape, smooth):
    field = smooth(shape, 1)
    factor = 0.25 if "bending" in name else 1.0
    expected = factor * run(name, field)
    torch.testing.assert_close(run(name, field, spacing=(2.0,) * len(shape)), expected)


def test_spacing_takes_derivatives_of_millimetres_by_millimetres():
    # u_1 = 0.1 y mm per mm on voxels of (2, 1, 3) mm, sampled at index times spacing, in voxels of axis 1.
    spacing = (2.0, 1.0, 3.0)
    points = index(6, 7, 5) * torch.tensor(spacing, dtype=torch.float64).view(3, 1, 1, 1)
    millimetres = torch.stack([0.1 * points[2], 0.2 * points[0], 0 * points[0]])
    field = (millimetres / torch.tensor(spacing, dtype=torch.float64).view(3, 1, 1, 1))[None]
    assert r.diffusion(field, spacing=spacing).item() == pytest.approx((0.1**2 + 0.2**2) / 9)
    assert r.total_variation(field, spacing=spacing).item() == pytest.approx(0.3 / 9)
    strain = ((0.1 / 2) ** 2 + (0.2 / 2) ** 2) * 2
    assert r.linear_elasticity(field, mu=1.0, lam=1.0, spacing=spacing).item() == pytest.approx(strain)
    quadratic = torch.stack([0.05 * points[1] ** 2, 0.02 * points[0] * points[2], 0 * points[0]])
    field = (quadratic / torch.tensor(spacing, dtype=torch.float64).view(3, 1, 1, 1))[None]
    expected = (0.1**2 + 2 * 0.02**2) / 3
    assert r.bending(field, spacing=spacing).item() == pytest.approx(expected)
    assert r.bending(field, spacing=spacing, stencil="nested").item() == pytest.approx(expected)


def test_closed_forms_in_three_dimensions():
    x, y, _ = index(8, 8, 8)
    zero = torch.zeros_like(x)

    def field(*parts):
        return torch.stack(parts)[None]

    assert r.diffusion(field(0.2 * x, zero, zero)).item() == pytest.approx(0.2**2 / 9)
    assert r.total_variation(field(0.2 * x, zero, zero)).item() == pytest.approx(0.2 / 9)
    for stencil in ("compact", "nested"):
        assert r.bending(field(0.3 * x * x, zero, zero), stencil=stencil).item() == pytest.approx(0.6**2 / 3)
        assert r.bending(field(0.3 * x + 0.1 * y, y, zero), stencil=stencil).item() == pytest.approx(0, abs=1e-20)
    assert r.linear_elasticity(field(0.1 * y, zero, zero)).item() == pytest.approx(0.005)
    turn = field((math.cos(0.3) - 1) * x - math.sin(0.3) * y, math.sin(0.3) * x + (math.cos(0.3) - 1) * y, zero)
    assert r.linear_elasticity(turn).item() == pytest.approx(4 * (1 - math.cos(0.3)) ** 2, rel=1e-9)


def test_only_the_nested_stencil_is_blind_to_the_checkerboard():
    checker = (-1.0) ** index(8, 8, 8).sum(0)
    field = torch.stack([checker, 0 * checker, 0 * checker])[None]
    assert r.bending(field, stencil="nested").item() == pytest.approx(0, abs=1e-20)
    assert r.bending(field).item() > 1


def test_bending_is_that_of_monai(smooth):
    deform = pytest.importorskip("monai.losses.deform")
    # MONAI took the nested stencil until it gained a compact one for the pure derivatives.
    stencil = "compact" if hasattr(deform, "spatial_gradient_squared") else "nested"
    for shape in ((9, 8), (8, 7, 9)):
        field = smooth(shape, 5, batch=2)
        expected = deform.BendingEnergyLoss(normalize=False)(field)
        torch.testing.assert_close(r.bending(field, stencil=stencil), expected)


def test_determinants_of_linear_maps():
    points = index(6, 5, 7)
    matrix = torch.tensor([[0.2, 0.1, 0.0], [0.05, -0.3, 0.2], [0.1, 0.0, 0.4]], dtype=torch.float64)
    field = torch.einsum("ij,j...->i...", matrix, points)[None]
    expected = np.linalg.det(np.eye(3) + matrix.numpy())
    for stencil in ("forward", "central", "corners"):
        assert r.jacobian_folding(field, margin=2.0, stencil=stencil).item() == pytest.approx(2 - expected)
        symmetric = (expected - 1) ** 2 + (1 / expected - 1) ** 2
        assert r.jacobian_volume(field, form="symmetric", stencil=stencil).item() == pytest.approx(symmetric)
        assert r.jacobian_volume(field, stencil=stencil).item() == pytest.approx(math.log(expected) ** 2)


def test_volume_reads_growth_and_shrinkage_alike():
    points = index(6, 6)
    for form in ("log", "symmetric"):
        grown, shrunk = (r.jacobian_volume((factor - 1) * points[None], form=form).item() for factor in (1.25, 0.8))
        assert grown == pytest.approx(shrunk, rel=1e-9)


def test_a_reflection_folds_everywhere():
    points = index(6, 6, 6)
    field = torch.zeros(1, 3, 6, 6, 6, dtype=torch.float64)
    field[0, 1] = 5 - 2 * points[1]
    assert r.jacobian_folding(field).item() == pytest.approx(1.0)
    assert r.jacobian_folding(field, stencil="forward").item() == pytest.approx(1.0)
    value = r.jacobian_volume(field.requires_grad_())
    assert torch.autograd.grad(value, field)[0].abs().max() > 0  # below the floor the hinge still pulls


def test_corners_see_the_fold_that_central_differences_miss():
    # One voxel carried 1.5 voxels along an axis passes its neighbour; the central determinants stay positive.
    field = torch.zeros(1, 3, 5, 5, 5, dtype=torch.float64)
    field[0, 0, 2, 2, 2] = 1.5
    assert r.jacobian_folding(field, stencil="central").item() == 0
    assert r.jacobian_folding(field, stencil="corners").item() > 0


def test_laplacian_prior_is_the_divergence_of_gaussians():
    """Against the dense precision matrix of a 3 x 4 grid: KL up to the constants that are dropped."""
    shape, precision = (3, 4), 1.7
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 2, *shape, generator=generator, dtype=torch.float64)
    log_variance = torch.randn(1, 2, *shape, generator=generator, dtype=torch.float64)
    size = math.prod(shape)
    laplacian = np.zeros((size, size))
    for i in range(shape[0]):
        for j in range(shape[1]):
            for a, b in ((i + 1, j), (i, j + 1)):
                if a < shape[0] and b < shape[1]:
                    p, q = i * shape[1] + j, a * shape[1] + b
                    laplacian[p, p] += 1
                    laplacian[q, q] += 1
                    laplacian[p, q] -= 1
                    laplacian[q, p] -= 1
    total = 0.0
    for c in range(2):
        m, v = mean[0, c].flatten().numpy(), log_variance[0, c].exp().flatten().numpy()
        trace = np.trace(precision * laplacian @ np.diag(v))
        total += 0.5 * (trace - np.log(v).sum() + precision * m @ laplacian @ m)
    ours = r.laplacian_prior(mean, log_variance, precision=precision)
    assert ours.item() == pytest.approx(total / (2 * size), rel=1e-10)


def test_laplacian_prior_is_least_at_the_priors_variance():
    mean = torch.zeros(1, 2, 6, 6, dtype=torch.float64)
    log_variance = torch.zeros(1, 2, 6, 6, dtype=torch.float64).requires_grad_()
    degree = torch.full((6, 6), 4.0, dtype=torch.float64)
    for side in (degree[0], degree[-1], degree[:, 0], degree[:, -1]):
        side -= 1
    with torch.no_grad():
        log_variance.copy_(-(10.0 * degree).log().expand(1, 2, 6, 6))
    (slope,) = torch.autograd.grad(r.laplacian_prior(mean, log_variance, precision=10.0), log_variance)
    assert slope.abs().max() < 1e-12


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_finite_in_half_precision(name, dtype, smooth):
    field = smooth((7, 8, 6), 1).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = run(name, field)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert field.grad.isfinite().all()


@each
def test_every_item_of_a_batch_alone(name, smooth):
    fields = smooth((6, 7, 8), 2, batch=3)
    alone = torch.stack([run(name, fields[b : b + 1]) for b in range(3)])
    torch.testing.assert_close(run(name, fields, reduction="none"), alone)


def test_wrong_fields_are_refused():
    with pytest.raises(InputError, match="field"):
        r.diffusion(torch.zeros(1, 2, 5, 5, 5))
    with pytest.raises(InputError, match="5 voxels"):
        r.bending(torch.zeros(1, 2, 4, 9), stencil="nested")
    with pytest.raises(OptionError):
        r.diffusion(torch.zeros(1, 2, 5, 5), spacing=(1.0, 0.0))
