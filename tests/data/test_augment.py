"""Augmentation: image, labels, mask and points move together; sides keep their names; seeds decide."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from verimorph.data.augment import (
    Augmentation,
    Sample,
    augment,
    augment_pair,
    change_intensities,
    deform,
    flip,
    random_elastic,
    random_matrix,
    random_turn,
    turn,
)
from verimorph.errors import OptionError


def blob(shape=(16, 16, 16), point=(5, 9, 11)) -> Sample:
    """A bright ball, its label, its mask and its centre."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"))
    distance = np.sqrt(sum((axis - p) ** 2 for axis, p in zip(index, point, strict=True)))
    image = torch.from_numpy(np.exp(-(distance**2) / 4).astype(np.float32))[None]
    labels = torch.from_numpy((distance < 2.5).astype(np.uint8))
    return Sample(image, labels, labels > 0, torch.tensor([point], dtype=torch.float32), torch.tensor([True, False]))


def centre(weight: torch.Tensor) -> torch.Tensor:
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in weight.shape], indexing="ij"), -1)
    return (index * weight[..., None].float()).flatten(0, -2).sum(0) / weight.float().sum()


def together(sample: Sample, tolerance: float) -> None:
    assert torch.allclose(centre(sample.image[0]), sample.points[0], atol=tolerance)
    assert torch.allclose(centre(sample.labels), sample.points[0], atol=tolerance)
    assert torch.equal(sample.mask, sample.labels > 0)


@pytest.mark.parametrize("axes", [[0], [1, 2], [0, 1, 2]])
def test_flip_moves_all_together(axes):
    together(flip(blob(), axes), 0.01)


def test_flip_of_the_first_axis_swaps_left_and_right():
    sample = blob()
    swapped = flip(sample, [0], swaps=[(1, 2)])
    assert int(swapped.labels.max()) == 2
    assert swapped.known.tolist() == [False, True]
    assert int(flip(sample, [1], swaps=[(1, 2)]).labels.max()) == 1
    back = flip(swapped, [0], swaps=[(1, 2)])
    assert torch.equal(back.labels, sample.labels)


