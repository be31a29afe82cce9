"""Preparation: images lie on the model grid where the matrix says, and what comes back lies where it came from."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from verimorph.data.preparation import ABDOMEN_WINDOWS, Preparation
from verimorph.errors import InputError, OptionError
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_image


def ramp(grid: Grid) -> Image:
    """World coordinates weighted 1, 2, 3: linear, so any linear interpolation is exact."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    world = grid.index_to_world(index.reshape(-1, grid.ndim))
    return Image.from_array((world @ np.arange(1.0, grid.ndim + 1)).reshape(grid.shape).astype(np.float32), grid)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_volume_reads_world_positions(oblique_grid, ndim, flip):
    image = ramp(oblique_grid(ndim, (19, 17, 15)[:ndim], flip=flip))
    prepared = Preparation(shape=(5, 4, 3)[:ndim], spacing_mm=0.5, intensity="none")
    matrix = prepared.index_to_world(image)
    index = np.stack(np.meshgrid(*[np.arange(n) for n in prepared.shape], indexing="ij"), -1).reshape(-1, ndim)
    world = index @ matrix[:ndim, :ndim].T + matrix[:ndim, ndim]
    expected = (world @ np.arange(1.0, ndim + 1)).reshape(prepared.shape)
    assert np.allclose(prepared.volume(image, matrix)[0].numpy(), expected, atol=1e-3)


def test_a_grid_that_cannot_fit_is_refused(oblique_grid):
    image = ramp(oblique_grid(3, (19, 17, 15)))
    for spacing, said in (
        (1e9, "mm long; give voxels smaller"),
        (1e-9, "lies within one voxel.*give a larger spacing"),
    ):
        with pytest.raises(OptionError, match=said):
            Preparation(shape=(5, 4, 3), spacing_mm=spacing).index_to_world(image)
    with pytest.raises(OptionError, match=r"shape is .* no computer has memory"):
        Preparation(shape=(100_000, 100_000, 16))


@pytest.mark.parametrize("code", ["LPS", "PSR", "RAS", "LAS"])
def test_axes_are_canonical_and_centred(code):
    shape = (10, 12, 14)
    turned = nib.orientations.axcodes2ornt(tuple(code))
    voxels = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    canonical = nib.Nifti1Image(voxels, np.diag([2.0, 2, 2, 1]))
    other = canonical.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), turned))
    image = Image.from_array(np.asarray(other.dataobj), other.affine)
    prepared = Preparation(shape=shape, spacing_mm=2.0, intensity="none")
    matrix = prepared.index_to_world(image)
    assert np.allclose(matrix, canonical.affine)
    assert np.allclose(prepared.volume(image, matrix)[0].numpy(), voxels, atol=1e-5)


@pytest.mark.parametrize("shape", [(39, 40, 41), (39, 40)])
@pytest.mark.parametrize("centre", ["image", "mass"])
@pytest.mark.parametrize("spacing_mm", [1.0, 2.0])
def test_labels_and_points_lie_on_their_image(shape, centre, spacing_mm):
    middle = (np.array(shape) - 1) / 2
    distance = ((np.moveaxis(np.indices(shape), 0, -1) - middle) ** 2).sum(-1)
    voxels = np.exp(-distance / 40).astype(np.float32)
    image, labels = Image.from_array(voxels), Image.from_array((distance <= 36).astype(np.uint8))
    prepared = Preparation(shape=tuple(40 for _ in shape), spacing_mm=spacing_mm, intensity="none", centre=centre)
    matrix = prepared.index_to_world(image)
    point = prepared.points(middle[None], matrix)[0].numpy()
    volume, marked = prepared.volume(image, matrix)[0].numpy(), prepared.labels(labels, matrix).numpy()
    # A coarser grid that is not symmetric about the object sees it unevenly, by a small part of a voxel.
    np.testing.assert_allclose(ndimage.center_of_mass(volume), point, atol=0.01)
    np.testing.assert_allclose(ndimage.center_of_mass(marked), point, atol=0.01 if spacing_mm == 1 else 0.1)
    if spacing_mm == 1:
        np.testing.assert_array_equal(volume[marked > 0], volume[volume >= volume[marked > 0].min()])
        assert volume.max() == voxels.max()


@pytest.mark.parametrize("code", ["LPS", "PSR", "SAL"])
@pytest.mark.parametrize(("shape", "spacing_mm"), [((11, 12, 13), 1.0), ((12, 12, 12), 0.5), ((7, 8, 7), 2.0)])
def test_how_a_file_stores_its_axes_changes_nothing(code, shape, spacing_mm, tmp_path):
    voxels = np.random.default_rng(0).integers(0, 4, (12, 11, 13)).astype(np.uint8)
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-7.3, 4.1, 100.7)
    stored = nib.Nifti1Image(voxels, affine)
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", code)))
    prepared = Preparation(shape=shape, spacing_mm=spacing_mm, intensity="minmax")
    found = []
    for name, form in (("RAS", stored), (code, stored.as_reoriented(turn))):
        nib.save(form, tmp_path / f"{name}.nii.gz")
        image = read_image(tmp_path / f"{name}.nii.gz")
        matrix = prepared.index_to_world(image)
        found.append((matrix, prepared.volume(image, matrix), prepared.labels(image, matrix)))
    (first, volume, labels), (second, same_volume, same_labels) = found
    np.testing.assert_allclose(first, second, atol=1e-4)
    torch.testing.assert_close(volume, same_volume, atol=1e-4, rtol=0)
    assert torch.equal(labels, same_labels)


