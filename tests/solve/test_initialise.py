"""Starts: every named one does what it says; the search survives half turns and 300 mm."""

import numpy as np
import pytest
from tests.solve.phantom import centred_grid, linear_pair, point_error, turn, volume

from verimorph.errors import OptionError
from verimorph.solve import find_start, make_level, make_measure
from verimorph.solve.initialise import _leaders


def pair(ndim: int, truth: np.ndarray):
    grid = centred_grid((26,) * ndim, 4.0)
    moving = centred_grid((30,) * ndim, 4.0)
    # The moving image's field of view follows the body, as a scanner's does.
    affine = moving.affine.copy()
    affine[:ndim, ndim] += truth[:ndim, ndim]
    fixed, moved = linear_pair(grid, type(moving)(moving.shape, affine), truth)
    return make_level(fixed=fixed, moving=moved, shrink=1, spacing_mm=0.1)


@pytest.mark.parametrize("method", ["auto", "search"])
@pytest.mark.parametrize(
    ("angles", "shift"),
    [
        ((180.0, 0.0, 0.0), (10.0, -5.0, 3.0)),
        ((0.0, 0.0, 180.0), (0.0, 0.0, 0.0)),
        ((0.0, 0.0, 0.0), (300.0, 0.0, 0.0)),
    ],
)
def test_half_turns_and_300_mm_are_survived(method, angles, shift):
    truth = turn(angles, shift)
    level = pair(3, truth)
    matrix, _ = find_start(method, level=level, measure=make_measure("lncc"))
    assert point_error(matrix, truth, level.fixed.grid) < 3.0  # voxels are 4 mm


def test_search_survives_random_turns():
    rng = np.random.default_rng(3)
    errors = []
    for _ in range(5):
        truth = turn(tuple(rng.uniform(-180, 180, 3)), tuple(rng.uniform(-100, 100, 3)))
        level = pair(3, truth)
        matrix, _ = find_start("search", level=level, measure=make_measure("lncc"))
        errors.append(point_error(matrix, truth, level.fixed.grid))
    assert sorted(errors)[3] < 4.0


def test_two_dimensional_half_turn():
    truth = turn((170.0,), (20.0, -9.0))
    level = pair(2, truth)
    matrix, _ = find_start("auto", level=level, measure=make_measure("lncc"))
    assert point_error(matrix, truth, level.fixed.grid) < 2.0


def test_named_starts_are_what_they_say():
    grid = centred_grid((20, 20, 20), 2.0)
    values = np.zeros(grid.shape)
    values[4:8, 4:8, 4:8] = 1
    shifted = np.zeros(grid.shape)
    shifted[10:14, 4:8, 4:8] = 1
    level = make_level(fixed=volume(grid, values), moving=volume(grid, shifted), shrink=1, spacing_mm=0.1)
    measure = make_measure("mse")
    np.testing.assert_array_equal(find_start("header", level=level, measure=measure)[0], np.eye(4))
    np.testing.assert_allclose(find_start("centre", level=level, measure=measure)[0], np.eye(4), atol=1e-12)
    mass = find_start("centre-of-mass", level=level, measure=measure)[0]
    np.testing.assert_allclose(mass[:3, 3], [12, 0, 0], atol=1e-9)


def test_unknown_start_names_the_nearest():
    level = pair(2, np.eye(3))
    with pytest.raises(OptionError, match="did you mean 'moments'"):
        find_start("momens", level=level, measure=make_measure("lncc"))


@pytest.mark.parametrize("method", ["auto", "centre", "centre-of-mass"])
def test_frozen_axis_is_frozen_from_the_start(method):
    truth = turn((0.0, 0.0, 10.0), (20.0, -9.0, 14.0))
    level = pair(3, truth)
    matrix, _ = find_start(method, level=level, measure=make_measure("lncc"), free_axes=(True, True, False))
    np.testing.assert_allclose(matrix[2], [0, 0, 1, 0], atol=1e-9)
    assert abs(matrix[0, 3]) > 5


class Shaken:
    """A measure whose values are off by a few units of the sixth digit, as another processor's are."""

    name = "lncc"

    def __init__(self, seed: int) -> None:
        self.measure, self.random = make_measure("lncc"), np.random.default_rng(seed)

    def channels(self, moving):
        return self.measure.channels(moving)

    def prepare(self, fixed):
        prepared, random = self.measure.prepare(fixed), self.random

        class Prepared:
            def value_and_gradient(self, moved):
                value, gradient = prepared.value_and_gradient(moved)
                return value + 1e-5 * random.standard_normal(), gradient

        return Prepared()


def test_start_does_not_hang_on_last_digits():
    truth = turn((3.0, -2.0, 4.0), (6.0, -5.0, 3.0))
    level = pair(3, truth)
    names = {find_start("auto", level=level, measure=Shaken(seed))[1] for seed in range(6)}
    assert names == {"header"}


def test_of_level_starts_the_first_leads():
    matrix = np.eye(4)
    field = [(0.5005, "header", matrix), (0.5, "centre", matrix), (0.3, "moments", matrix), (0.9, "turn", matrix)]
    assert [name for _, name, _ in _leaders(field, 1, 1.0)] == ["moments"]
    assert [name for _, name, _ in _leaders(field, 2, 1.0)] == ["header", "moments"]
    assert [name for _, name, _ in _leaders(field, 9, 1.0)] == ["header", "centre", "moments", "turn"]
