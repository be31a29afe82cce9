"""What is reported of an uncertainty beside the truth, and its pictures."""

from __future__ import annotations

import json

import matplotlib
import numpy as np
import pytest
from scipy import ndimage, stats

from verimorph.uncertainty import metrics, plots
from verimorph.uncertainty.output import figures
from verimorph.uncertainty.scoring import score_bound, score_label_uncertainty


@pytest.fixture(scope="module")
def errors():
    """Lengths of Gaussian errors with a known spread a voxel, mm; the right bound at 90 %; four regions."""
    random = np.random.default_rng(1)
    spread = random.uniform(0.3, 3.0, 20_000)
    error = np.linalg.norm(random.normal(size=(20_000, 3)) * spread[:, None] / np.sqrt(3), axis=1)
    return error, spread * stats.chi.ppf(0.9, 3) / np.sqrt(3), spread, random.integers(0, 4, 20_000)


@pytest.fixture(scope="module")
def scored(errors):
    error, bound, spread, regions = errors
    return score_bound(error, bound, level=0.9, spread_mm=spread, groups=regions)


@pytest.fixture(scope="module")
def labels():
    """Two nested boxes, moved one voxel; the uncertainty is high on the borders of the moved map."""
    fixed = np.zeros((40, 40, 24), np.int16)
    fixed[8:28, 8:28, 6:18] = 1
    fixed[14:22, 14:22, 9:15] = 2
    moved = np.roll(fixed, 1, 0)
    border = ndimage.morphological_gradient(moved, 3) > 0
    return fixed, moved, ndimage.gaussian_filter(border.astype(float), 0.7)


def test_a_right_bound_is_found_right(scored):
    assert scored["n"] == 20_000
    assert scored["coverage"] == pytest.approx(0.9, abs=0.01)
    assert scored["factor_for_level"] == pytest.approx(1.0, abs=0.02)
    assert scored["conditional_coverage_gap"] < 0.02
    assert scored["displacement_std"]["ence"] < 0.05
    promised = scored["curves"]["gaussian"]
    np.testing.assert_allclose(promised["coverage"], promised["level"], atol=0.015)
    assert [row["group"] for row in scored["regions"]] == [0, 1, 2, 3]
    assert all(abs(row["gap"]) < 0.02 for row in scored["regions"])
    json.dumps(scored)


def test_bound_and_spread_of_one_order_rank_alike(scored, errors):
    assert scored["ranking"]["bound"] == pytest.approx(scored["ranking"]["displacement_std"])
    assert scored["ranking"]["bound"]["auroc"] == metrics.auroc(errors[1], errors[0] > 2)
    assert scored["large_error_percent"] == 100 * (errors[0] > 2).mean()


def test_missing_values_are_counted_and_left_out(errors):
    error, bound, spread, regions = (values[:100].astype(float) for values in errors)
    bound[:10] = np.nan
    found = score_bound(error, bound, level=0.9, spread_mm=spread, groups=regions)
    assert (found["n"], found["n_missing"]) == (90, 10)
    assert found["coverage"] == metrics.coverage(error[10:], bound[10:])
    assert sum(row["n"] for row in found["regions"]) == 90


def test_label_errors_are_looked_for_near_the_labels(labels):
    fixed, moved, uncertainty = labels
    found = score_label_uncertainty(fixed, moved, uncertainty, spacing=(1.0, 1.0, 1.0), band_mm=3.0)
    assert found["whole"]["n"] == fixed.size
    assert found["whole"]["wrong_percent"] == 100 * (fixed != moved).mean()
    near = ndimage.distance_transform_edt(~((fixed > 0) | (moved > 0))) <= 3.0
    assert found["band"]["n"] == near.sum()
    assert found["band"]["auroc"] == pytest.approx(metrics.auroc(uncertainty[near], (fixed != moved)[near]))
    # over the whole volume the easy background makes the same map look better
    assert found["whole"]["auroc"] > found["band"]["auroc"] > 0.5
    two = found["per_label"][1]
    near = ndimage.distance_transform_edt(~((fixed == 2) | (moved == 2))) <= 3.0
    wrong = (fixed == 2) != (moved == 2)
    assert (two["label"], two["n"]) == (2, near.sum())
    assert two["average_precision"] == pytest.approx(metrics.auprc(uncertainty[near], wrong[near]))
    json.dumps(found)


