"""The page as text: complete, self-contained, honest about what it knows."""

import re
from dataclasses import replace

import numpy as np
import pytest

from verimorph.errors import InputError
from verimorph.evaluate.overlap import dice_per_label
from verimorph.report import render, write_report
from verimorph.report.facts import number
from verimorph.transform import Affine


@pytest.fixture(scope="module")
def finished(known):
    return known()


@pytest.fixture(scope="module")
def page(finished):
    return render(finished)


def cards(page: str) -> dict[str, tuple[str, str]]:
    """Name to (before, after) of the summary."""
    found = {}
    for card in re.findall(r'<div class="fact[^"]*">(.*?)</div>', page, re.S):
        name = re.search(r"<dt>(.*?)</dt>", card)[1]
        before = re.search(r'class="before">([\d.,–]+)', card)
        found[name] = (before[1] if before else "", re.search(r'class="value">(.*?)<', card)[1])
    return found


def test_page_needs_nothing_from_outside(page):
    without_data = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?://|//[a-z]|@import|url\((?!#)", without_data)
    assert not re.search(r"<(link|iframe|object|embed|base)\b|<script[^>]+src=", without_data)
    assert "default-src 'none'" in page
    assert len(page) < 4_000_000


def test_every_reference_inside_the_page_exists(page):
    known_ids = set(re.findall(r'\bid="([^"]+)"', page))
    wanted = set(re.findall(r'<use[^>]* href="#([^"]+)"', page)) | set(
        re.findall(r"aria-(?:labelledby|controls)=\"([^\"]+)\"", page)
    )
    assert wanted
    assert wanted <= known_ids
    assert len(re.findall(r'\bid="', page)) == len(known_ids)


def test_status_says_that_nothing_is_judged(page):
    assert "Uncalibrated: no error bound yet, no verdict." in page
    assert not re.search(
        r"\b(pass|fail|good|excellent|poor)(ed)?\b",
        re.sub(r"<script.*?</script>|<style.*?</style>", "", page, flags=re.S),
        re.I,
    )


def test_dice_on_the_page_is_that_of_the_label_maps(finished, page):
    after = np.mean(list(dice_per_label(finished.fixed_labels.array, finished.moved_labels.array).values()))
    before = np.mean(list(dice_per_label(finished.fixed_labels.array, finished.moving_labels.array).values()))
    assert cards(page)["Dice"] == (number(before), number(after))


def test_landmark_errors_on_the_page_are_distances(finished, page):
    fixed, moving = finished.fixed_landmarks.coordinates, finished.moving_landmarks.coordinates
    before = np.linalg.norm(fixed - moving, axis=1)
    after = np.linalg.norm(finished.transform.map_points(fixed) - moving, axis=1)
    assert cards(page)["Landmark error, mean"] == (number(before.mean()), number(after.mean()))
    assert f'<td class="n">{number(after.max())}</td>' in page


def test_registration_improves_every_measure_of_similarity(page):
    for name in ("Local correlation", "Mutual information"):
        before, after = (float(v) for v in cards(page)[name])
        assert after > before


def test_measured_metrics_win_over_the_page_s_own(finished):
    metrics = {
        "jacobian": {"folding_percent": 1.25, "sd_log_jacobian": 0.5},
        "labels": {"per_label": {"1": {"dice": 0.5}, "2": {"dice": 0.25}, "3": {"dice": None}}},
        "inverse_consistency_mm": {"forward": {"mean": 0.031, "max": 0.4}, "backward": {"mean": 1, "max": 1}},
        "true_error": {"identity": {"mean": 9.0, "p95": 12.0}, "registered": {"mean": 0.4, "p95": 0.8, "max": 1.0}},
    }
    found = cards(render(replace(finished, metrics=metrics)))
    assert found["Folding"][1] == "1.25"
    assert found["SD of log J"][1] == "0.500"
    assert found["Dice"][1] == "0.375"
    assert found["Inverse error, mean"][1] == "0.0310"
    assert found["True error, mean"] == ("9.00", "0.400")


def test_pure_shift_is_all_displacement_and_no_bending(finished):
    shift = np.eye(4)
    shift[:3, 3] = 3, 0, 4
    found = cards(render(replace(finished, transform=Affine(shift), truth=None)))
    assert found["Displacement, mean"][1] == "5.00"
    assert "Bending, mean" not in found


def test_names_cannot_inject_markup(finished):
    evil = "<script>alert(1)</script>"
    odd = replace(finished, fixed=replace(finished.fixed, name=evil), warnings=[evil], settings={evil: evil})
    assert evil not in render(odd)


def test_out_of_view_header_shows_where_the_registration_started(known):
    from verimorph.grid import Grid
    from verimorph.image import Image

    finished = known()
    far = np.eye(4)
    far[:3, 3] = 400, 0, 0
    away = Grid(finished.moving.grid.shape, far @ finished.moving.grid.affine)
    moved = replace(
        finished,
        moving=Image.from_array(finished.moving.array, away, name="far"),
        moving_labels=None,
        moved_labels=None,
        transform=finished.transform.then(Affine(far)),
        initial=finished.initial.then(Affine(far)),
        truth=None,
    )
    assert "where the registration started" in render(moved)


@pytest.mark.parametrize(
    ("ndim", "shape", "spacing"), [(2, None, None), (3, (40, 44, 6), (2.0, 2.0, 9.0)), (3, (40, 44, 1), None)]
)
def test_flat_and_thin_images_have_a_page(known, ndim, shape, spacing):
    if shape == (40, 44, 1):
        spacing = (2.0, 2.0, 9.0)
    page = render(known(ndim, shape, spacing))
    assert page.count('class="plane"') == (1 if ndim == 2 else 3)
    assert ("patient right" in page) == (ndim == 3)


def test_folding_is_shown_at_its_strongest(finished):
    from verimorph.image import Image

    determinants = finished.jacobian.array.copy()
    determinants[10:13, 30:33, 20:23] = -0.5
    page = render(replace(finished, jacobian=Image.from_array(determinants, finished.fixed.grid)))
    assert "Strongest folding" in page
    assert cards(page)["Folding"][1] == number(100 * 27 / determinants.size)


def test_write_report_leaves_a_whole_file_or_none(finished, tmp_path):
    path = write_report(finished, tmp_path / "deep" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [f.name for f in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(InputError):
        write_report(finished, tmp_path)


@pytest.mark.parametrize("transform", ["rigid", "deformable"])
def test_a_real_registration_has_a_page(transform, tmp_path):
    from verimorph.grid import Grid
    from verimorph.image import Image
    from verimorph.registration import register

    axis = np.linspace(-1, 1, 28)
    x, y, z = np.meshgrid(axis, axis, axis, indexing="ij")

    def head(shift: float) -> Image:
        inside = ((x - shift) / 0.7) ** 2 + (y / 0.8) ** 2 + (z / 0.6) ** 2 < 1
        texture = 60 * np.cos(7 * (x - shift) + 3 * y) + 60 * np.cos(6 * z - 4 * y)
        return Image.from_array(
            ((300 + texture) * inside).astype(np.float32), Grid((28, 28, 28), np.diag([3, 3, 3, 1.0]))
        )

    result = register(fixed=head(0.0), moving=head(0.15), transform=transform, quality="fast", threads=1)
    page = result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    before, after = (float(v) for v in cards(page)["Local correlation"])
    assert after > before
    assert cards(page)["Inverse error, mean"][1] != "–"
    assert "<svg" in page[page.index("convergence-title") :]
