"""Gaussian and box: against SciPy, and the laws of a smoothing filter."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from scipy import ndimage

from verimorph.errors import OptionError
from verimorph.field import box_mean, gaussian_smooth
from verimorph.field.backend import plain_torch
from verimorph.field.smooth import gaussian_weights


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.0, 1.73, 3.0])
@pytest.mark.parametrize("ndim", [2, 3])
def test_gaussian_equals_scipy(sigma, ndim, backend):
    """Zeros outside is SciPy's mode "constant"; renormalised is that divided by the smoothed ones."""
    shape = (25, 22, 19)[:ndim]
    x = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(0))
    radius = len(gaussian_weights(sigma)) - 1

    def scipy_smooth(values: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(values.astype(np.float64), sigma, mode="constant", radius=radius)

    zero, renormalised = gaussian_smooth(x, sigma, border="zero"), gaussian_smooth(x, sigma)
    inside = scipy_smooth(np.ones(shape))
    for channel in range(2):
        theirs = scipy_smooth(x[0, channel].numpy())
        np.testing.assert_allclose(zero[0, channel], theirs, atol=2e-6)
        np.testing.assert_allclose(renormalised[0, channel], theirs / inside, atol=2e-6)


def test_gaussian_is_cut_at_three_sigma():
    for sigma in (0.7, 1.0, 1.73, 2.0, 3.0):
        weights = gaussian_weights(sigma)
        assert len(weights) - 1 == np.ceil(3 * sigma)
        assert weights[0] + 2 * sum(weights[1:]) == pytest.approx(1, abs=1e-12)
        assert weights[1] / weights[0] == pytest.approx(np.exp(-0.5 / sigma**2))


@pytest.mark.parametrize("sigma", [(2.0, 0.0, 0.8), (0.0, 3.0, 0.0), (0.0, 0.0, 1.2)])
def test_each_axis_has_its_own_width(sigma, backend):
    x = torch.rand(1, 1, 16, 15, 14, generator=torch.Generator().manual_seed(1))
    radius = tuple(len(gaussian_weights(s)) - 1 if s else 0 for s in sigma)
    theirs = ndimage.gaussian_filter(x[0, 0].double().numpy(), sigma, mode="constant", radius=radius)
    np.testing.assert_allclose(gaussian_smooth(x, sigma, border="zero")[0, 0], theirs, atol=2e-6)
    assert gaussian_smooth(x, 0) is x


@pytest.mark.parametrize("shape", [(40, 30), (17, 13, 9), (5, 1, 7), (3, 2, 1), (1, 1, 1), (1, 6)])
@pytest.mark.parametrize("sigma", [0.6, 2.0, 30.0])
def test_constants_are_preserved(shape, sigma, backend):
    """Also where the kernel is wider than the axis."""
    x = torch.full((2, 2, *shape), 7.0)
    torch.testing.assert_close(gaussian_smooth(x, sigma), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(box_mean(x, int(sigma) + 1), x, atol=1e-5, rtol=0)


def test_zero_border_pulls_to_zero_and_conserves_an_impulse(backend):
    x = torch.ones(1, 3, 12, 12, 12)
    smooth = gaussian_smooth(x, 1.5, border="zero")
    assert (smooth[:, :, 0] < 0.66).all()
    impulse = torch.zeros(1, 1, 21, 21, 21)
    impulse[0, 0, 10, 10, 10] = 1
    assert float(gaussian_smooth(impulse, 1.5, border="zero").sum()) == pytest.approx(1, abs=1e-5)


def test_two_gaussians_are_one_of_summed_variance(backend):
    impulse = torch.zeros(1, 1, 41, 5, 41)
    impulse[0, 0, 20, 2, 20] = 1
    twice = gaussian_smooth(gaussian_smooth(impulse, (2, 0, 1.5)), (1.5, 0, 2))
    once = gaussian_smooth(impulse, (2.5, 0, 2.5))
    torch.testing.assert_close(twice, once, atol=3e-4, rtol=0)


@pytest.mark.parametrize("radius", [1, 2, 4, (3, 0, 1), 20])
def test_box_equals_scipy(radius, backend):
    """The mean over the part of the window inside the image: SciPy's window of zeros over that of ones."""
    shape = (15, 14, 13)
    x = torch.rand(1, 2, *shape, generator=torch.Generator().manual_seed(2))
    size = tuple(2 * r + 1 for r in (radius if isinstance(radius, tuple) else (radius,) * 3))
    inside = ndimage.uniform_filter(np.ones(shape), size, mode="constant")
    for channel in range(2):
        theirs = ndimage.uniform_filter(x[0, channel].double().numpy(), size, mode="constant") / inside
        np.testing.assert_allclose(box_mean(x, radius)[0, channel], theirs, atol=2e-6)


@pytest.mark.parametrize("shape", [(33, 31), (33, 31, 9), (20, 18, 1), (1, 30, 7), (2100, 3, 2)])
@pytest.mark.parametrize("sigma", [0.7, 2.3, 12.0])
def test_back_ends_agree(shape, sigma):
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(3)) - 0.5
    ours = [gaussian_smooth(x, sigma), gaussian_smooth(x, sigma, border="zero"), box_mean(x, int(sigma) + 1)]
    with plain_torch():
        theirs = [gaussian_smooth(x, sigma), gaussian_smooth(x, sigma, border="zero"), box_mean(x, int(sigma) + 1)]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=0)


def test_any_layout_and_the_input_stays_untouched(backend):
    x = torch.rand(1, 2, 12, 20, 9).permute(0, 1, 3, 2, 4)[..., ::2, :]
    before = x.clone()
    torch.testing.assert_close(gaussian_smooth(x, 1.2), gaussian_smooth(x.contiguous(), 1.2))
    torch.testing.assert_close(x, before, rtol=0, atol=0)


@pytest.mark.parametrize("sigma", [-1.0, (1.0, 2.0), float("nan"), float("inf")])
def test_bad_widths_are_named(sigma):
    with pytest.raises(OptionError, match="sigma"):
        gaussian_smooth(torch.zeros(1, 1, 4, 4, 4), sigma)
    with pytest.raises(OptionError, match="reflect"):
        inspect.unwrap(gaussian_smooth)(torch.zeros(1, 1, 4, 4), 1.0, border="reflect")
