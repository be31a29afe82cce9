"""Surface distances against the golden table, MONAI, SciPy, and analytic balls and boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist, directed_hausdorff

from verimorph.errors import InputError
from verimorph.evaluate import border_distances, dice_per_label, surface_distances, surface_distances_per_label
from verimorph.evaluate.surface import surface_element_areas


def ball(shape, centre, radius, spacing=(1.0, 1.0, 1.0)):
    index = np.indices(shape).reshape(len(shape), -1).T * np.array(spacing)
    return (np.linalg.norm(index - np.array(centre), axis=1) <= radius).reshape(shape)


@pytest.fixture(scope="module")
def balls():
    """Two balls of radius 8 with centres 3 voxels apart along axis 0."""
    return ball((40, 40, 40), (18, 20, 20), 8), ball((40, 40, 40), (21, 20, 20), 8)


@pytest.mark.parametrize(
    ("spacing", "hd", "hd95", "assd"), [((1.0, 1.0, 1.0), 3.0, 3.0, 1.41764), ((2.0, 1.0, 1.0), 6.0, 4.58258, 1.93975)]
)
def test_border_voxel_variant_reproduces_the_golden_table(balls, spacing, hd, hd95, assd):
    assert dice_per_label(*[b.astype(int) for b in balls])[1] == pytest.approx(0.72357, abs=5e-6)
    distances = border_distances(*balls, spacing=spacing)
    assert distances.hausdorff() == pytest.approx(hd, abs=1e-9)
    assert distances.hausdorff(95.0) == pytest.approx(hd95, abs=5e-6)
    assert distances.average() == pytest.approx(assd, abs=5e-6)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.7)])
def test_border_voxel_variant_equals_monai(balls, spacing):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    fixed, moved = (torch.from_numpy(b[None, None].astype(np.float32)) for b in balls)
    keywords = {"include_background": True, "spacing": list(spacing)}
    distances = border_distances(*balls, spacing=spacing)
    for percent in (95, 100):
        theirs = metrics.compute_hausdorff_distance(moved, fixed, percentile=percent, **keywords)
        assert distances.hausdorff(float(percent)) == pytest.approx(float(theirs), abs=1e-4)
    theirs = metrics.compute_average_surface_distance(moved, fixed, symmetric=True, **keywords)
    assert distances.average(pooled=True) == pytest.approx(float(theirs), abs=1e-4)


def test_area_weighted_elements_agree_with_monai_subvoxel_surface_dice(balls):
    torch = pytest.importorskip("torch")
    metrics = pytest.importorskip("monai.metrics")
    spacing = (2.0, 1.0, 0.7)
    fixed, moved = (torch.from_numpy(b[None, None].astype(np.float32)) for b in balls)
    for tolerance in (0.5, 1.0, 2.5):
        theirs = metrics.compute_surface_dice(
            moved, fixed, [tolerance], include_background=True, spacing=list(spacing), use_subvoxels=True
        )
        ours = surface_distances(*balls, spacing=spacing).surface_dice(tolerance)
        assert ours == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("ndim", [2, 3])
def test_distances_equal_brute_force_between_surface_elements(random, ndim):
    shape, spacing = (9, 8, 7)[:ndim], (1.5, 1.0, 0.8)[:ndim]
    fixed = ndimage.gaussian_filter(random.normal(size=shape), 1.2) > 0.02
    moved = np.roll(fixed, 1, axis=0) | (ndimage.gaussian_filter(random.normal(size=shape), 1.2) > 0.1)

    def elements(mask):
        padded = np.pad(mask, 1).astype(int)
        blocks = np.lib.stride_tricks.sliding_window_view(padded, (2,) * ndim).sum(axis=tuple(range(ndim, 2 * ndim)))
        return np.argwhere((blocks > 0) & (blocks < 2**ndim)) * np.array(spacing)

    between = cdist(elements(fixed), elements(moved))
    distances = surface_distances(fixed, moved, spacing=spacing)
    np.testing.assert_allclose(distances.fixed_to_moved, np.sort(between.min(1)), atol=1e-12)
    np.testing.assert_allclose(distances.moved_to_fixed, np.sort(between.min(0)), atol=1e-12)
    theirs = max(
        directed_hausdorff(elements(fixed), elements(moved))[0], directed_hausdorff(elements(moved), elements(fixed))[0]
    )
    assert distances.hausdorff(100.0) == pytest.approx(theirs, abs=1e-12)


def test_surface_area_of_a_ball_and_a_box_is_nearly_that_of_geometry():
    spacing = (1.0, 1.0, 2.0)
    mask = ball((60, 60, 30), (29.5, 29.5, 29.0), 22.0, spacing)
    area = surface_distances(mask, mask, spacing=spacing).fixed_areas.sum()
    # the midpoint polygons of a binary mask overestimate a curved surface by an eighth; voxel faces would by a half
    assert 1.05 < area / (4 * math.pi * 22.0**2) < 1.15
    box = np.zeros((30, 30, 30), bool)
    box[5:25, 5:25, 5:25] = True
    cube = surface_distances(box, box).fixed_areas.sum()
    assert cube == pytest.approx(6 * 20**2, rel=0.04)


def test_length_of_a_straight_contour_follows_the_spacing():
    strip = np.zeros((3, 40), bool)
    strip[1] = True
    length = surface_distances(strip, strip, spacing=(5.0, 2.0)).fixed_areas.sum()
    corner = 0.5 * math.hypot(5.0, 2.0)
    assert length == pytest.approx(2 * 39 * 2.0 + 4 * corner)


def test_element_areas_of_plain_patterns():
    areas = surface_element_areas((2.0, 3.0, 5.0))
    assert areas[0] == areas[255] == 0
    assert areas[0b11110000] == pytest.approx(3 * 5)  # a whole layer along axis 0: one face across it
    assert areas[0b11001100] == pytest.approx(2 * 5)
    assert areas[0b10101010] == pytest.approx(2 * 3)
    corner = 0.5 * np.linalg.norm(np.cross([-1, 1.5, 0], [-1, 0, 2.5]))
    assert areas[0b10000000] == pytest.approx(corner)
    np.testing.assert_allclose(areas, areas[::-1], atol=1e-12)  # a mask and its complement share the surface
    # the published table for unit spacing holds these areas so many times
    values, counts = np.unique(surface_element_areas((1.0, 1.0, 1.0)).round(4), return_counts=True)
    published = {0.0: 2, 0.2165: 16, 0.433: 32, 0.6495: 16, 0.7071: 24, 0.866: 2, 0.9236: 48, 1.0: 6, 1.1495: 48}
    published |= {1.299: 8, 1.366: 24, 1.4142: 6, 1.5731: 24}
    assert dict(zip(values, counts, strict=True)) == published


def test_shifted_ball_has_hausdorff_distance_of_the_shift(balls):
    distances = surface_distances(*balls, spacing=(1.0, 1.0, 1.0))
    assert distances.hausdorff(100.0) == 3.0
    assert 0 < distances.average() < 3.0
    assert distances.surface_dice(3.0) == 1.0
    assert 0 < distances.surface_dice(1.0) < 1.0


def test_anisotropic_spacing_equals_the_resampled_isotropic_shape():
    coarse = [ball((20, 40, 40), (c, 20, 20), 8, (2, 1, 1)) for c in (18, 24)]
    fine = [ball((40, 40, 40), (c, 20, 20), 8) for c in (18, 24)]
    ours, isotropic = surface_distances(*coarse, spacing=(2.0, 1.0, 1.0)), surface_distances(*fine)
    assert ours.hausdorff(95.0) == pytest.approx(isotropic.hausdorff(95.0), abs=1.0)
    assert ours.average() == pytest.approx(isotropic.average(), rel=0.05)
    assert surface_distances(*coarse).average() < 0.75 * isotropic.average()  # spacing forgotten: far too small


def test_labels_one_by_one_equal_labels_together_whatever_the_threads(random):
    fixed = ndimage.zoom(random.integers(0, 5, (4, 4, 4)), 5, order=0)
    moved = np.roll(fixed, (1, -2, 1), (0, 1, 2))
    spacing = (1.0, 1.5, 0.8)
    together = [surface_distances_per_label(fixed, moved, spacing=spacing, threads=n) for n in (1, 3)]
    for label in range(1, 5):
        alone = surface_distances(fixed == label, moved == label, spacing=spacing)
        for found in together:
            assert found[label].hausdorff(95.0) == alone.hausdorff(95.0)
            assert found[label].average() == alone.average()
            assert found[label].surface_dice(1.0) == alone.surface_dice(1.0)


def test_empty_masks():
    nothing, something = np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)
    for measure in (surface_distances, border_distances):
        assert math.isnan(measure(nothing, nothing).hausdorff(95.0))
        assert math.isnan(measure(nothing, nothing).average())
        assert measure(something, nothing).hausdorff(95.0) == math.inf
        assert measure(nothing, something).average() == math.inf
    assert surface_distances(something, nothing).surface_dice(100.0) == 0.0
    assert math.isnan(surface_distances(nothing, nothing).surface_dice(1.0))


def test_medpy_pools_and_monai_does_not():
    fixed, moved = np.zeros((1, 60), bool), np.zeros((1, 60), bool)
    fixed[0, 10:12] = True
    moved[0, 10:50] = True
    distances = border_distances(fixed, moved)
    pooled = np.concatenate([distances.fixed_to_moved, distances.moved_to_fixed])
    assert distances.hausdorff(95.0, pooled=True) == np.percentile(pooled, 95)
    assert distances.hausdorff(95.0) > distances.hausdorff(95.0, pooled=True)


def test_wrong_shapes_and_spacing_are_refused():
    mask = np.ones((4, 4, 4), bool)
    with pytest.raises(InputError, match="one grid"):
        surface_distances(mask, mask[:3])
    with pytest.raises(InputError, match="positive"):
        surface_distances(mask, mask, spacing=(1.0, 0.0, 1.0))


def test_percentile_and_average_weigh_elements_by_their_area():
    from verimorph.evaluate import SurfaceDistances

    distances = np.array([1.0, 2.0, 3.0])
    zero, one = np.zeros(1), np.ones(1)
    heavy_near = SurfaceDistances(distances, zero, np.array([96.0, 2.0, 2.0]), one)
    heavy_far = SurfaceDistances(distances, zero, np.array([1.0, 1.0, 98.0]), one)
    assert (heavy_near.hausdorff(95.0), heavy_near.hausdorff(97.0), heavy_near.hausdorff()) == (1.0, 2.0, 3.0)
    assert heavy_far.hausdorff(95.0) == 3.0
    assert heavy_far.directed_averages() == (pytest.approx(2.97), 0.0)
    assert heavy_far.average() == pytest.approx(2.97 / 2)
    assert heavy_far.average(pooled=True) == pytest.approx(297 / 101)
    assert heavy_near.surface_dice(1.5) == pytest.approx(97 / 101)
