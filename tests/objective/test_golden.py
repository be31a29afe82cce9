"""Values of section 6 of the reference: made by independent code in float64, formulas exactly as published."""

from __future__ import annotations

import pytest

from verimorph.objective.regularity import bending, diffusion, total_variation
from verimorph.objective.regularity.jacobian import determinants
from verimorph.objective.similarity import (
    correlation_ratio,
    explained_variance,
    lncc,
    lncc_gaussian,
    mae,
    mind_distance,
    mind_ssc,
    mse,
    mutual_information,
    pearson,
    ssim,
)


def close(value: float) -> object:
    return pytest.approx(value, abs=5e-10)


def test_differences(golden):
    fixed, moved, _ = golden
    assert mse(fixed, moved).item() == close(0.0174704608)
    assert mae(fixed, moved).item() == close(0.1142480539)


def test_pearson(golden):
    assert pearson(*golden[:2], epsilon=0.0).item() == close(0.1349350417)


def test_lncc_with_zero_borders(golden):
    fixed, moved, _ = golden
    local = lncc(fixed, moved, border="zeros", map=True)
    assert lncc(fixed, moved, border="zeros").item() - 1 == close(-0.8743554785)
    assert local.mean().item() - 1 == close(-0.8743554785)
    assert local[..., 4:-4, 4:-4, 4:-4].mean().item() - 1 == close(-0.7396505791)


def test_lncc_interior_does_not_depend_on_the_border(golden):
    fixed, moved, _ = golden
    assert lncc(fixed, moved, map=True)[..., 4:-4, 4:-4, 4:-4].mean().item() - 1 == close(-0.7396505791)


def test_gaussian_lncc(golden):
    fixed, moved, _ = golden
    published = {"radius": 4, "border": "zeros", "epsilon": 1e-5, "numerator_epsilon": 1e-5}
    assert lncc_gaussian(fixed, moved, **published).item() == close(0.1681490315)


def test_ssim(golden):
    fixed, moved, _ = golden
    local = 1 - ssim(fixed, moved, border="zeros", map=True)
    assert local.mean().item() == close(0.8995850908)
    assert local[..., 5:-5, 5:-5, 5:-5].mean().item() == close(0.8551340718)


def test_mutual_information(golden):
    fixed, moved, _ = golden
    published = {"window": "gaussian", "epsilon": 1e-6}
    assert -mutual_information(fixed, moved, **published).item() == close(0.7063381897)
    assert -mutual_information(fixed, fixed, **published).item() == close(1.6743293994)


def test_correlation_ratio(golden):
    fixed, moved, _ = golden
    published = {"published": True, "epsilon": 1e-5}
    f, w = fixed.flatten(1), moved.flatten(1)
    assert explained_variance(f, w, **published).item() == close(0.7367101676)
    assert explained_variance(w, f, **published).item() == close(0.7356387578)
    assert explained_variance(f, f, **published).item() == close(0.9813698292)
    assert (correlation_ratio(fixed, moved, **published).item() - 1) / 3 == close(-0.2453914876)


def test_mind_ssc(golden):
    fixed, moved, _ = golden
    assert mind_distance(fixed, moved).item() == close(0.0063441717)
    assert (mind_ssc(3 * fixed - 7) - mind_ssc(fixed)).abs().max() < 1e-12


def test_regularisers(golden):
    field = golden[2]
    assert diffusion(field).item() == close(0.0015337955)
    assert total_variation(field).item() == close(0.0254987133)
    assert total_variation(field, form="isotropic").item() == close(0.0203567225)
    assert bending(field, stencil="nested").item() == close(0.0010323248)


def test_jacobian(golden):
    inner = next(iter(determinants(golden[2], "central")))[0][..., 1:-1, 1:-1, 1:-1]
    assert inner.min().item() == close(0.7749037614)
    assert inner.max().item() == close(1.2268667688)
    assert inner.mean().item() == close(0.9761337067)
