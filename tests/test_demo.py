"""The demonstration: an exact truth, a fair pair, the right exit code."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from verimorph import demo
from verimorph.errors import MissingExtraError
from verimorph.evaluate.consistency import endpoint_error
from verimorph.field import sample
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.transform import Affine, Composite, identity

pytest.importorskip("nilearn", reason="pip install 'verimorph[demo]'")


@pytest.fixture(scope="module")
def pair() -> demo.KnownPair:
    """The pair of the demonstration, its fixed image at every second voxel along each axis: an eighth of the work."""

    def thin(image: Image) -> Image:
        grid = Grid(tuple((n + 1) // 2 for n in image.grid.shape), image.grid.affine @ np.diag([2.0, 2.0, 2.0, 1.0]))
        return Image.from_array(np.ascontiguousarray(image.array[::2, ::2, ::2]), grid, name=image.name)

    whole = demo.template()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "template", lambda: tuple(thin(image) for image in whole))
        patch.setattr(demo, "MOVING_SPACING_MM", (2.0, 2.0, 2.4))
        return demo.make_pair(seed=0)


def test_template_is_the_brain_and_a_margin():
    fixed, brain = demo.template()
    assert fixed.grid == brain.grid
    ends = [np.flatnonzero(brain.array.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    assert all(e[0] <= 12 and n - 1 - e[-1] <= 12 for e, n in zip(ends, brain.grid.shape, strict=True))
    assert sum(e[0] == 12 for e in ends) >= 2  # the template itself ends below the brain stem
    assert 1.2e6 < brain.array.sum() * brain.grid.voxel_volume < 2.2e6  # mm^3
    assert (
        np.abs(fixed.grid.index_to_world(np.argwhere(brain.array > 0)[::50]).mean(0)).max() < 30
    )  # near the MNI origin


def values_at(image, points: np.ndarray) -> np.ndarray:
    index = torch.from_numpy(image.grid.world_to_index(points).T.astype(np.float32)).reshape(1, 3, -1, 1, 1)
    return sample(image.tensor(), index).ravel().numpy()


def brain_points(pair: demo.KnownPair, every: int = 13) -> np.ndarray:
    return pair.brain.grid.index_to_world(np.argwhere(pair.brain.array > 0)[::every])


def test_pair_is_as_hard_as_it_says(pair):
    bend, linear = pair.truth.parts
    points = brain_points(pair)
    assert np.linalg.norm(bend.map_points(points) - points, axis=1).mean() >= 5.0
    assert linear.decompose().rotation_degrees == pytest.approx(15, abs=1e-6)
    assert max(linear.decompose().scales) == pytest.approx(1.1)
    assert not pair.moving.grid.is_close(pair.fixed.grid)
    assert pair.moving.grid.contains(pair.truth.map_points(points)).all()
    assert pair.truth.jacobian_determinant(pair.fixed.grid.resized((40, 40, 40))).min() > 0.2


def test_truth_aligns_the_two_images(pair):
    """The moving image read at the true place shows the fixed image through one curve of grey values."""
    points = brain_points(pair)
    fixed = pair.fixed.array[pair.brain.array > 0][::13].astype(float)
    order = np.argsort(fixed, kind="stable")

    def unexplained(transform) -> float:
        """Share of the moving grey values' spread that no curve over the fixed grey values explains."""
        moving = values_at(pair.moving, transform.map_points(points))[order]
        bins = np.array_split(moving, 40)
        return sum(((b - b.mean()) ** 2).sum() for b in bins) / ((moving - moving.mean()) ** 2).sum()

    shift = np.eye(4)
    shift[:3, 3] = 1.0, 1.0, 0
    assert unexplained(pair.truth) < 0.35  # noise and uneven brightness
    assert unexplained(pair.truth) < 0.7 * unexplained(Composite([pair.truth, Affine(shift)]))
    assert unexplained(pair.truth) < 0.5 * unexplained(identity(3))


def test_true_error_of_a_known_slip_is_its_length(pair):
    shift = np.eye(4)
    shift[:3, 3] = 0, 3, 4
    small = replace(
        pair.brain, loader=lambda: (np.arange(pair.brain.grid.size) % 977 == 0).reshape(pair.brain.grid.shape)
    )
    found = demo.true_error(Composite([pair.truth, Affine(shift)]), pair.truth, small)
    assert found == pytest.approx({"mean": 5.0, "median": 5.0, "p95": 5.0, "max": 5.0})
    assert endpoint_error(pair.truth, pair.truth, grid=small.grid, mask=small.array).max() == 0


def test_missing_nilearn_names_the_extra(monkeypatch):
    monkeypatch.setattr(demo, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'verimorph\[demo\]'"):
        demo.template()
