"""Similarities against code that others wrote: SciPy, scikit-image, scikit-learn, SimpleITK, MONAI, and plain loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
import torch

from verimorph.objective import similarity as s


@pytest.fixture
def pair(textured):
    return textured((18, 16, 17), 11), textured((18, 16, 17), 12)


def itk_metric(fixed, moved, choose) -> float:
    sitk = pytest.importorskip("SimpleITK")
    method = sitk.ImageRegistrationMethod()
    choose(method)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetInitialTransform(sitk.TranslationTransform(3))
    images = [sitk.GetImageFromArray(np.ascontiguousarray(image[0, 0].numpy())) for image in (fixed, moved)]
    return method.MetricEvaluate(*images)


def test_mse_is_that_of_simpleitk(pair):
    assert s.mse(*pair).item() == pytest.approx(itk_metric(*pair, lambda m: m.SetMetricAsMeanSquares()), rel=1e-9)


def test_pearson_is_that_of_numpy_scipy_and_simpleitk(pair):
    r = 1 - s.pearson(*pair, epsilon=0.0).item()
    flat = [image.flatten().numpy() for image in pair]
    assert r == pytest.approx(np.corrcoef(*flat)[0, 1], abs=1e-12)
    assert r == pytest.approx(scipy.stats.pearsonr(*flat).statistic, abs=1e-12)
    assert -(r**2) == pytest.approx(itk_metric(*pair, lambda m: m.SetMetricAsCorrelation()), abs=1e-9)


def test_pearson_of_squares():
    k = torch.arange(10.0, dtype=torch.float64).view(1, 1, 2, 5)
    assert s.pearson(k, k**2, epsilon=0.0).item() == pytest.approx(0.0373093, abs=1e-7)


@pytest.mark.parametrize("bins", [20, 32])
def test_mattes_is_that_of_simpleitk(pair, bins):
    # ITK pads its bins by two at either end and counts them: 3 more than centres over the range.
    itk = itk_metric(*pair, lambda m: m.SetMetricAsMattesMutualInformation(bins + 3))
    ours = s.mutual_information(*pair, window="mattes", bins=bins, intensity_range=None)
    assert ours.item() == pytest.approx(itk, rel=1e-5)


def test_information_of_narrow_windows_is_that_of_the_histogram(textured):
    # Values at bin centres: a narrow Gaussian is the plain histogram.
    metrics = pytest.importorskip("sklearn.metrics")
    fixed, moved = ((textured((12, 12, 12), seed) * 7).round() / 7 for seed in (1, 2))
    moved = ((fixed + moved) * 3.5).round() / 7
    table = np.histogram2d(fixed.flatten().numpy(), moved.flatten().numpy(), bins=8, range=[(-1 / 14, 15 / 14)] * 2)[0]
    expected = metrics.mutual_info_score(None, None, contingency=table)
    ours = s.mutual_information(fixed, moved, bins=8, window="gaussian", sigma_ratio=0.05)
    assert -ours.item() == pytest.approx(expected, abs=1e-7)
    joint, first, second = (scipy.stats.entropy(p.ravel()) for p in (table, table.sum(1), table.sum(0)))
    form = {"bins": 8, "window": "gaussian", "sigma_ratio": 0.05, "form": "normalised"}
    assert 2 - s.mutual_information(fixed, moved, **form).item() == pytest.approx((first + second) / joint, abs=1e-6)


def test_information_is_that_of_monai(pair):
    monai = pytest.importorskip("monai.losses")
    loss = monai.GlobalMutualInformationLoss(num_bins=32, sigma_ratio=1.0)
    theirs = loss(pair[1].float(), pair[0].float()).item()
    ours = s.mutual_information(*pair, window="gaussian", epsilon=1e-7).item()
    assert ours == pytest.approx(theirs, abs=2e-3)


def test_independent_images_share_no_information():
    fixed, moved = torch.rand(2, 1, 1, 40, 40, 40, generator=torch.Generator().manual_seed(0))
    assert -0.01 < s.mutual_information(fixed, moved).item() <= 0
    assert s.mutual_information(fixed, moved, form="normalised").item() > 0.99
    assert s.correlation_ratio(fixed, moved).item() > 0.99


def test_lncc_is_that_of_scipy(pair):
    f, w = (image[0, 0].numpy() for image in pair)
    n = 5**3

    def total(x):
        return scipy.ndimage.uniform_filter(x, 5, mode="constant") * n

    cross = total(f * w) - total(f) * total(w) / n
    scatters = [total(x * x) - total(x) ** 2 / n for x in (f, w)]
    expected = cross**2 / (scatters[0] * scatters[1] + 1e-5)
    ours = 1 - s.lncc(*pair, radius=2, border="zeros", map=True)[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_lncc_is_that_of_monai(pair):
    monai = pytest.importorskip("monai.losses")
    loss = monai.LocalNormalizedCrossCorrelationLoss(
        spatial_dims=3, kernel_size=9, smooth_nr=0.0, smooth_dr=1e-9, reduction="mean"
    )
    theirs = loss(pair[1], pair[0]).item()
    assert s.lncc(*pair, border="zeros", epsilon=1e-12).item() - 1 == pytest.approx(theirs, abs=1e-6)


def test_gaussian_lncc_is_that_of_scipy(pair):
    f, w = (image[0, 0].numpy() for image in pair)

    def mean(x):
        return scipy.ndimage.gaussian_filter(x, 1.5, mode="constant", truncate=4 / 1.5)

    cross = mean(f * w) - mean(f) * mean(w)
    expected = cross**2 / ((mean(f * f) - mean(f) ** 2) * (mean(w * w) - mean(w) ** 2) + 1e-8)
    ours = 1 - s.lncc_gaussian(*pair, radius=4, border="zeros", map=True)[0, 0].numpy()
    inner = (slice(4, -4),) * 3
    np.testing.assert_allclose(ours[inner], expected[inner], atol=1e-9)


@pytest.mark.parametrize("flat", [False, True], ids=["3d", "2d"])
def test_ssim_is_that_of_scikit_image(pair, flat):
    skimage = pytest.importorskip("skimage.metrics")
    fixed, moved = (image[:, :, 8] if flat else image for image in pair)
    _, expected = skimage.structural_similarity(
        fixed[0, 0].numpy(),
        moved[0, 0].numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1,
        full=True,
    )
    ours = 1 - s.ssim(fixed, moved, map=True)[0, 0].numpy()
    inner = (slice(5, -5),) * ours.ndim
    np.testing.assert_allclose(ours[inner], expected[inner], atol=1e-9)


def test_correlation_ratio_is_the_explained_variance_of_bins(textured):
    given = (textured((12, 12, 12), 1) * 7).round() / 7
    values = textured((12, 12, 12), 2) + given**2
    x, y = values.flatten().numpy(), given.flatten().numpy()
    between = sum((y == level).sum() * (x[y == level].mean() - x.mean()) ** 2 for level in np.unique(y)) / x.size
    settings = {"bins": 8, "window": "gaussian", "sigma_ratio": 0.05, "epsilon": 0.0}
    ours = s.explained_variance(values.flatten(1), given.flatten(1), **{**settings, "epsilon": 1e-12})
    assert ours.item() == pytest.approx(between / x.var(), abs=1e-9)


def test_local_measures_with_one_patch_are_the_global_ones(pair):
    patch = {"patch": 18, "bins": 8, "shifted": False}
    torch.testing.assert_close(s.local_mutual_information(*pair, **patch), s.mutual_information(*pair, bins=8))
    torch.testing.assert_close(s.local_correlation_ratio(*pair, **patch), s.correlation_ratio(*pair, bins=8))


def test_local_information_is_the_mean_over_patches(textured):
    fixed, moved = textured((8, 12), 1), textured((8, 12), 2)
    parts = [
        s.mutual_information(fixed[..., i : i + 4, j : j + 4], moved[..., i : i + 4, j : j + 4], bins=6)
        for i in (0, 4)
        for j in (0, 4, 8)
    ]
    ours = s.local_mutual_information(fixed, moved, patch=4, bins=6, shifted=False)
    torch.testing.assert_close(ours, torch.stack(parts).mean())


def test_mind_ssc_by_loops():
    """Every descriptor of a small image from its definition, voxel by voxel."""
    generator = np.random.default_rng(0)
    image = generator.random((6, 5, 7))
    size, radius, dilation = image.shape, 1, 2
    faces = [tuple(sign if a == axis else 0 for a in range(3)) for axis in range(3) for sign in (-1, 1)]
    pairs = [(a, b) for a, b in itertools.combinations(faces, 2) if sum(p * q for p, q in zip(a, b, strict=True)) == 0]

    def at(point):
        return image[tuple(min(max(p, 0), n - 1) for p, n in zip(point, size, strict=True))]

    def difference(point, a, b):
        ends = ([p + dilation * q for p, q in zip(point, offset, strict=True)] for offset in (a, b))
        return (at(next(ends)) - at(next(ends))) ** 2

    distances = np.zeros((12, *size))
    for k, (a, b) in enumerate(pairs):
        for x in np.ndindex(*size):
            patch = [
                difference([min(max(p + o, 0), n - 1) for p, o, n in zip(x, offset, size, strict=True)], a, b)
                for offset in itertools.product((-radius, 0, radius), repeat=3)
            ]
            distances[(k, *x)] = np.mean(patch)
    distances -= distances.min(0)
    variance = distances.mean(0)
    variance = np.clip(variance, 1e-3 * variance.mean(), 1e3 * variance.mean())
    expected = np.exp(-distances / variance)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 3e-5)):
        ours = s.mind_ssc(torch.tensor(image, dtype=dtype)[None, None], radius, dilation)[0]
        np.testing.assert_allclose(ours.numpy(), expected, atol=tolerance)


def test_mind_ssc_has_four_pairs_in_the_plane(textured):
    assert s.mind_ssc(textured((9, 8))).shape == (1, 4, 9, 8)
    assert s.mind_ssc(textured((9, 8, 7))).shape == (1, 12, 9, 8, 7)


def test_mind_2012_is_that_of_scipy(textured):
    image = textured((9, 8, 7))
    x = image[0, 0].numpy()
    distances = []
    for axis in range(3):
        for sign in (-1, 1):
            padded = np.pad(x, 1, mode="edge")
            window = [slice(1, -1)] * 3
            window[axis] = slice(0, -2) if sign < 0 else slice(2, None)
            square = (padded[tuple(window)] - x) ** 2
            distances.append(scipy.ndimage.gaussian_filter(square, 0.5, mode="nearest", radius=2))
    distances = np.stack(distances)
    variance = distances.mean(0)
    expected = np.exp(-distances / np.clip(variance, 1e-3 * variance.mean(), 1e3 * variance.mean()))
    np.testing.assert_allclose(s.mind(image)[0].numpy(), expected / expected.max(0), atol=1e-9)


def test_ngf_of_planes_is_their_angle():
    # Gradients (1, 0) and (cos t, sin t) everywhere, of equal size: 1 - cos^2 t (1/2)^2 with eta = |grad|.
    i, j = torch.meshgrid(*[torch.arange(9.0, dtype=torch.float64)] * 2, indexing="ij")
    angle = 0.4
    tilted = np.cos(angle) * i + np.sin(angle) * j
    ours = s.ngf(i[None, None], tilted[None, None])
    assert ours.item() == pytest.approx(1 - (np.cos(angle) / 2) ** 2, abs=1e-9)


def test_ngf_takes_gradients_in_millimetres():
    # The same two planes, on a grid of voxels of 1 x 2.5 mm.
    i, j = torch.meshgrid(torch.arange(9.0, dtype=torch.float64), 2.5 * torch.arange(7.0).double(), indexing="ij")
    tilted = np.cos(0.4) * i + np.sin(0.4) * j
    ours = s.ngf(i[None, None], tilted[None, None], spacing=(1.0, 2.5))
    assert ours.item() == pytest.approx(1 - (np.cos(0.4) / 2) ** 2, abs=1e-9)


def test_features_by_cosine_is_that_of_torch():
    first, second = torch.rand(2, 2, 6, 5, 4, 3, dtype=torch.float64)
    expected = 1 - torch.nn.functional.cosine_similarity(first, second, dim=1).mean()
    torch.testing.assert_close(s.feature_distance(first, second, measure="cosine"), expected)
    mean = [x - x.mean(1, keepdim=True) for x in (first, second)]
    expected = 1 - torch.nn.functional.cosine_similarity(*mean, dim=1).mean()
    torch.testing.assert_close(s.feature_distance(first, second, measure="correlation"), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("measure", "millimetres", "voxels"),
    [
        (s.lncc, {"radius_mm": 4.0}, {"radius": (4, 2, 1)}),
        (s.mind_distance, {"dilation_mm": 4.0, "radius": 1}, {"dilation": (4, 2, 1), "radius": 1}),
        (s.local_mutual_information, {"patch_mm": 8.0}, {"patch": (8, 4, 2)}),
        (s.local_correlation_ratio, {"patch_mm": 8.0}, {"patch": (8, 4, 2)}),
    ],
)
def test_windows_in_millimetres(pair, measure, millimetres, voxels):
    spacing = (1.0, 2.0, 4.0)
    ours = measure(*pair, spacing=spacing, **millimetres)
    torch.testing.assert_close(ours, measure(*pair, **voxels))


def test_a_gaussian_in_millimetres_is_that_of_scipy(pair):
    sigmas, radii = (2.0, 1.0, 0.5), (8, 4, 2)
    ones = np.ones(pair[0].shape[2:])

    def total(x):
        return scipy.ndimage.gaussian_filter(x, sigmas, mode="constant", radius=radii)

    f, w = (image[0, 0].numpy() for image in pair)
    mean = {name: total(x) / total(ones) for name, x in {"f": f, "w": w, "fw": f * w, "ff": f * f, "ww": w * w}.items()}
    variances = (mean["ff"] - mean["f"] ** 2) * (mean["ww"] - mean["w"] ** 2)
    expected = 1 - ((mean["fw"] - mean["f"] * mean["w"]) ** 2 / (variances + 1e-8)).mean()
    ours = s.lncc_gaussian(*pair, sigma_mm=2.0, spacing=(1.0, 2.0, 4.0))
    assert ours.item() == pytest.approx(expected, abs=1e-9)
