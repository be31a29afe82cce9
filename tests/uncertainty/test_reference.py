"""Results that were not made by the defaults are bounded by one that was; masks and dimensions are minded."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from verimorph import pipeline
from verimorph.errors import OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.registration import Registration, plan, register
from verimorph.transform import Affine, chain
from verimorph.uncertainty.assess import assess
from verimorph.uncertainty.bound import calibrate, read_calibration
from verimorph.uncertainty.cases import Points
from verimorph.uncertainty.known import KnownPair, anatomy
from verimorph.uncertainty.reference import by_defaults, distance_between


@pytest.fixture(scope="module")
def usual(pair: KnownPair) -> Registration:
    return register(fixed=pair.fixed, moving=pair.moving, uncertainty=True)


def errors(found: Registration, pair: KnownPair) -> tuple[np.ndarray, np.ndarray]:
    """True errors and bounds over the anatomy, mm."""
    assert found.uncertainty is not None
    inside = anatomy(found.fixed, None)
    points = found.fixed.grid.index_to_world(np.argwhere(inside))
    away = np.linalg.norm(found.transform.map_points(points) - pair.truth.map_points(points), axis=1)
    return away, found.uncertainty.error_mm.array[inside]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({}, True),
        ({"similarity": "lncc"}, True),
        ({"initial": "centre", "seed": 5, "winsorise": None, "bias_correction": True}, True),
        ({"restrict": (True, True, False)}, True),
        ({"quality": "fast"}, False),
        ({"quality": "best"}, False),
        ({"similarity": "mi"}, False),
        ({"similarity": "lncc:radius=4"}, False),
        ({"symmetric": True}, False),
        ({"transform": "affine"}, False),
        ({"stages": ("deformable",)}, False),
        ({"levels": (4,), "iterations": (10,)}, False),
        ({"regularity": "diffusion:weight=1"}, False),
    ],
)
def test_what_counts_as_made_by_the_defaults(options, same):
    assert by_defaults(pipeline.describe(pipeline.make_recipe(**options))) is same


def test_a_network_and_a_refined_one_are_not_made_by_the_defaults():
    assert not by_defaults({"transform": "deformable", "start": "none", "seed": 0})
    refined = {"transform": "deformable", "refinement": pipeline.describe(pipeline.make_recipe()), "seed": 0}
    assert not by_defaults(refined)


def test_distances_are_those_of_the_points():
    grid = Grid((5, 4, 3), np.diag([2.0, 1.0, 3.0, 1.0]))
    shift = np.eye(4)
    shift[:3, 3] = (1, 2, -2)
    away = distance_between(Affine(shift), Affine(np.eye(4)), grid)
    assert away.shape == grid.shape
    assert torch.allclose(away, torch.full(grid.shape, 3.0))


@pytest.mark.parametrize(
    "options", [{"transform": "rigid"}, {"transform": "affine"}, {"similarity": "mse", "quality": "fast"}]
)
def test_a_result_of_another_kind_keeps_within_its_bound(pair: KnownPair, usual: Registration, options):
    found = register(fixed=pair.fixed, moving=pair.moving, uncertainty=True, **options)
    away, bound = errors(found, pair)
    assert (away <= bound).mean() > 0.9
    assert found.uncertainty is not None
    assert usual.uncertainty is not None
    # The law: the bound of the reference and the way to it, here between voxels of the grid of the evidence.
    own = usual.uncertainty.error_mm.array
    apart = distance_between(found.transform, usual.transform, found.fixed.grid).numpy()
    inside = anatomy(found.fixed, None)
    assert np.allclose((found.uncertainty.error_mm.array - own)[inside], apart[inside], atol=0.02, rtol=0.02)
    summary = found.metrics["uncertainty"]
    assert summary["reference_away_mm"] == pytest.approx(float(np.median(apart[inside])), rel=0.02)
    assert "not made by the defaults" in summary["calibrated_for"]


def test_the_bound_of_the_defaults_is_their_own(usual: Registration, pair: KnownPair):
    assert usual.uncertainty is not None
    assert usual.uncertainty.reference_away_mm is None
    assert "reference_away_mm" not in usual.metrics["uncertainty"]
    assert "not made by" not in usual.uncertainty.calibrated_for


def test_a_result_outside_the_bound_of_the_defaults_does_not_pass(usual: Registration):
    far = np.eye(4)
    far[:3, 3] = 4
    found = replace(usual, transform=Affine(far), inverse=Affine(np.linalg.inv(far)), settings={"seed": 0})
    sure = assess(found)
    assert sure.verdict != "pass"
    assert float(np.median(sure.error_mm.array[anatomy(found.fixed, None)])) > 4


def test_the_verdict_is_the_same_at_every_level(usual: Registration):
    """A result between the 50 % and the 95 % bound of the defaults is not in review at one level, passed at another."""
    inside = anatomy(usual.fixed, None)
    low, high = (float(np.median(assess(usual, level=q).error_mm.array[inside])) for q in (0.5, 0.95))
    shift = np.eye(4)
    shift[:3, 3] = math.sqrt(low * high / 3)
    found = replace(usual, transform=chain([Affine(shift), usual.transform]), settings={"seed": 0})
    verdicts = [assess(found, level=q) for q in (0.5, 0.95)]
    assert low < verdicts[0].reference_away_mm < high
    assert verdicts[0].verdict == verdicts[1].verdict
    assert verdicts[0].reasons == verdicts[1].reasons


def test_nothing_is_promised_where_a_mask_kept_the_images_apart(pair: KnownPair):
    mask = np.zeros(pair.fixed.grid.shape, np.uint8)
    mask[:, :24] = 1
    labels = np.zeros(pair.moving.grid.shape, np.uint8)
    labels[15:25, 10:18, 14:22] = 1
    labels[15:25, 28:34, 14:22] = 2
    found = register(
        fixed=pair.fixed,
        moving=pair.moving,
        fixed_mask=pair.fixed.with_array(mask),
        moving_labels=pair.moving.with_array(labels),
        uncertainty=True,
    )
    sure = found.uncertainty
    assert sure is not None
    assert sure.label_uncertainty is not None
    for values in (sure.error_mm.array, sure.label_uncertainty.array):
        assert np.isfinite(values[mask > 0]).all()
        assert np.isnan(values[mask == 0]).all()
    assert set(sure.volumes) == {1}  # most of 2 is hidden
    assert np.isfinite([found.metrics["uncertainty"][key] for key in ("median_mm", "p95_mm")]).all()


def test_a_moving_mask_hides_what_is_sent_outside_it(pair: KnownPair, usual: Registration):
    mask = np.zeros(pair.moving.grid.shape, np.uint8)
    mask[:, :24] = 1
    found = replace(usual, moving_mask=pair.moving.with_array(mask), uncertainty=None)
    sure = assess(found)
    there = usual.transform.map_points(usual.fixed.grid.index_to_world(np.indices(mask.shape).reshape(3, -1).T))
    column = pair.moving.grid.world_to_index(there)[:, 1].reshape(mask.shape)
    hidden = np.isnan(sure.error_mm.array)
    assert hidden[column > 25].all()
    assert not hidden[(column < 22) & anatomy(usual.fixed, None)].any()


def test_nothing_is_promised_where_the_reference_was_not_compared(pair: KnownPair, usual: Registration):
    """A result that is sent into the moving mask where the reference is sent outside it."""
    mask = np.zeros(pair.moving.grid.shape, np.uint8)
    mask[:, :24] = 1
    shift = np.eye(4)
    shift[1, 3] = -16.0  # eight voxels
    found = replace(
        usual,
        transform=Affine(shift),
        inverse=Affine(np.linalg.inv(shift)),
        moving_mask=pair.moving.with_array(mask),
        settings={"seed": 0},
        uncertainty=None,
    )
    hidden = np.isnan(assess(found).error_mm.array)
    assert hidden[:, 30].mean() > 0.9  # sent to 22, within the mask
    assert not hidden[:, 18][anatomy(usual.fixed, None)[:, 18]].any()


def test_a_mask_does_not_make_another_kind_of_an_image(pair: KnownPair, usual: Registration):
    mask = np.zeros(pair.fixed.grid.shape, np.uint8)
    mask[:, :26] = 1
    half = register(
        fixed=pair.fixed, moving=pair.moving, fixed_mask=pair.fixed.with_array(mask), uncertainty=True
    ).uncertainty
    assert half is not None
    assert usual.uncertainty is not None
    assert half.calibration == usual.uncertainty.calibration


@pytest.fixture(scope="module")
def slice_pair() -> tuple[Image, Image]:
    random = np.random.default_rng(1)
    plane = ndimage.gaussian_filter(random.standard_normal((90, 80)), 3)
    disc = np.hypot(*(np.indices(plane.shape) - np.array([45, 40]).reshape(2, 1, 1))) < 32
    values = np.where(disc, 100 + 200 * plane / np.abs(plane).max(), 0).astype(np.float32)
    grid = Grid(values.shape, np.eye(3))
    return Image.from_array(values, grid), Image.from_array(np.roll(values, 2, 0), grid)


def test_slices_have_a_calibration_of_their_own(slice_pair):
    flat = read_calibration("general", ndim=2)
    assert (flat.name, flat.ndim) == ("general-2d", 2)
    assert read_calibration("general-2d", ndim=2).digest == flat.digest  # as results call it
    assert read_calibration("general").ndim == 3
    fixed, moving = slice_pair
    found = register(fixed=fixed, moving=moving, uncertainty=True).uncertainty
    assert found is not None
    assert found.calibration.startswith("general-2d")
    with pytest.raises(OptionError, match="learned on 3-D images, these are 2-D"):
        register(fixed=fixed, moving=moving, uncertainty=True, calibration=read_calibration("general"))


def test_slices_and_volumes_are_not_calibrated_together():
    random = np.random.default_rng(0)

    def case(ndim: int) -> Points:
        x = np.exp(random.standard_normal((60, 2)))
        return Points(("forward 1", "stretch"), x, x[:, 0], np.ones(60, bool), "toy", ndim=ndim)

    with pytest.raises(OptionError, match="a calibration of their own"):
        calibrate([case(2), case(3), case(3)], name="toy", calibrated_for="")


def test_a_plan_counts_the_bound(pair: KnownPair):
    request = {"fixed": pair.fixed, "moving": pair.moving}
    plain, sure = plan(**request), plan(**request, uncertainty=True)
    assert plain.seconds < sure.seconds < 2 * plain.seconds
    linear = plan(**request, transform="rigid", uncertainty=True)
    assert linear.seconds > sure.seconds  # a registration by the defaults comes with it
    assert linear.memory_bytes == plain.memory_bytes
    with pytest.raises(OptionError, match="level is 5"):
        plan(**request, uncertainty=True, level=5)
