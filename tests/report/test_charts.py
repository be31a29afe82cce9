"""Convergence curves: broken between levels, inside their frame."""

import re
from collections import namedtuple

import numpy as np

from verimorph.report import charts

Step = namedtuple("Step", "stage level iteration value")


def test_a_chart_a_stage_and_a_segment_a_level():
    history = [Step(s, level, i, 1 / (i + 1)) for s in ("affine", "deformable") for level in (4, 1) for i in range(5)]
    found = charts.convergence(history)
    assert [chart.stage for chart in found] == ["affine", "deformable"]
    for chart in found:
        assert [s.level for s in chart.segments] == ["1/4", "full"]
        assert [s.iterations for s in chart.segments] == [5, 5]
        for segment in chart.segments:
            points = np.array([p.split(",") for p in re.split("[ML ]", segment.path) if p], float)
            assert (np.diff(points[:, 1]) > 0).all()  # falling values run down the screen
            assert points.min() >= 0
            assert points[:, 0].max() <= charts.WIDTH
            assert points[:, 1].max() <= charts.HEIGHT - charts.BOTTOM + 1e-6


def test_odd_histories_do_not_stop_the_page():
    assert charts.convergence([]) == []
    assert charts.convergence([Step("affine", 1, 0, float("nan"))]) == []
    assert len(charts.convergence([Step("affine", 1, 0, 0.25)])) == 1
    assert len(charts.convergence([Step("affine", 1, i, 0.25) for i in range(3)])) == 1
