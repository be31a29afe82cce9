"""The page about the error of a registration: shown where it is known, in the words of ``explain``, never otherwise."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from verimorph.image import Image
from verimorph.report import render
from verimorph.report.facts import number
from verimorph.report.uncertainty import known_values, scale_mm
from verimorph.uncertainty import words


@pytest.fixture(scope="module")
def finished(known, unsure):
    return unsure(known())


@pytest.fixture(scope="module")
def page(finished):
    return render(finished)


def plain(page: str) -> str:
    text = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.S)
    return " ".join(text.split())


def fact(page: str, name: str) -> str:
    return re.search(rf'<dt>{name}</dt>\s*<dd><span class="value">(.*?)</span>', page)[1]


def test_verdict_stands_near_the_top_with_its_reason(page):
    text = plain(page)
    assert "Uncalibrated" not in text
    assert text.index("low similarity after alignment") < text.index("Measured")
    assert "Look at it before you use it. Likeness to registrations broken on purpose: 31 %." in text
    assert re.search(r'class="status verdict review"', page)


def test_bound_is_explained_in_plain_words(page):
    text = plain(page)
    assert words.meaning(0.9) in text
    assert words.LIMITS in text
    for said in ("known deformations of six brains", "T1 images of whole heads, 1 mm", "at the 90 % level"):
        assert said in text


def test_the_bound_of_a_failed_registration_is_not_to_be_relied_on(page, known, unsure):
    assert words.BROKEN not in plain(page)
    assert words.BROKEN in plain(render(unsure(known(), verdict="fail")))


def test_numbers_are_percentiles_over_the_anatomy(page, finished):
    # the anatomy of the phantom: labels above 0, up to the coarse lattice of the page
    inside = finished.uncertainty.error_mm.array[finished.fixed_labels.array > 0]
    assert float(fact(page, "Error bound, median")) == pytest.approx(np.median(inside), rel=0.05)
    assert float(fact(page, "Error bound, 95th percentile")) == pytest.approx(np.percentile(inside, 95), rel=0.05)


def test_numbers_of_metrics_json_win(finished):
    page = render(replace(finished, metrics={"uncertainty": {"median_mm": 0.777, "p95_mm": 5.55}}))
    assert fact(page, "Error bound, median") == "0.777"
    assert fact(page, "Error bound, 95th percentile") == "5.55"


def test_every_plane_shows_the_bound_over_the_fixed_image(page):
    section = page[page.index('id="sure"') : page.index('id="look"')]
    assert re.findall(r'href="#middle-(\w+)-bound"', section) == ["axial", "coronal", "sagittal"]
    assert len(re.findall(r'<image id="[\w-]+-bound"', page)) == page.count('-fixed" width')
    assert 'value="bound"' in page


def test_label_uncertainty_is_drawn_where_there_is_one(known, unsure, page):
    assert "label-uncertainty" not in re.sub(r"<script.*?</script>", "", page, flags=re.S)
    finished = known()
    entropy = np.zeros(finished.fixed.grid.shape, np.float32)
    entropy[:21] = np.log(2)
    entropy[:, :4] = np.nan
    drawn = render(unsure(finished, label_uncertainty=Image.from_array(entropy, finished.fixed.grid)))
    section = drawn[drawn.index('id="sure"') : drawn.index('id="look"')]
    assert re.findall(r'href="#middle-(\w+)-label-uncertainty"', section) == ["axial", "coronal", "sagittal"]
    assert 'value="label-uncertainty"' in drawn
    assert '"label-uncertainty": {' in drawn  # the script knows the view
    found = re.search(r'<image id="middle-axial-label-uncertainty"[^>]*base64,([^"]+)"', drawn)[1]
    opacity = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(found))).convert("RGBA"))[..., 3]
    # Patient left, index 0, is on the right; where the label is certain the image below shows, and where none is known.
    assert (opacity[: len(opacity) // 2, opacity.shape[1] // 2 + 4 :] == round(255 * 0.85)).all()
    assert (opacity[:, : opacity.shape[1] // 2 - 4] == 0).all()
    assert (opacity[-5:] == 0).all()


def test_volumes_have_their_intervals(page):
    rows = re.findall(r"<tr><td class=\"n\">(\d+)</td>" + r"<td class=\"n\">(.*?)</td>" * 4, page)
    by_label = {row[0]: row[1:] for row in rows if len(row) == 5}
    assert by_label["2"] == (number(11.5), number(10.1), number(12.4), number(20.0, 2))
    assert by_label["3"][3] == "–"
    # the widest end is 1.4 of 11.5 ml below: the bars run from -12 to +12 %
    assert "−12 % to +12 %" in page
    start = 50 + 50 * (116 / 120 - 1) / (1.4 / 11.5)
    assert f'<i style="left: {start:.1f}%' in page


def test_one_scale_for_bound_and_true_error(page, finished):
    ends = re.findall(r"<span>≥ ([\d.]+) mm</span>", page)
    assert len(set(ends)) == 1
    alone = render(replace(finished, truth=None))
    inside = known_values(finished.uncertainty.error_mm, np.argwhere(finished.fixed_labels.array > 0) * 1.0)
    assert scale_mm(inside) > 0
    assert 'value="error"' not in alone


@pytest.mark.parametrize("verdict", ["pass", "review", "fail"])
def test_each_verdict_says_what_to_do(known, unsure, verdict):
    page = render(unsure(known(2), verdict=verdict, probability=0.999))
    assert f'<span class="badge">{verdict}</span>' in page
    assert words.ADVICE[verdict] in page.lower()
    assert "above 99 %" in page
    assert page.count('class="plane"') == 2  # one in the viewer, one with the bound


def test_places_without_a_bound_are_left_open(known, unsure):
    finished = known()
    bound = np.full(finished.fixed.grid.shape, np.nan, np.float32)
    bound[20:24, 20:26, 16:20] = 1.5
    page = render(unsure(finished, error_mm=Image.from_array(bound, finished.fixed.grid)))
    assert fact(page, "Error bound, median") == "1.50"
    nowhere = unsure(finished, error_mm=Image.from_array(np.full_like(bound, np.nan), finished.fixed.grid))
    assert fact(render(nowhere), "Error bound, median") == "–"


def test_without_labels_there_is_no_table_of_volumes(known, unsure):
    bare = replace(known(), moving_labels=None, fixed_labels=None, moved_labels=None)
    assert "Volumes of the moved labels" not in render(unsure(bare))


def test_verdict_without_a_probability_claims_none(known, unsure):
    text = plain(render(unsure(known(2), probability=None)))
    assert "Look at it before you use it. How far off" in text
    assert "Likeness to" not in text


def test_reasons_cannot_inject_markup(known, unsure):
    evil = "<script>alert(1)</script>"
    assert evil not in render(unsure(known(2), reasons=evil, calibration=evil, calibrated_for=evil))


def test_a_result_of_another_recipe_shows_its_way_to_the_defaults(known, unsure, page):
    name = "Way to a registration by the defaults, median"
    assert name not in page
    assert fact(render(unsure(known(2), reference_away_mm=1.234)), name).startswith("1.23")
