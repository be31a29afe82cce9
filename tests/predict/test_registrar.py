"""A prediction is the map that the model's field stands for, on any grid, and its inverse undoes it."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from verimorph.data.preparation import Preparation
from verimorph.errors import InputError, OptionError, VerimorphWarning
from verimorph.field import gaussian_smooth, resize
from verimorph.grid import Grid
from verimorph.image import Image
from verimorph.io import read_image, write_image, write_transform
from verimorph.nn.heads.velocity import Integration
from verimorph.predict.registrar import Registrar, find_start, flow_of, grown, onto_grid
from verimorph.transform import Affine, DisplacementField, chain


def inner_points(grid, margin=2, step=3):
    axes = [np.arange(margin, n - margin, step) for n in grid.shape]
    return grid.index_to_world(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, grid.ndim))


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("ndim", [2, 3])
def test_transform_is_the_models_map_between_the_images(tiny, preparation, oblique_pair, ndim, flow):
    fixed, moving = oblique_pair(ndim)
    prepare = preparation(ndim)
    predicted = Registrar(tiny(ndim, flow=flow), prepare)(fixed=fixed, moving=moving)
    # The contract, from the raw field: x -> A_m (A_f^-1 x + u(A_f^-1 x)).
    a_fixed, a_moving = prepare.index_to_world(fixed), prepare.index_to_world(moving)
    bend = DisplacementField(prepare.grid(a_fixed), predicted.raw["field"])
    expected = chain([bend, Affine(a_moving @ np.linalg.inv(a_fixed))])
    points = inner_points(fixed.grid)
    length = np.linalg.norm(expected.map_points(points) - points @ np.eye(ndim), axis=1)
    assert length.max() > 1.0
    field, linear = predicted.transform.parts
    assert field.grid is fixed.grid
    assert linear.kind != "displacement"
    # Two linear interpolations of one smooth field: a small part of a voxel apart.
    off = np.linalg.norm(predicted.transform.map_points(points) - expected.map_points(points), axis=1)
    assert off.max() < 0.15
    assert float(field.displacement.abs().max()) > 0.3


@pytest.mark.parametrize("start", ["none", "centres"])
def test_how_files_store_their_axes_changes_no_predicted_point(tiny, tmp_path, start):
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = (-8.3, 4.1, 30.7)
    random = np.random.default_rng(0)
    pair = [ndimage.gaussian_filter(random.normal(size=(19, 18, 17)).astype(np.float32), 1.0) for _ in range(2)]
    turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", "PLI")))
    registrar = Registrar(tiny(), Preparation(shape=(20, 20, 20), intensity="minmax"), start=start)
    found = []
    for turned in (False, True):
        images = []
        for name, voxels in zip(("fixed", "moving"), pair, strict=True):
            stored = nib.Nifti1Image(voxels, affine)
            nib.save(stored.as_reoriented(turn) if turned else stored, tmp_path / f"{name}-{turned}.nii.gz")
            images.append(read_image(tmp_path / f"{name}-{turned}.nii.gz"))
        predicted = registrar(fixed=images[0], moving=images[1])
        points = inner_points(Grid((19, 18, 17), affine))
        found.append(predicted.transform.map_points(points))
    assert np.abs(found[0] - points).max() > 0.5
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)


def test_simpleitk_resamples_the_same_through_the_file(tiny, preparation, oblique_pair, tmp_path):
    fixed, moving = oblique_pair()
    predicted = Registrar(tiny(flow=True), preparation())(fixed=fixed, moving=moving)
    write_transform(predicted.transform, tmp_path / "transform.h5")
    write_image(fixed, tmp_path / "fixed.nii.gz")
    write_image(moving, tmp_path / "moving.nii.gz")
    theirs = sitk.Resample(
        sitk.ReadImage(str(tmp_path / "moving.nii.gz")),
        sitk.ReadImage(str(tmp_path / "fixed.nii.gz")),
        sitk.ReadTransform(str(tmp_path / "transform.h5")),
        sitk.sitkLinear,
        0.0,
    )
    ours = predicted.transform.resample(moving, fixed.grid)
    difference = np.abs(sitk.GetArrayFromImage(theirs).T - ours.array)
    assert np.percentile(difference, 99) < 0.05
    still = predicted.transform.parts[1].resample(moving, fixed.grid)
    assert np.abs(still.array - ours.array).max() > 10  # the field does something


@pytest.mark.parametrize("flow", [False, True])
def test_inverse_brings_points_back(tiny, preparation, oblique_pair, flow):
    fixed, moving = oblique_pair()
    predicted = Registrar(tiny(flow=flow), preparation())(fixed=fixed, moving=moving)
    assert predicted.extras["inverse"] == ("exact" if flow else "numerical")
    points = inner_points(fixed.grid, margin=3)
    back = predicted.inverse.map_points(predicted.transform.map_points(points))
    error = np.linalg.norm(back - points, axis=1)
    assert error.mean() < 0.05
    assert error.max() < 0.4
    assert predicted.inversion.mean_residual < 0.05


def test_an_inverse_that_was_not_asked_is_found_all_the_same(tiny, preparation, oblique_pair):
    fixed, moving = oblique_pair()
    predicted = Registrar(tiny(), preparation())(fixed=fixed, moving=moving, inverse=False)
    assert predicted.inversion is None
    points = inner_points(fixed.grid, margin=3)[:50]
    back = predicted.inverse.map_points(predicted.transform.map_points(points))
    assert np.linalg.norm(back - points, axis=1).mean() < 0.05


def test_a_field_that_is_more_than_the_flow_is_inverted_numerically(tiny, preparation, oblique_pair):
    fixed, moving = oblique_pair()
    network = tiny(flow=True)
    inner = network.forward

    def forward(**sides):
        outputs = inner(**sides)
        return outputs | {"field": outputs["field"] * 1.5}

    network.forward = forward
    predicted = Registrar(network, preparation())(fixed=fixed, moving=moving)
    assert predicted.extras["inverse"] == "numerical"
    assert predicted.inversion.mean_residual < 0.01


def test_carrying_a_field_to_a_turned_grid_keeps_the_world_vectors(oblique_grid, random):
    model = oblique_grid(3, (20, 20, 20), seed=5)
    target = Grid((9, 8, 7), oblique_grid(3, (9, 8, 7), seed=6).affine)
    affine = target.affine.copy()
    affine[:3, 3] += model.centre - target.centre
    target = Grid(target.shape, affine)
    gradient = 0.03 * random.normal(size=(3, 3))
    index = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"), -1)
    u = torch.from_numpy(np.moveaxis(index @ gradient.T + 0.4, -1, 0).astype(np.float32))[None]
    carried = onto_grid(u, model.affine, target)
    points = target.index_to_world(np.array([[4.0, 4.0, 3.0], [5.0, 3.0, 4.0]]))
    there = model.world_to_index(points)
    expected = (there @ gradient.T + 0.4) @ model.affine[:3, :3].T
    own = carried[0][:, [4, 5], [4, 3], [3, 4]].numpy().T @ target.affine[:3, :3].T
    np.testing.assert_allclose(own, expected, atol=1e-4)


def test_beyond_the_model_grid_the_edge_goes_on():
    u = torch.full((1, 2, 6, 6), 2.0)
    shift = np.eye(3)
    shift[:2, 2] = (5, 5)
    carried = onto_grid(u, shift, Grid((16, 16)))
    assert torch.equal(carried, torch.full((1, 2, 16, 16), 2.0))


def test_grid_grows_only_around_what_sticks_out():
    voxels = np.zeros((40, 40), np.float32)
    voxels[15:25, 15:25] = 1
    inside = np.eye(3)
    inside[:2, 2] = (12, 12)
    assert grown((16, 16), Image.from_array(voxels), inside, 4) == ((0, 0), (16, 16))
    voxels[2:5, 10:30] = 1
    before, shape = grown((16, 16), Image.from_array(voxels), inside, 4)
    assert before == (12, 12)
    assert shape == (40, 40)


def test_a_larger_image_is_covered(tiny, preparation, oblique_grid):
    grid = oblique_grid(3, (50, 40, 22), seed=3)
    random = np.random.default_rng(0)
    voxels = random.uniform(0.5, 1, grid.shape).astype(np.float32)
    image = Image.from_array(voxels, grid)
    predicted = Registrar(tiny(), preparation())(fixed=image, moving=image)
    covered = predicted.extras["grid"]
    assert covered.contains(grid.corners()).all()
    assert all(n % 4 == 0 for n in covered.shape)


@pytest.mark.parametrize("flow", [False, True])
def test_tiles_give_what_the_whole_gives(tiny, preparation, oblique_pair, flow):
    fixed, moving = oblique_pair()
    prepare = preparation(shape=(40, 32, 32))
    network = tiny(flow=flow)
    whole = Registrar(network, prepare)(fixed=fixed, moving=moving)
    tiled = Registrar(network, prepare, tile=(20, 20, 32), overlap=0.5)(fixed=fixed, moving=moving)
    assert whole.extras["tiles"] == 1
    assert tiled.extras["tiles"] > 3
    difference = (whole.raw["field"] - tiled.raw["field"]).abs()
    # The receptive field reaches over the rim of a tile: no bit-equality, and it fades towards the middle.
    assert float(difference.mean()) < 0.03
    assert tiled.extras["inverse"] == whole.extras["inverse"]
    assert float(difference.max()) < 0.35 * float(whole.raw["field"].abs().max())
    assert tiled.inversion.mean_residual < 0.05


def flow_model(steps, size=12.0):
    """A velocity head with its own number of squarings, on features read point by point."""

    class Flowing(torch.nn.Module):
        stride = 4

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.integration = Integration(steps=steps, shrink=2)
            self.mix = torch.randn(3, 3)

        def forward(self, *, fixed, moving, condition=None):
            half = tuple(n // 2 for n in fixed.shape[2:])
            sides = resize(torch.cat([fixed, moving, fixed * moving], dim=1), half)
            velocity = size * gaussian_smooth(torch.einsum("ij,bj...->bi...", self.mix, sides).contiguous(), [2.0] * 3)
            return self.integration(velocity, tuple(fixed.shape[2:]))

    return Flowing()


@pytest.mark.parametrize("steps", [2, 7])
def test_tiles_of_velocities_blend_velocities(preparation, oblique_pair, steps):
    fixed, moving = oblique_pair()
    prepare = preparation(shape=(40, 32, 32))
    tiled = Registrar(flow_model(steps), prepare, tile=(20, 20, 32), overlap=0.5)(fixed=fixed, moving=moving)
    assert tiled.extras["tiles"] > 3
    assert float((flow_of(tiled.raw["velocity"], (40, 32, 32)) - tiled.raw["field"]).abs().max()) > 0.01
    torch.testing.assert_close(flow_of(tiled.raw["velocity"], (40, 32, 32), steps), tiled.raw["field"])
    assert tiled.extras["inverse"] == "exact"


def test_the_inverse_of_a_velocity_model_is_polished_on_the_grid_of_the_image(preparation, oblique_pair):
    fixed, moving = oblique_pair()
    predicted = Registrar(flow_model(7, size=6.0), preparation())(fixed=fixed, moving=moving)
    assert predicted.extras["inverse"] == "model"
    points = inner_points(fixed.grid, margin=4)
    moved = predicted.transform.map_points(points)
    assert np.linalg.norm(moved - predicted.transform.parts[1].map_points(points), axis=1).max() > 1
    error = np.linalg.norm(predicted.inverse.map_points(moved) - points, axis=1)
    assert error.mean() < 0.06
    # The flow backwards, carried to the image's grid without more ado, leaves forty times as much.
    assert predicted.inversion.mean_residual < 0.002


def test_tiles_of_a_pointwise_model_are_exact(preparation, oblique_pair):
    class Pointwise(torch.nn.Module):
        stride = 2

        def forward(self, *, fixed, moving, condition=None):
            return {"field": torch.cat([fixed - moving, fixed, moving], dim=1)}

    fixed, moving = oblique_pair()
    prepare = preparation(shape=(26, 24, 18))
    whole = Registrar(Pointwise(), prepare)(fixed=fixed, moving=moving)
    tiled = Registrar(Pointwise(), prepare, tile=(8, 10, 18))(fixed=fixed, moving=moving)
    assert tiled.extras["tiles"] > 6
    torch.testing.assert_close(whole.raw["field"], tiled.raw["field"], atol=1e-6, rtol=0)


def test_full_memory_means_smaller_tiles(tiny, preparation, oblique_pair):
    fixed, moving = oblique_pair()
    network = tiny()
    inner = network.forward

    def forward(**sides):
        if sides["fixed"].numel() > 5000:
            raise torch.OutOfMemoryError("out of memory")
        return inner(**sides)

    network.forward = forward
    prepare = preparation(shape=(32, 32, 16))
    with pytest.warns(VerimorphWarning, match="tiles of"):
        predicted = Registrar(network, prepare)(fixed=fixed, moving=moving)
    assert predicted.extras["tiles"] > 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_samples_are_drawn_one_by_one_and_again_the_same(tiny, preparation, oblique_pair, ndim):
    fixed, moving = oblique_pair(ndim)
    predicted = Registrar(tiny(ndim, flow=True, noisy=True), preparation(ndim))(fixed=fixed, moving=moving)
    points = inner_points(fixed.grid)

    def drawn(seed):
        source = torch.Generator().manual_seed(seed)
        return [t.map_points(points) for t in predicted.sample(3, source)]

    first, again, other = drawn(1), drawn(1), drawn(2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(first[0] - first[1]).max() > 0.05
    assert np.abs(first[0] - other[0]).max() > 0.05
    stream = predicted.sample(10**9)  # never all stored
    next(stream)
    # Sampling leaves the prediction itself, and the model, as they were.
    once = Registrar(tiny(ndim, flow=True, noisy=True), preparation(ndim))(fixed=fixed, moving=moving)
    np.testing.assert_array_equal(once.transform.map_points(points), predicted.transform.map_points(points))


def test_a_model_without_randomness_says_so(tiny, preparation, oblique_pair):
    fixed, moving = oblique_pair()
    predicted = Registrar(tiny(), preparation())(fixed=fixed, moving=moving)
    with pytest.raises(OptionError, match="nothing random"):
        next(predicted.sample(2))


def test_starts(tiny, preparation, oblique_pair):
    fixed, moving = oblique_pair()
    matrix = find_start("centres", fixed, moving)
    assert np.allclose(matrix[:3, :3], np.eye(3))
    predicted = Registrar(tiny(), preparation(), start="centres")(fixed=fixed, moving=moving)
    np.testing.assert_allclose(predicted.transform.parts[1].matrix, matrix, atol=1e-9)
    given = np.eye(4)
    given[:3, 3] = (1, 2, 3)
    predicted = Registrar(tiny(), preparation())(fixed=fixed, moving=moving, start=given)
    np.testing.assert_allclose(predicted.transform.parts[1].matrix, given, atol=1e-9)
    with pytest.raises(OptionError, match="did you mean 'centres'"):
        find_start("centers", fixed, moving)


def test_a_seed_is_that_of_the_start_and_of_the_result(tiny, preparation, oblique_pair, monkeypatch):
    from verimorph import pipeline
    from verimorph.predict.pair import predict_pair

    fixed, moving = oblique_pair()
    made, seeds = pipeline.make_recipe, []

    def make_recipe(**settings):
        seeds.append(settings.get("seed"))
        return made(**settings)

    monkeypatch.setattr(pipeline, "make_recipe", make_recipe)
    result = predict_pair(Registrar(tiny(), preparation(), start="rigid", seed=7), fixed=fixed, moving=moving)
    assert seeds == [7]
    assert result.provenance["seed"] == 7


def test_what_a_model_cannot_take_is_refused_in_one_line(tiny, preparation, oblique_pair):
    fixed, moving = oblique_pair()
    flat, _ = oblique_pair(2)
    registrar = Registrar(tiny(), preparation())
    with pytest.raises(InputError, match="is 2-D, the model was trained on 3-D"):
        registrar(fixed=flat, moving=moving)
    with pytest.raises(InputError, match="there is nothing to align"):
        registrar(fixed=fixed, moving=moving.with_array(np.ones(moving.grid.shape, np.float32)))
    with pytest.raises(InputError, match="fixed image: the model takes 1 image as channels, 2 are given"):
        registrar(fixed=[fixed, fixed], moving=moving)
    thin = Image.from_array(np.random.default_rng(0).random((20, 20, 2)).astype(np.float32), np.eye(4))
    with pytest.raises(InputError, match="stride 4\\) needs 4 or more along every axis"):
        registrar(fixed=thin, moving=moving)
    # A stride that is wider than the image, on a grid made for images of this size.
    wide = tiny()
    wide.stride = 32
    assert Registrar(wide, preparation(shape=(32, 32, 32)))(fixed=fixed, moving=moving).extras["tiles"] == 1
    coarse = Image.from_array(fixed.array, Grid(fixed.grid.shape, fixed.grid.affine @ np.diag([5, 5, 5, 1])))
    with pytest.warns(VerimorphWarning, match="look closely at the result"):
        registrar(fixed=coarse, moving=moving)
