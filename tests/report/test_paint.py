"""Pixels against Pillow, windows and colours against what they promise."""

import io

import numpy as np
import pytest
from PIL import Image as Pillow

from verimorph.report import paint


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_png_is_what_pillow_reads(channels, random):
    pixels = random.integers(0, 256, (23, 17, *channels), dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(Pillow.open(io.BytesIO(paint.png(pixels)))), pixels)


def test_window_ignores_outliers_and_padding():
    image = np.full(10_000, 100.0)
    image[:2000] = 0
    image[-5:] = 1e6
    low, high = paint.window(image, image > 50)
    assert (low, high) == (0, 100)
    noisy = np.concatenate([np.linspace(-20, 20, 3000), np.full(7000, 100.0)])
    assert paint.window(noisy, noisy > 50)[0] == pytest.approx(-20, abs=2)
    tomography = np.concatenate([np.full(3000, -2048.0), np.full(3000, -1000.0), np.linspace(-50, 300, 3000)])
    low, high = paint.window(tomography, tomography > -1500)
    assert low == pytest.approx(-1000)
    assert high == pytest.approx(300, abs=2)


def test_window_of_a_constant_image_is_not_empty():
    low, high = paint.window(np.full(10, 7.0))
    assert high > low


def test_volume_colours_are_neutral_in_the_middle_and_opposite_at_the_ends():
    table = paint.colour_table("volume").astype(int)
    assert np.ptp(table[127:129]) < 12
    assert table[0, 2] > table[0, 0]
    assert table[-1, 0] > table[-1, 2]


def test_error_colours_rise_in_lightness():
    lightness = paint.colour_table("error") @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(lightness) >= -0.5).all()
