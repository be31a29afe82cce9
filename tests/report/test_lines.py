"""Lines against geometry that is known in closed form."""

import re

import numpy as np
import pytest

from verimorph.report import lines


def read_path(path: str) -> list[np.ndarray]:
    """Points of every subpath of an ``M x y l dx dy ...`` path, pixels."""
    found = []
    for start, steps in re.findall(r"M(-?\d+ -?\d+)l([-\d ]+)", path):
        first = np.array(start.split(), int)
        moves = np.array(steps.split(), int).reshape(-1, 2)
        found.append(np.vstack([first, first + np.cumsum(moves, axis=0)]) / lines.SUBPIXEL)
    return found


def test_svg_path_keeps_points_to_a_twentieth_of_a_pixel(random):
    line = np.cumsum(random.normal(size=(40, 2)), axis=0)
    (found,) = read_path(lines.svg_path([line]))
    np.testing.assert_allclose(found, line + 0.5, atol=0.05 + 1e-9)


def test_edges_lie_on_the_rim_of_a_disc():
    row, column = np.mgrid[:80, :90]
    distance = np.hypot(row - 40.3, column - 44.6)
    disc = 1 / (1 + np.exp((distance - 22) / 0.5))
    found = lines.edges(disc)
    assert len(found) == 1
    radius = np.hypot(found[0][:, 1] - 40.3, found[0][:, 0] - 44.6)
    np.testing.assert_allclose(radius, 22, atol=0.3)
    assert np.ptp(np.arctan2(found[0][:, 1] - 40.3, found[0][:, 0] - 44.6)) > 6


def test_noise_alone_on_a_flat_image_has_no_edges():
    assert lines.edges(np.zeros((30, 30))) == []


def test_outlines_run_along_every_border_once():
    labels = np.zeros((6, 7))
    labels[1:4, 1:3] = 1
    labels[1:4, 3:6] = 2
    path = lines.outlines(labels)
    length = sum(int(n) for n in re.findall(r"[hv](\d+)", path)) / lines.SUBPIXEL
    assert length == 16 + 3  # around both, and the border they share
    assert len(re.findall("M", path)) < 12  # runs are merged


def test_outlines_at_the_rim_are_closed():
    assert sum(int(n) for n in re.findall(r"[hv](\d+)", lines.outlines(np.ones((3, 5))))) == 16 * lines.SUBPIXEL


def test_grid_lines_are_where_the_map_takes_whole_steps():
    row, column = np.mgrid[:50, :60].astype(float)
    mapped = np.stack([0.5 * column + 3, 0.8 * row - 1], -1)
    found = lines.grid_lines(mapped, 10.0)
    vertical = sorted(line[0, 0] for line in found if np.ptp(line[:, 0]) < 1e-9)
    horizontal = sorted(line[0, 1] for line in found if np.ptp(line[:, 1]) < 1e-9)
    np.testing.assert_allclose(vertical, [(10 * k - 3) / 0.5 for k in (1, 2, 3)])
    np.testing.assert_allclose(horizontal, [(10 * k + 1) / 0.8 for k in (0, 1, 2, 3)])


@pytest.mark.parametrize(("extent", "step"), [(200.0, 10), (52.0, 2.5), (19.0, 1), (1000.0, 50)])
def test_nice_step(extent, step):
    assert lines.nice_step(extent) == step