def test_voxel_units_keep_the_voxels(oblique_grid):
    grid = oblique_grid(3, flip=True)
    image = Image.from_array(np.random.default_rng(1).normal(size=grid.shape).astype(np.float32), grid)
    prepared = Preparation(shape=(13, 13, 13), spacing_mm=None, intensity="none")
    matrix = prepared.index_to_world(image)
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    assert sorted(spacing.round(6)) == sorted(grid.spacing.round(6))
    assert np.isclose(sorted(prepared.volume(image, matrix)[0].flatten().tolist())[-1], image.array.max(), atol=1e-4)


def test_labels_there_and_back(oblique_grid):
    grid = oblique_grid(3, (12, 11, 10))
    labels = Image.from_array(np.random.default_rng(2).integers(0, 4, grid.shape), grid)
    prepared = Preparation(shape=(80, 80, 80), spacing_mm=0.4)
    matrix = prepared.index_to_world(labels)
    on_model = prepared.labels(labels, matrix)
    assert on_model.dtype == torch.int64
    back = prepared.labels_back(on_model, matrix, grid)
    assert (back.array == labels.array).mean() > 0.98
    scores = torch.nn.functional.one_hot(on_model, 4).movedim(-1, 0).float()
    soft = prepared.labels_back(scores, matrix, grid)
    assert (soft.array == labels.array).mean() > 0.95


def test_scores_outside_the_model_grid_are_background():
    grid = Grid((8, 8))
    prepared = Preparation(shape=(4, 4), spacing_mm=1.0)
    matrix = prepared.index_to_world(Image.from_array(np.zeros((8, 8)), grid))
    scores = torch.stack([-torch.ones(4, 4), torch.zeros(4, 4)])
    back = prepared.labels_back(scores, matrix, grid).array
    assert back.sum() == 16
    assert (back[2:6, 2:6] == 1).all()


def test_points_match_labels(oblique_grid):
    grid = oblique_grid(3, (15, 15, 15))
    voxels = np.zeros(grid.shape, np.uint8)
    voxels[9, 4, 6] = 1
    image = Image.from_array(voxels, grid)
    prepared = Preparation(shape=(50, 50, 50), spacing_mm=0.7)
    matrix = prepared.index_to_world(image)
    point = prepared.points(grid.index_to_world(np.array([[9, 4, 6]])), matrix)
    inside = torch.argwhere(prepared.labels(image, matrix) == 1).float()
    assert torch.allclose(point[0], inside.mean(0), atol=0.6)


def test_start_is_carried_into_the_moving_matrix(oblique_grid):
    image = Image.from_array(np.zeros((13, 11, 9)), oblique_grid(3))
    prepared = Preparation(shape=(8, 8, 8))
    fixed = prepared.index_to_world(image)
    start = np.eye(4)
    start[:3, 3] = 1, 2, 3
    assert np.allclose(prepared.index_to_world(image, start, fixed=fixed), start @ fixed)


def test_shrinking_does_not_alias():
    stripes = np.zeros((64, 64), np.float32)
    stripes[::2] = 1
    image = Image.from_array(stripes)
    prepared = Preparation(shape=(16, 16), spacing_mm=4.0, intensity="none")
    got = prepared.volume(image, prepared.index_to_world(image))[0].numpy()
    assert np.abs(got[2:-2, 2:-2] - 0.5).max() < 0.02
    sigma = np.sqrt(15) / 2.3548
    blurred = ndimage.gaussian_filter(stripes, sigma, truncate=3)
    expected = ndimage.map_coordinates(blurred, np.full((2, 1), 2 + 4 * 8), order=1)
    assert abs(got[8, 8] - expected[0]) < 1e-3


def test_zscore_is_estiennes():
    voxels = np.random.default_rng(0).gamma(2, 50, (20, 20)).astype(np.float32)
    voxels[:5] = 0
    voxels[10, 10] = 1e5
    got = Preparation(shape=(4, 4), intensity="zscore").intensities(voxels)[0].numpy()
    inside = voxels[voxels > 0].astype(float)
    expected = np.clip((voxels - inside.mean()) / inside.std(ddof=1), -5, 5)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    assert np.allclose(got, expected, atol=1e-5)


