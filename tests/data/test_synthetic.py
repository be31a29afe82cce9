"""Synthetic pairs: the known displacement is the true one, and generators decide everything."""

from __future__ import annotations

import pytest
import torch

from verimorph import field
from verimorph.data.augment import Sample
from verimorph.data.synthetic import (
    SyntheticSettings,
    deformed_pair,
    flow,
    label_pair,
    random_velocity,
    render,
    shape_map,
    smooth_noise,
)
from verimorph.errors import OptionError

SETTINGS = SyntheticSettings(labels=4, velocity=1.0, scales=(8, 16))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def agreement(a: torch.Tensor, b: torch.Tensor, rim: int) -> float:
    inner = tuple(slice(rim, n - rim) for n in a.shape)
    return float((a[inner] == b[inner]).float().mean())


@pytest.mark.parametrize("shape", [(64, 48), (32, 28, 32)])
def test_known_field_carries_moving_labels_onto_fixed_ones(shape):
    labels = shape_map(shape, 4, scales=(16, 32), generator=generator(1))
    pair = label_pair(labels, labels, SETTINGS, classes=4, generator=generator(2))
    fixed, moving, known = pair["fixed"].labels, pair["moving"].labels, pair["known_field"]
    carried = field.warp(moving[None, None], known[None], mode="nearest")[0, 0]
    before, after = agreement(fixed, moving, 6), agreement(fixed, carried, 6)
    assert after > 0.95
    assert 1 - after < 0.4 * (1 - before)


def test_deformed_image_comes_back_by_the_known_field():
    index = field.voxel_index((40, 40))[0]
    image = torch.exp(-((index[0] - 18) ** 2 + (index[1] - 22) ** 2) / 60)[None]
    pair = deformed_pair(Sample(image), SETTINGS, generator=generator(0))
    back = field.warp(pair["moving"].image[None], pair["known_field"][None])[0]
    before = (pair["moving"].image - image).abs().mean()
    assert (back - image).abs().mean() < 0.15 * before


def test_flow_of_the_opposite_velocity_is_the_inverse():
    velocity = random_velocity((32, 32, 32), SETTINGS, generator=generator(4))
    both = field.compose(flow(-velocity, (32, 32, 32)), flow(velocity, (32, 32, 32)))
    assert both[..., 6:-6, 6:-6, 6:-6].abs().mean() < 0.05


def test_maps_hold_every_label_and_images_span_the_range():
    labels = shape_map((32, 32), 5, scales=(8, 16), generator=generator(5))
    assert labels.unique().tolist() == [0, 1, 2, 3, 4]
    image = render(labels, SETTINGS, generator=generator(6))
    assert image.min() == 0
    assert image.max() == 1
    assert torch.equal(image, render(labels, SETTINGS, generator=generator(6)))
    assert not torch.equal(image, render(labels, SETTINGS, generator=generator(7)))


def test_smooth_noise_is_as_smooth_as_its_scale():
    noise = smooth_noise((128,) * 2, (32,), most=1.0, least=1.0, generator=generator(8))
    step = (noise[..., 1:] - noise[..., :-1]).abs().mean()
    assert step < 0.1
    assert 0.2 < noise.std() < 1.5


def test_two_subjects_have_no_known_field():
    one, two = (shape_map((16, 16), 3, scales=(8,), generator=generator(s)) for s in (1, 2))
    settings = SyntheticSettings(kind="labels", velocity=0.5, scales=(8,))
    pair = label_pair(one, two, settings, classes=2, generator=generator(3))
    assert "known_field" not in pair
    assert pair["fixed"].labels.max() <= 2
    with pytest.raises(OptionError, match="did you mean 'shapes'"):
        SyntheticSettings(kind="shape")