@pytest.mark.parametrize("plane", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turn_is_rot90_and_moves_points(plane, quarters):
    sample = blob()
    turned = turn(sample, [(plane, quarters)])
    assert torch.equal(turned.labels, torch.rot90(sample.labels, quarters, plane))
    together(turned, 0.01)


def test_turns_follow_each_other_as_rot90_does(random):
    sample = blob()
    turned = turn(sample, [((0, 1), 1), ((1, 2), 3), ((0, 2), 1)])
    expected = torch.rot90(torch.rot90(torch.rot90(sample.image, 1, (1, 2)), 3, (2, 3)), 1, (1, 3))
    assert torch.equal(turned.image, expected)
    together(turned, 0.01)


def test_random_turns_keep_the_shape():
    sample = blob((16, 16, 20))
    seen = {tuple(random_turn(sample, np.random.default_rng(s)).points[0].tolist()) for s in range(60)}
    assert all(random_turn(sample, np.random.default_rng(s)).shape == (16, 16, 20) for s in range(20))
    assert len(seen) == 8  # the turns of a square prism


def test_random_turns_keep_the_size_of_the_voxels():
    sample = replace(blob((16, 16, 16)), spacing=np.array([1.0, 1.0, 3.0]))
    seen = {tuple(random_turn(sample, np.random.default_rng(s)).points[0].tolist()) for s in range(60)}
    assert len(seen) == 8  # the turns of a square prism
    assert {point[2] for point in seen} == {11, 4}, "the axis of thick slices stays"
    settings = Augmentation(turn=1)
    turned = [augment(sample, settings, np.random.default_rng(s)) for s in range(20)]
    assert {float(one.points[0, 2]) for one in turned} == {11, 4}


def test_images_of_two_voxel_sizes_turn_alike_and_each_rotates_in_its_own_millimetres():
    """Slices are thick along the last axis of one image, along the first of the other."""
    fixed, moving = (
        replace(blob((16, 16, 16)), spacing=np.array(spacing)) for spacing in ([1.0, 1.0, 3.0], [3.0, 1.0, 1.0])
    )
    turned = [augment_pair(fixed, moving, Augmentation(turn=1), np.random.default_rng(s)) for s in range(60)]
    assert all(torch.equal(one.image, two.image) for one, two in turned)
    assert len({tuple(one.points[0].tolist()) for one, _ in turned}) == 4, "half turns alone suit both"
    alone = [augment_pair(fixed, moving, Augmentation(turn=1, shared=()), np.random.default_rng(s)) for s in range(120)]
    assert [len({tuple(pair[role].points[0].tolist()) for pair in alone}) for role in (0, 1)] == [8, 8]
    settings = Augmentation(affine=1, rotation_degrees=30, scale=0, shift=0)
    lengths = []
    for sample in augment_pair(fixed, moving, settings, np.random.default_rng(2)):
        middle = torch.full((3,), 7.5)
        lengths.append(float(((sample.points[0] - middle) * torch.from_numpy(sample.spacing)).norm()))
    before = [float(((one.points[0] - 7.5) * torch.from_numpy(one.spacing)).norm()) for one in (fixed, moving)]
    assert np.allclose(lengths, before, atol=1e-4)


def test_what_comes_in_from_outside_is_the_background():
    shift = np.eye(4)
    shift[0, 3] = 6
    sample = Sample(torch.full((2, 8, 8, 8), 40.0), background=torch.tensor([-1000.0, 5.0]))
    moved = deform(flip(turn(sample, [((0, 1), 1)]), [1]), shift).image
    assert torch.equal(moved[:, :2], torch.full((2, 2, 8, 8), 40.0))
    assert torch.equal(moved[:, 3:], torch.tensor([-1000.0, 5.0])[:, None, None, None].expand(2, 5, 8, 8))
    assert not deform(Sample(sample.image), shift).image[:, 3:].any()


def test_affine_and_elastic_move_points_against_images(random):
    settings = Augmentation(affine=1, elastic=1, elastic_voxels=1.5, elastic_spacing=8)
    sample = blob((24, 24, 24), (10, 12, 13))
    matrix = random_matrix(sample.shape, settings, random, (1, 1, 1))
    bent = deform(sample, matrix, random_elastic(sample.shape, settings, random))
    together(bent, 0.35)


def test_rotation_is_a_rotation_in_millimetres(random):
    settings = Augmentation(rotation_degrees=30, scale=0, shift=0)
    spacing = np.array([1.0, 2.0, 5.0])
    linear = random_matrix((10, 10, 10), settings, random, spacing)[:3, :3]
    in_mm = np.diag(spacing) @ linear @ np.diag(1 / spacing)
    assert np.allclose(in_mm @ in_mm.T, np.eye(3))


def test_shared_changes_are_shared_and_others_not():
    settings = Augmentation(flip=0.5, turn=1, affine=1, shared=("flip", "turn"))
    one, two = augment_pair(blob(), blob(), settings, np.random.default_rng(1))
    assert not torch.equal(one.image, two.image)
    alike = Augmentation(flip=0.5, turn=1, affine=1, elastic=1, shared=("flip", "turn", "affine", "elastic"))
    one, two = augment_pair(blob(), blob(), alike, np.random.default_rng(1))
    assert torch.equal(one.image, two.image)
    again, _ = augment_pair(blob(), blob(), alike, np.random.default_rng(1))
    assert torch.equal(one.image, again.image)


def test_grey_values_stay_within_their_range(random):
    image = torch.rand(2, 8, 8, 8) * 40 - 7
    settings = Augmentation(intensity=1, noise=0.2, bias=0.5)
    changed = change_intensities(image, settings, random)
    for channel, before in zip(changed, image, strict=True):
        assert channel.min() >= before.min() - 1e-4
        assert channel.max() <= before.max() + 1e-4
    assert not torch.allclose(changed, image)
    constant = torch.full((1, 4, 4), 3.0)
    assert torch.equal(change_intensities(constant, settings, random), constant)


def test_axes_counted_from_the_end_are_the_same_axes(random):
    shape = (4, 5, 6)
    image = torch.from_numpy(random.random((1, *shape)).astype(np.float32))
    given = Sample(image=image, labels=(image[0] > 0.5).long(), points=torch.tensor([[0.0, 1, 2]]))
    last, same = (
        augment(given, Augmentation(flip=1.0, flip_axes=axes), np.random.default_rng(0)) for axes in ((-1,), (2,))
    )
    for found in (last, same):
        assert torch.equal(found.image, image.flip(3))
        assert torch.equal(found.labels, given.labels.flip(2))
        assert found.points.tolist() == [[0, 1, 3]]
    with pytest.raises(OptionError, match="from 0 to 2"):
        augment(given, Augmentation(flip=1.0, flip_axes=(3,)), np.random.default_rng(0))


def test_bad_settings_are_refused():
    with pytest.raises(OptionError, match="probability"):
        Augmentation(flip=2)
    with pytest.raises(OptionError, match="did you mean 'flip'"):
        Augmentation(shared=("flips",))
