"""The page of many pairs: its box plots, and that a browser shows it in light and dark."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading

import numpy as np
import pytest

from verimorph.evaluate.boxplot import LEFT, box_plot, nice_ticks
from verimorph.evaluate.cohort import Cohort, Problem
from verimorph.evaluate.output import format_number, measure_name, render

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.fixture
def cohort(random):
    cases = [f"p{n:02d}" for n in range(12)]
    found = Cohort("brains <1>", "honest", ["identity", "ours", "theirs"], cases, folders={"ours": "a", "theirs": "b"})
    for n, method in enumerate(found.methods):
        for case in cases:
            row = {"method": method, "case": case, "status": "ok"}
            row |= {"dice": 0.4 + 0.15 * n + 0.1 * random.random(), "hd95_mm": 9.0 - n + random.random()}
            found.rows.append(row)
    found.rows[-1] = {"method": "theirs", "case": "p11", "status": "missing"}
    found.label_rows = [{"method": "ours", "case": c, "label": 3, "name": "thalamus", "dice": 0.5} for c in cases]
    found.problems = [Problem("missing result", "theirs", "p11", "no result for this pair")]
    return found


def test_boxes_show_numpy_quartiles_and_tukey_whiskers():
    values = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 30.0, np.nan, np.inf])
    plot = box_plot({"a": values}, [f"c{n}" for n in range(8)])
    (box,) = plot.boxes
    positions = np.array([x for x, _, _ in box.points])
    scale = (positions[5] - positions[0]) / 29.0
    expected = positions[0] + scale * (np.quantile(values[:6], [0.25, 0.5, 0.75]) - 1.0)
    np.testing.assert_allclose(box.quartiles, expected)
    np.testing.assert_allclose(box.whiskers, positions[[0, 4]])  # 30 lies beyond 1.5 box lengths
    assert len(box.points) == 6
    assert min(x for x, _ in plot.ticks) >= LEFT
    assert box_plot({"a": np.array([np.nan])}, ["c"]) is None


def test_ticks_are_round_and_span_the_values():
    for low, high in ((0.0, 1.0), (0.1234, 0.1239), (-5.0, 900.0), (3.0, 3.0), (0.0, 0.0)):
        ticks = nice_ticks(low, high)
        assert ticks[0] <= low + 1e-9 * abs(low)
        assert ticks[-1] >= high - 1e-9 * abs(high)
        assert 2 <= len(ticks) <= 9
        np.testing.assert_allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_an_axis_of_nothing_but_zeros_has_no_negative_half():
    assert nice_ticks(0.0, 0.0)[0] == 0.0


def test_labels_say_how_many_pairs_where_a_method_has_fewer(cohort):
    cohort.label_rows += [{"method": "theirs", "case": c, "label": 3, "name": "thalamus", "dice": 0.6} for c in "ab"]
    page = render(cohort)
    assert "0.6 <span" in page
    assert "(2)</span>" in page


def test_a_method_without_a_number_has_no_interval(cohort, capsys):
    from verimorph.cli.evaluate_tables import print_cohort

    for row in cohort.rows:
        if row["method"] != "identity":
            row["inverse_consistency_forward_mean_mm"] = 0.1
    assert "– to –" not in render(cohort)
    print_cohort(cohort, None)
    assert "– to –" not in capsys.readouterr().out


def test_too_few_pairs_for_a_test_are_said_to_be(cohort, capsys):
    from verimorph.cli.evaluate_tables import print_cohort

    few = Cohort("few", "honest", ["identity", "ours"], ["p00", "p01"])
    few.rows = [row for row in cohort.rows if row["method"] in few.methods and row["case"] in few.cases]
    print_cohort(few, None)
    assert "2 pairs cannot show one: the test needs 6 or more" in capsys.readouterr().out


def test_names_have_units():
    assert measure_name("surface_dice_1.5mm") == ("Surface Dice within 1.5 mm", "")
    assert measure_name("hd95_voxel") == ("Hausdorff distance, 95 %", "voxels")
    assert measure_name("folding_percent") == ("Folding (det J ≤ 0)", "%")
    assert format_number(float("nan")) == "–"


def test_page_holds_every_number_needs_no_network_and_escapes_names(cohort):
    page = render(cohort)
    assert "brains &lt;1&gt;" in page
    assert "brains <1>" not in page
    for words in ("missing result: 1", "thalamus", "Hausdorff distance, 95 %", "Holm", "p11"):
        assert words in page
    assert page.count("<svg") == 2
    assert "src=" not in page
    assert "href=" not in page


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_browser_shows_the_page(cohort, tmp_path, theme):
    if CHROMIUM is None:
        pytest.skip("no Chromium found; on Debian and Ubuntu: apt-get install chromium")
    from PIL import Image

    (tmp_path / "report.html").write_text(render(cohort), encoding="utf-8")
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    handler = functools.partial(quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        picture = tmp_path / f"{theme}.png"
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader"]
        command += ["--enable-unsafe-swiftshader", "--virtual-time-budget=3000", "--timeout=20000"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,900", f"--screenshot={picture}"]
        command += [f"http://127.0.0.1:{server.server_address[1]}/report.html#{theme}"]
        subprocess.run(command, check=True, capture_output=True, timeout=90)
        server.shutdown()
    pixels = np.asarray(Image.open(picture).convert("L"), float)
    corner = pixels[-20:, :20].mean()
    assert corner > 200 if theme == "light" else corner < 60
    assert pixels.std() > 10  # something is drawn on it
