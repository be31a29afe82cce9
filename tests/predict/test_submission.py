"""Fields as the challenge takes them: names, shapes and types by its rules, and the way back.

The evaluator's side is written here anew from its published rules: SciPy's zoom and map_coordinates.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from verimorph.errors import InputError, OptionError, VerimorphWarning
from verimorph.grid import Grid
from verimorph.io import read_transform
from verimorph.predict import submission
from verimorph.predict.submission import TASKS_2020, Identity, Task2020
from verimorph.transform import Affine, DisplacementField, chain

NAMES = ("img0001.nii.gz", "img0004.nii.gz")


@pytest.fixture
def small_tasks(monkeypatch):
    """Task 3 with a sixth of its voxels along each axis; task 4 with a quarter."""
    small = {3: Task2020((32, 28, 40)), 4: Task2020((16, 16, 16), halved=False)}
    monkeypatch.setattr(submission, "TASKS_2020", small)
    return small


def smooth_field(shape, amplitude, seed=0):
    random = np.random.default_rng(seed)
    index = np.meshgrid(*[np.linspace(0, np.pi, n) for n in shape], indexing="ij")
    waves = [
        sum(np.cos(k * axis + random.uniform(0, 6)) for k, axis in zip((1, 2, 1), index, strict=True)) for _ in range(3)
    ]
    return np.stack(waves).astype(np.float32) * amplitude / 3


def as_transform(values, fixed, moving):
    """Voxels of the moving image: i + values(i), whatever the two grids are."""
    field = DisplacementField(fixed, torch.from_numpy(values)[None])
    return chain([field, Affine(moving.affine @ fixed.inverse_affine)])


def test_rules_of_2020_shapes():
    stored = {number: task.stored for number, task in TASKS_2020.items()}
    assert stored == {1: (3, 128, 128, 144), 2: (3, 96, 96, 104), 3: (3, 96, 80, 128), 4: (3, 64, 64, 64)}


@pytest.mark.parametrize("shape", [(32, 28, 40), (16, 16, 16)])
def test_files_of_2020_obey_the_rules_and_come_back(tmp_path, small_tasks, oblique_grid, shape):
    fixed, moving = oblique_grid(3, shape), oblique_grid(3, (15, 20, 25), seed=4)
    values = smooth_field(shape, 1.5)  # as steep as 9 voxels over a full-size image
    path = submission.write_field(
        as_transform(values, fixed, moving), tmp_path, fixed=fixed, moving=moving, names=NAMES, form="learn2reg-2020"
    )
    number = submission.task_of(fixed)
    assert path == tmp_path / f"task_{number:02d}" / "disp_0001_0004.npz"
    with np.load(path) as archive:
        assert archive.files == ["arr_0"]
        stored = archive["arr_0"]
    assert stored.dtype == np.float16
    assert stored.shape == small_tasks[number].stored
    # The evaluator: twice the size by splines of order 2, values as they are.
    full = stored.astype(np.float32)
    if small_tasks[number].halved:
        full = np.stack([ndimage.zoom(component, 2, order=2) for component in full])
    assert np.abs(full - values).max() < 0.05
    # And our own reader.
    back = read_transform(path, format="learn2reg", fixed=fixed, moving=moving)
    index = np.stack(np.meshgrid(*[np.arange(0, n, 3) for n in shape], indexing="ij"), -1).reshape(-1, 3)
    mapped = moving.world_to_index(back.map_points(fixed.index_to_world(index)))
    expected = index + values[(slice(None), *index.T)].T
    assert np.abs(mapped - expected).max() < 0.05


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("form", submission.FORMS)
def test_a_shifted_blob_comes_back_along_each_axis(tmp_path, small_tasks, oblique_grid, form, axis):
    # moving(p) = fixed(p - e): the evaluator must read the moving image one voxel further along that axis only.
    shape = small_tasks[3].shape
    grid = oblique_grid(3, shape, flip=True)
    index = np.indices(shape)
    centre = np.array([14, 12, 18]).reshape(3, 1, 1, 1)
    step = np.eye(3)[axis].reshape(3, 1, 1, 1)
    fixed = np.exp(-((index - centre) ** 2).sum(0) / 8)
    moving = np.exp(-((index - centre - step) ** 2).sum(0) / 8)
    shift = Affine(grid.affine @ _translation(np.eye(3)[axis]) @ grid.inverse_affine)
    path = submission.write_field(shift, tmp_path, fixed=grid, moving=grid, names=NAMES, form=form)
    if form == "learn2reg":
        assert path.name == "disp_0001_0000_0004_0000.nii.gz"
        stored = np.asarray(nib.load(path).dataobj)
        assert stored.shape == (*shape, 3)
        field = np.moveaxis(stored, -1, 0)
    else:
        with np.load(path) as archive:
            field = np.stack([ndimage.zoom(u.astype(np.float32), 2, order=2) for u in archive["arr_0"]])
    warped = ndimage.map_coordinates(moving, index + field, order=1)
    assert np.abs(warped - fixed).max() < 0.01
    assert np.abs(moving - fixed).max() > 0.2  # it had moved


def _translation(vector):
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


@pytest.mark.parametrize("suffix", [".nii.gz", ".npz"])
def test_todays_form_is_exact(tmp_path, oblique_grid, suffix):
    fixed, moving = oblique_grid(3, (9, 10, 11)), oblique_grid(3, (12, 8, 9), seed=2)
    values = smooth_field(fixed.shape, 3.0)
    path = submission.write_field(
        as_transform(values, fixed, moving), tmp_path, fixed=fixed, moving=moving, names=NAMES, suffix=suffix
    )
    back = read_transform(path, format="learn2reg", fixed=fixed, moving=moving)
    points = fixed.index_to_world(np.array([[4.0, 5.0, 6.0], [0.0, 9.0, 3.0]]))
    expected = as_transform(values, fixed, moving).map_points(points)
    np.testing.assert_allclose(back.map_points(points), expected, atol=1e-3)


def test_float16_range():
    field = np.zeros((3, 4, 4, 4), np.float32)
    field[0, 0, 0, 0] = 40.013  # steps of 1/32 there
    assert submission.narrowed(field).dtype == np.float16
    field[0, 0, 0, 0] = 300.1  # steps of 1/4
    with pytest.warns(VerimorphWarning, match="float16 changes displacements by up to"):
        submission.narrowed(field)
    field[0, 0, 0, 0] = 7e4
    with pytest.raises(InputError, match="65504"):
        submission.narrowed(field)
    field[0, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="not finite"):
        submission.narrowed(field)


def test_names():
    one, two = Identity.of("ThoraxCBCT_0001_0000.nii.gz"), Identity.of("ThoraxCBCT_0001_0001.nii.gz")
    assert submission.file_name(fixed=one, moving=two, form="learn2reg") == "disp_0001_0000_0001_0001.nii.gz"
    with pytest.raises(OptionError, match="did you mean 'learn2reg'"):
        submission.file_name(fixed=one, moving=two, form="lern2reg")
    for name in ("brain.nii.gz", "sub-01_T1w.nii.gz", "1000_t1_brain.nii.gz"):  # a contrast's number is no subject's
        with pytest.raises(InputError, match="numbers of the subjects"):
            Identity.of(name)


def test_another_shape_belongs_to_no_task(tmp_path):
    grid = Grid((10, 10, 10))
    with pytest.raises(InputError, match="belongs to no task"):
        submission.write_field(Affine(np.eye(4)), tmp_path, fixed=grid, moving=grid, names=NAMES, form="learn2reg-2020")
    assert not list(tmp_path.iterdir())