def test_anisotropic_bands_are_in_millimetres(labels):
    fixed, moved, uncertainty = labels
    thick = score_label_uncertainty(fixed, moved, uncertainty, spacing=(1.0, 1.0, 4.0), band_mm=3.0)
    thin = score_label_uncertainty(fixed, moved, uncertainty, spacing=(1.0, 1.0, 1.0), band_mm=3.0)
    assert thick["band"]["n"] < thin["band"]["n"]


def test_chosen_labels_and_labels_nowhere(labels):
    fixed, moved, uncertainty = labels
    found = score_label_uncertainty(fixed, moved, uncertainty, spacing=(1.0, 1.0, 1.0), labels=[2, 9])
    assert [row["label"] for row in found["per_label"]] == [2]
    assert found["whole"]["wrong_percent"] == 100 * ((fixed == 2) != (moved == 2)).mean()
    empty = score_label_uncertainty(fixed, moved, uncertainty, spacing=(1.0, 1.0, 1.0), labels=[9])
    assert empty["band"]["n"] == 0
    assert np.isnan(empty["band"]["auroc"])


def every_figure(scored, labels):
    curves = scored["curves"]
    order = dict(curves["sparsification"])
    removed, oracle = order.pop("removed"), order.pop("oracle")
    lines = curves["reliability"]
    rows = score_label_uncertainty(*labels, spacing=(1.0, 1.0, 1.0))["per_label"]
    return {
        "coverage": plots.coverage_figure(
            {"Gaussian": tuple(curves["gaussian"].values())},
            point=(0.9, scored["coverage"]),
            scaled=tuple(curves["scaled"].values()),
        ),
        "reliability": plots.reliability_figure(*lines.values(), predicted_name="bound, mm", observed_name="error, mm"),
        "sparsification": plots.sparsification_figure(removed, oracle, order),
        "regions": plots.region_figure(scored["regions"], level=0.9, names={1: "liver"}),
        "labels": plots.label_figure(rows),
    }


def test_pictures_say_what_they_show_and_leave_the_session_alone(scored, labels, tmp_path):
    before = dict(matplotlib.rcParams), matplotlib.get_backend()
    for name, figure in every_figure(scored, labels).items():
        file = plots.save(figure, tmp_path / f"{name}.png")
        assert file.read_bytes().startswith(b"\x89PNG")
        assert all(axis.get_xlabel() or axis.get_ylabel() for axis in figure.axes), name
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == before


def test_pictures_do_not_hang_on_the_order_of_a_document(scored, labels):
    found = score_label_uncertainty(*labels, spacing=(1.0, 1.0, 1.0))
    document = {"level": 0.9, "transform": scored, "labels": found}
    sorted_anew = json.loads(json.dumps(document, sort_keys=True))
    for (name, one), (_, other) in zip(figures(document), figures(sorted_anew), strict=True):
        lines = [[line.get_xydata() for axis in figure.axes for line in axis.lines] for figure in (one, other)]
        key = [sorted(values.tolist() for values in own) for own in lines]  # which is drawn first is for the order
        np.testing.assert_equal(*key, err_msg=name)


def test_the_picture_of_the_same_numbers_is_the_same_file(scored, labels, tmp_path):
    for n in range(2):
        plots.save(every_figure(scored, labels)["regions"], tmp_path / f"{n}.svg")
    assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()


def test_bars_mark_regions_that_miss_the_level(scored):
    rows = [{**scored["regions"][0], "group": g, "coverage": c, "gap": c - 0.9} for g, c in ((1, 0.95), (2, 0.6))]
    left = plots.region_figure(rows, level=0.9, names={2: "liver"}).axes[0]
    assert [text.get_text() for text in left.get_yticklabels()] == ["2 liver", "1"]
    missed, held = (bar.get_facecolor() for bar in left.patches)
    assert missed != held
    many = [{**rows[0], "group": g} for g in range(100)]
    assert len(plots.region_figure(many, level=0.9).axes[0].patches) == plots.MOST_REGIONS