def test_windows_scale_by_their_nominal_bounds():
    prepared = Preparation(shape=(4, 4), intensity="windows", windows=ABDOMEN_WINDOWS)
    got = prepared.intensities(np.array([[-1000.0, 40.0], [240.0, 3000.0]]))
    assert prepared.channels == 3
    assert torch.allclose(got[0], torch.tensor([[0.0, 0.5], [1, 1]]))
    assert torch.allclose(got[2], torch.tensor([[0.0, 0.14], [0.34, 1]]))


@pytest.mark.parametrize("intensity", ["minmax", "percentile", "zscore"])
def test_intensities_are_within_zero_and_one(intensity, random):
    voxels = random.normal(100, 30, (30, 30)).astype(np.float32)
    got = Preparation(shape=(4, 4), intensity=intensity).intensities(voxels)
    assert got.min() == 0
    assert got.max() == 1
    assert not Preparation(shape=(4, 4), intensity=intensity).intensities(np.full((3, 3), 7.0)).any()


def test_mass_centre_follows_the_object():
    voxels = np.zeros((30, 30), np.float32)
    voxels[18:22, 4:8] = 10
    image = Image.from_array(voxels, np.diag([2.0, 3.0, 1.0]))
    prepared = Preparation(shape=(5, 5), spacing_mm=1.0, centre="mass")
    assert np.allclose(prepared.grid(prepared.index_to_world(image)).centre, [2 * 19.5, 3 * 5.5])


def test_atlas_brings_images_onto_one_grid(tmp_path):
    grid = Grid((32, 32), np.diag([2.0, 2.0, 1.0]))
    x, y = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")

    def body(cx: float, cy: float) -> np.ndarray:
        shape = ((x - cx) / 9) ** 2 + ((y - cy) / 6) ** 2
        return (100 * np.exp(-shape) + 60 * np.exp(-((x - cx - 4) ** 2 + (y - cy + 2) ** 2) / 6)).astype(np.float32)

    from verimorph.io import write_image

    write_image(Image.from_array(body(15, 16), grid), tmp_path / "atlas.nii.gz")
    prepared = Preparation(shape=(24, 24), spacing_mm=2.0, centre="atlas", atlas=str(tmp_path / "atlas.nii.gz"))
    moved = Image.from_array(body(18, 13), grid)
    matrix = prepared.index_to_world(moved, cache=tmp_path)
    atlas = read_image(tmp_path / "atlas.nii.gz")
    reference = prepared.index_to_world(atlas)
    assert np.allclose(matrix[:2, 2] - reference[:2, 2], [6, -6], atol=1.5)
    assert list(tmp_path.glob("affine-*.npy"))
    difference = prepared.volume(moved, matrix) - prepared.volume(atlas, reference)
    assert difference.abs().mean() < 0.02


def test_settings_survive_json_and_strangers_are_refused():
    prepared = Preparation(
        shape=(8, 8, 8), spacing_mm=(1, 1, 2.5), intensity="windows", windows=ABDOMEN_WINDOWS, centre="mass"
    )
    assert Preparation.from_dict(json.loads(json.dumps(prepared.to_dict()))) == prepared
    with pytest.raises(OptionError, match="did you mean 'spacing_mm'"):
        Preparation.from_dict({"shape": [8, 8], "spacing": 1})
    with pytest.raises(OptionError, match="did you mean 'zscore'"):
        Preparation(shape=(8, 8), intensity="zscores")
    with pytest.raises(OptionError, match="needs windows"):
        Preparation(shape=(8, 8), intensity="windows")
    with pytest.raises(OptionError, match="needs a point"):
        Preparation(shape=(8, 8), centre="world")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shape": 16}, "shape is 16"),
        ({"shape": [16, "x"]}, "shape is"),
        ({"shape": [16.5, 16]}, "whole numbers"),
        ({"intensity": 3}, "intensity is 3"),
        ({"spacing_mm": "abc"}, "spacing_mm is 'abc'"),
        ({"spacing_mm": [1, 2, 3]}, "spacing_mm is"),
        ({"intensity": "windows", "windows": [1, 2]}, "give \\(width, level\\)"),
        ({"intensity": "windows", "windows": 3}, "windows is 3"),
        ({"centre": "world", "point": ["a", 1]}, "point is"),
    ],
)
def test_values_that_are_no_numbers_are_refused(settings, told):
    with pytest.raises(OptionError, match=told):
        Preparation.from_dict({"shape": [8, 8], **settings})


def test_wrong_dimension_and_half_labels_are_refused():
    prepared = Preparation(shape=(8, 8, 8))
    with pytest.raises(InputError, match="2-D"):
        prepared.index_to_world(Image.from_array(np.zeros((4, 4))))
    flat = Preparation(shape=(4, 4))
    image = Image.from_array(np.full((4, 4), 0.5))
    with pytest.raises(InputError, match="whole numbers"):
        flat.labels(image, flat.index_to_world(image))
