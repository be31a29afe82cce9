"""Target registration error, its summaries, and the three robustness figures called 30."""

from __future__ import annotations

import numpy as np
import pytest

from verimorph.errors import InputError, OptionError
from verimorph.evaluate import (
    robust30_hardest_entries,
    robust30_hardest_landmarks,
    robust30_quantile,
    summarise_errors,
    target_registration_error,
)
from verimorph.transform import Affine


def test_error_is_zero_for_the_true_transform_and_the_shift_for_identity(random):
    matrix = np.eye(4)
    matrix[:3, 3] = (3.0, -4.0, 12.0)
    fixed = random.uniform(-80, 80, (20, 3))
    moving = fixed + matrix[:3, 3]
    np.testing.assert_allclose(target_registration_error(fixed, moving), 13.0)
    np.testing.assert_allclose(target_registration_error(fixed, moving, Affine(matrix)), 0.0, atol=1e-9)
    back = matrix.copy()
    back[:3, 3] *= -1  # the wrong direction doubles the error
    np.testing.assert_allclose(target_registration_error(fixed, moving, Affine(back)), 26.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_field_shifts_a_fixed_landmark_along_its_own_axis(axis):
    import torch

    from verimorph.grid import Grid
    from verimorph.transform import DisplacementField

    grid = Grid((9, 9, 9), np.diag([2.0, 3.0, 5.0, 1.0]))
    field = torch.zeros(1, 3, 9, 9, 9)
    field[0, axis] = 1.0
    fixed = grid.index_to_world(np.array([[4.0, 4.0, 4.0]]))
    moving = fixed.copy()
    moving[0, axis] += grid.spacing[axis]
    np.testing.assert_allclose(target_registration_error(fixed, moving, DisplacementField(grid, field)), 0.0, atol=1e-5)


def test_summary_equals_numpy(random):
    errors = random.gamma(2.0, 1.0, 101)
    found = summarise_errors(np.append(errors, np.nan))
    assert (found["n"], found["n_missing"]) == (101, 1)
    assert found["mean"] == pytest.approx(errors.mean())
    assert found["median"] == pytest.approx(np.median(errors))
    assert found["p95"] == pytest.approx(np.percentile(errors, 95))
    assert found["max"] == errors.max()
    assert np.isnan(summarise_errors(np.array([np.nan]))["mean"])


def test_lists_that_do_not_correspond_are_refused():
    with pytest.raises(InputError, match="row by row"):
        target_registration_error(np.zeros((3, 3)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="2-D"):
        target_registration_error(np.zeros((3, 3)), np.zeros((3, 2)))


def test_quantile_version_turned_for_tre_and_sdlogj_but_not_for_hd95():
    cases = np.arange(11.0)
    assert robust30_quantile(cases, measure="dice") == 3.0
    assert robust30_quantile(cases, measure="hd95") == 3.0
    assert robust30_quantile(cases, measure="tre") == robust30_quantile(cases, measure="sdlogj") == 7.0
    assert robust30_quantile(cases, measure="tre", version="original") == 3.0
    with pytest.raises(OptionError):
        robust30_quantile(cases, measure="tre", version="2023")


def test_hardest_entries_are_chosen_by_the_initial_score_alone():
    initial = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6], [0.5, np.nan]])
    after = np.array([[0.5, 0.0], [0.6, 0.0], [0.7, 0.0], [0.8, 0.0], [0.9, 0.0]])
    # nine entries, the hardest 30 % are two: 0.1 and 0.2, whatever became of the others
    assert robust30_hardest_entries(after, initial) == pytest.approx(0.55)
    assert robust30_hardest_entries(after, -initial, higher_is_better=False) == pytest.approx(0.55)
    with pytest.raises(InputError):
        robust30_hardest_entries(after, np.full_like(initial, np.nan))


def test_tre30_takes_the_thirty_landmarks_farthest_before_registration():
    initial = np.arange(100.0)
    errors = np.where(initial >= 70, 2.0, 100.0)
    assert robust30_hardest_landmarks(errors, initial) == 2.0
    with pytest.raises(InputError, match="30 hardest"):
        robust30_hardest_landmarks(errors[:20], initial[:20])
