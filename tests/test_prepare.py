"""Intensity preparation: quantiles as NumPy takes them, background left alone, ITK's histogram matching and N4."""

from __future__ import annotations

import time

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given
from hypothesis import strategies as st

from verimorph import prepare
from verimorph.errors import InputError, OptionError
from verimorph.image import Image
from verimorph.io import read_image


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A skull-stripped head in miniature: zero outside, a bright spot inside."""
    random = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 36, 32)], indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 0.7
    voxels = np.where(inside, 300 + 100 * np.sin(4 * axes[0]) + random.normal(0, 20, inside.shape), 0)
    voxels[20, 18, 14:18] = 9000
    return voxels.astype(np.float32)


def test_bounds_are_the_quantiles_of_the_foreground(head):
    low, high = prepare.quantile_range(head, (0.01, 0.99))
    foreground = head[head > 0]
    assert high == pytest.approx(np.quantile(foreground, 0.99), rel=1e-3)
    assert low == 0, "zero is background here, and tissue falls off to it"
    y = prepare.winsorise(head, (0.01, 0.99))
    np.testing.assert_array_equal(y, np.clip(head, 0, high).astype(np.float32))


def test_padding_of_ct_does_not_count_and_is_clamped(random):
    voxels = random.normal(0, 300, (40, 40, 40)).clip(-1000, 1500)
    voxels[:20] = -2048
    low, high = prepare.quantile_range(voxels, (0.01, 0.99))
    np.testing.assert_allclose((low, high), np.quantile(voxels[20:], (0.01, 0.99)), atol=2)
    assert prepare.winsorise(voxels, (0.01, 0.99)).min() == pytest.approx(low)


def test_a_mask_says_where_the_quantiles_are_taken(head, random):
    mask = np.zeros(head.shape, bool)
    mask[10:20, 10:20, 10:20] = True
    low, high = prepare.quantile_range(head, (0.1, 0.9), mask=mask)
    np.testing.assert_allclose((low, high), np.quantile(head[mask], (0.1, 0.9), method="nearest"), rtol=1e-3)
    with pytest.raises(InputError, match="mask is empty"):
        prepare.winsorise(head, mask=np.zeros_like(mask))
    with pytest.raises(InputError, match="the mask has 8 voxels"):
        prepare.winsorise(head, mask=np.ones(8))


@given(value=st.floats(-1e4, 1e4, width=32), shape=st.tuples(*[st.integers(1, 5)] * 3))
def test_a_constant_image_stays_as_it_is(value, shape):
    voxels = np.full(shape, value, np.float32)
    np.testing.assert_array_equal(prepare.winsorise(voxels), voxels)
    np.testing.assert_array_equal(prepare.rescale(voxels), 0)


def test_tensors_stay_tensors_and_arrays_arrays(head):
    tensor = torch.from_numpy(head)[None, None]
    cut = prepare.winsorise(tensor)
    assert isinstance(cut, torch.Tensor)
    assert cut.shape == tensor.shape
    np.testing.assert_allclose(cut[0, 0].numpy(), prepare.winsorise(head), rtol=1e-5)
    np.testing.assert_array_equal(prepare.winsorise(np.asfortranarray(head)), prepare.winsorise(head))
    assert prepare.winsorise(head.astype(np.int16)).dtype == np.float32


def test_the_input_is_never_changed(head):
    before = head.copy()
    for function in (prepare.winsorise, prepare.rescale, prepare.bias_correct):
        function(head)
    prepare.histogram_match(fixed=head, moving=head)
    np.testing.assert_array_equal(head, before)


@pytest.mark.parametrize("quantiles", [(0.5, 0.5), (-0.1, 0.9), (0.1, 1.1), (0.9, 0.1)])
def test_quantiles_out_of_order_are_refused(head, quantiles):
    with pytest.raises(OptionError, match="0 <= lower < upper <= 1"):
        prepare.winsorise(head, quantiles)


def test_winsorising_five_million_voxels_is_quick():
    voxels = torch.randn(1, 1, 180, 180, 155).abs()
    prepare.winsorise(voxels[..., :9])
    start = time.perf_counter()
    prepare.winsorise(voxels)
    assert time.perf_counter() - start < 1, "about 0.03 s on an idle machine"


def test_rescaling_maps_the_range_to_0_and_1(head):
    y = prepare.rescale(head)
    assert (y.min(), y.max()) == (0, 1)
    np.testing.assert_allclose(prepare.rescale(head, 100, 300), (head - 100) / 200, rtol=1e-5)


def test_histogram_matching_is_that_of_itk_and_brings_the_intensities_back(head):
    changed = (head * 2.5 + (head > 0) * 40).astype(np.float32)
    y = prepare.histogram_match(fixed=head, moving=changed[:, :, ::-1])
    filter_ = sitk.HistogramMatchingImageFilter()
    filter_.SetNumberOfHistogramLevels(1024)
    filter_.SetNumberOfMatchPoints(12)
    filter_.ThresholdAtMeanIntensityOn()
    theirs = filter_.Execute(sitk.GetImageFromArray(changed[:, :, ::-1]), sitk.GetImageFromArray(head))
    tissue = (head > 0) & (head < 1000)
    np.testing.assert_allclose(y, sitk.GetArrayFromImage(theirs), rtol=1e-4, atol=1e-2)
    assert np.abs(y[:, :, ::-1] - head)[tissue].mean() < 0.1 * np.abs(changed - head)[tissue].mean()


def test_bias_correction_removes_most_of_a_known_field():
    random = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(-1, 1, 48)] * 3, indexing="ij", sparse=True)
    inside = sum(axis**2 for axis in axes) < 0.8
    truth = np.where(inside, np.where(np.abs(axes[1]) < 0.4, 500, 300) + random.normal(0, 5, inside.shape), 0)
    biased = truth * np.exp(0.4 * axes[0] + 0.2 * axes[2] ** 2)
    y = prepare.bias_correct(biased, spacing=(2, 2, 2), mask=inside, shrink=3)

    def spread(image: np.ndarray) -> float:
        ratio = image[inside] / truth[inside]
        return float(ratio.std() / ratio.mean())

    assert spread(y) < 0.25 * spread(biased)
    flat = prepare.bias_correct(torch.from_numpy(biased[:, :, 24]).float(), mask=inside[:, :, 24], shrink=2)
    assert flat.shape == (48, 48)


@pytest.mark.parametrize("voxels", [np.zeros((20, 20, 20)), -np.ones((20, 20)), np.full((8, 8, 8), 3.0)])
def test_bias_correction_without_signal_is_refused(voxels):
    with pytest.raises(InputError, match="bias correction"):
        prepare.bias_correct(voxels)


def test_the_background_of_ct_is_its_minimum_and_of_others_zero(data_folder, head):
    ct = read_image(data_folder / "lung_ct_pair" / "fixed_baseline.nii.gz")
    assert prepare.default_background(ct) == ct.array.min() == -2048
    assert prepare.default_background(read_image(data_folder / "brain_t1_oasis" / "1000_t1_brain.nii.gz")) == 0


def test_the_rule_for_ct(head):
    random = np.random.default_rng(0)
    ct = random.normal(-300, 500, (30, 30, 30)).clip(-1000)
    assert prepare.default_background(ct) == -1000
    assert prepare.default_background(torch.from_numpy(ct)) == -1000
    assert prepare.default_background(Image.from_array(ct)) == -1000
    assert prepare.default_background(head) == 0
    assert prepare.default_background((head - head.mean()) / head.std()) == 0
    phase = random.integers(-4096, 4096, (30, 30))
    phase[0, 0] = -4096
    assert prepare.default_background(phase) == 0
    outlier = np.full((30, 30), 100)
    outlier[0, 0] = -900
    assert prepare.default_background(outlier) == 0
