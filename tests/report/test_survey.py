"""The coarse look: does it find the place that is wrong, and measure what it says?"""

import numpy as np
import torch
from scipy import ndimage

from verimorph.grid import Grid
from verimorph.report.survey import Survey, coarse, local_correlation, mutual_information


def test_coarse_keeps_where_things_are(random):
    grid = Grid((130, 70, 65), np.diag([1.0, 2.0, 2.0, 1.0]))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    ramp = torch.from_numpy(grid.index_to_world(index)[..., 0].astype(np.float32))[None, None]
    small, small_grid = coarse(ramp, grid)
    assert max(small_grid.shape) <= 64
    where = small_grid.index_to_world(np.argwhere(np.ones(small_grid.shape)))
    np.testing.assert_allclose(small[0, 0].numpy().ravel(), where[:, 0], atol=1e-4)


def test_local_correlation_is_that_of_the_box(random):
    first, second = random.normal(size=(2, 12, 13, 11))
    tensors = [torch.from_numpy(v.astype(np.float32))[None, None] for v in (first, second)]
    found, _ = local_correlation(*tensors, radius=2)
    box = tuple(slice(4, 9) for _ in range(3))
    expected = np.corrcoef(first[box].ravel(), second[box].ravel())[0, 1] ** 2
    np.testing.assert_allclose(float(found[0, 0, 6, 6, 6]), expected, atol=2e-3)


def test_mutual_information_of_equal_and_independent_values(random):
    values = random.uniform(size=40_000)
    assert abs(mutual_information(values, 1 - values) - 5.0) < 0.15  # 32 equally full bins: 5 bits
    assert mutual_information(values, random.uniform(size=40_000)) < 0.03


def test_worst_is_where_the_images_disagree(random):
    texture = ndimage.gaussian_filter(random.normal(size=(48, 48, 48)), 1.5) * 5 + 10
    wrong = texture.copy()
    block = (slice(30, 40), slice(8, 18), slice(20, 30))
    wrong[block] = ndimage.gaussian_filter(random.normal(size=(48, 48, 48)), 1.5)[block] * 5 + 10
    grid = Grid((48, 48, 48), np.diag([2.0, 2.0, 2.0, 1.0]))
    fixed, after = (torch.from_numpy(v.astype(np.float32))[None, None] for v in (texture, wrong))
    survey = Survey(grid, fixed, fixed, after, 0.0)
    assert np.abs(survey.worst - 2.0 * np.array([34.5, 12.5, 24.5])).max() <= 12
    assert survey.similarity()["local_correlation"]["before"] > survey.similarity()["local_correlation"]["after"]


def test_middle_is_that_of_the_anatomy_not_of_the_field_of_view():
    values = np.zeros((60, 60, 60), np.float32)
    values[5:25, 30:50, 10:30] = 100
    tensor = torch.from_numpy(values)[None, None]
    survey = Survey(Grid((60, 60, 60)), tensor, tensor, tensor, 0.0)
    np.testing.assert_allclose(survey.middle, [14.5, 39.5, 19.5], atol=1.5)
