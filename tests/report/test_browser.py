"""The page in a real browser: no script error, every view draws, light and dark, keyboard, narrow windows, paper."""

import html
import json
import os
import re
import shutil
import subprocess
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from verimorph.report import write_report

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--force-device-scale-factor=1",
    "--disable-background-networking",
    "--disable-component-update",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
    "--timeout=30000",
)


def required() -> bool:
    """Whether a missing browser is an error: in continuous integration it is."""
    return any(os.environ.get(name, "0").lower() not in ("", "0", "false") for name in ("CI", "REQUIRE_BROWSER"))


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        message = "no Chromium found; on Debian and Ubuntu: apt-get install chromium"
        pytest.fail(message) if required() else pytest.skip(message)
    return found


@pytest.fixture(scope="module")
def page(known, tmp_path_factory) -> Path:
    finished = known()
    finished.warnings.append("sform and qform disagree; the sform is used")
    return write_report(finished, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def visit(browser, page, tmp_path_factory):
    """``visit("mode=grid", size=(w, h), script="...")`` returns the DOM after scripts ran, or pixels if ``picture``."""
    return visitor(browser, page, tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def visit_unsure(browser, known, unsure, tmp_path_factory):
    """The same for a registration whose error is bounded."""
    folder = tmp_path_factory.mktemp("unsure")
    return visitor(browser, write_report(unsure(known()), folder / "report.html"), folder)


def visitor(browser: str, page: Path, folder: Path):
    """Return the function that opens a page."""

    @cache
    def go(view: str = "", *, size: tuple[int, int] = (1280, 1500), script: str = "", picture: bool = False):
        source = page
        if script:
            source = folder / "scripted.html"
            text = page.read_text(encoding="utf-8")
            source.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        shot = folder / "shot.png"
        shot.unlink(missing_ok=True)
        what = f"--screenshot={shot}" if picture else "--dump-dom"
        command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={size[0]},{size[1]}", what]
        done = subprocess.run([*command, f"{source.as_uri()}#{view}"], capture_output=True, text=True, timeout=120)
        assert not re.search(r"CONSOLE.*(Uncaught|Refused|Error)", done.stderr), done.stderr
        if picture:
            return np.asarray(Pillow.open(shot).convert("RGB")).astype(int)
        root = re.search(r"<html[^>]*>", done.stdout)[0]
        assert 'data-ready="true"' in root, "the page's script did not finish"
        assert "data-error" not in root, root
        return done.stdout

    return go


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int = 40) -> int:
    """Number of pixels of about this colour."""
    return int((np.abs(picture - np.array(colour)).max(-1) < tolerance).sum())


orange = partial(near, colour=(255, 145, 48))
cyan = partial(near, colour=(53, 212, 234))


def test_text_of_the_page(visit):
    dom = visit()
    for words in (
        "Registration report",
        "Uncalibrated: no error bound yet, no verdict.",
        "Dice",
        "Landmark error",
        "sform",
    ):
        assert words in dom
    assert re.search(r'class="viewer"[^>]*data-mode="slider"', dom)


def test_every_view_points_at_layers_that_exist(visit):
    script = """
      const viewer = document.querySelector('.viewer'), seen = {};
      for (const input of document.querySelectorAll('input[name=mode]')) {
        input.click();
        const uses = [...viewer.querySelectorAll('.planes use[href]')].map((use) => use.getAttribute('href').slice(1));
        const shown = [...viewer.querySelectorAll('[data-for]')].filter((e) => !e.hidden).map((e) => e.dataset.for);
        seen[input.value] = { uses, missing: uses.filter((id) => !document.getElementById(id)), shown };
      }
      document.documentElement.dataset.seen = JSON.stringify(seen);
    """
    root = re.search(r"<html[^>]*>", visit("place=worst&moving=before", script=script))[0]
    seen = json.loads(html.unescape(re.search(r'data-seen="([^"]*)"', root)[1]))
    assert list(seen) == ["slider", "flicker", "checker", "edges", "labels", "grid", "volume", "residual", "error"]
    for mode, found in seen.items():
        assert len(found["uses"]) >= 6, mode
        assert all(name.startswith("worst-") for name in found["uses"]), mode
        assert found["missing"] == [], mode
        assert set(found["shown"]) == {mode}


def test_lines_are_drawn_in_their_colours(visit):
    slider = visit("theme=light", picture=True)
    edges, labels = (visit(f"mode={mode}&theme=light", picture=True) for mode in ("edges", "labels"))
    assert orange(slider) < 200
    assert orange(edges) > 1000
    assert cyan(labels) > cyan(edges) + 300


def test_light_and_dark(visit):
    light, dark = (visit(f"theme={theme}", picture=True) for theme in ("light", "dark"))
    assert light[5, 5].min() > 235
    assert dark[5, 5].max() < 40
    assert (light.std(axis=(0, 1)) > 20).all()


def test_slider_shows_fixed_on_the_left_and_moving_on_the_right(visit):
    script = "const split = document.querySelector('#split'); split.value = {}; split.dispatchEvent(new Event('input'))"
    both, fixed, moving = (visit("moving=before", script=script.format(n), picture=True) for n in (50, 100, 0))
    changed = np.abs(fixed - moving).max(-1) > 60
    assert changed.sum() > 5000
    from_fixed, from_moving = np.abs(both - fixed).max(-1) < 8, np.abs(both - moving).max(-1) < 8
    share = (from_fixed & changed).sum() / changed.sum(), (from_moving & changed).sum() / changed.sum()
    assert min(share) > 0.2
    assert sum(share) > 0.85


def test_keyboard_and_sorting(visit):
    script = """
      const press = (key) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
      const seen = [], viewer = document.querySelector('.viewer').dataset;
      press('4'); seen.push(viewer.mode); press('b'); seen.push(viewer.moving); press('2'); seen.push(viewer.mode);
      press(' '); seen.push(document.querySelector('#play').textContent);
      const table = document.querySelector('table.sortable'), heads = table.querySelectorAll('th button');
      heads[0].click(); seen.push([...table.tBodies[0].rows].map((r) => r.cells[0].textContent).join(''));
      document.querySelector('.sheet-toggle').click();
      seen.push(getComputedStyle(document.querySelector('#sheet')).display);
      document.documentElement.dataset.seen = seen.join('|');
    """
    root = re.search(r"<html[^>]*>", visit(script=script))[0]
    assert re.search(r'data-seen="([^"]*)"', root)[1] == "edges|before|flicker|Play|123|block"


@pytest.mark.parametrize("width", [520, 820])
def test_nothing_sticks_out_sideways(visit, width):
    script = "document.documentElement.dataset.wide = document.documentElement.scrollWidth - innerWidth"
    root = re.search(r"<html[^>]*>", visit("sheet=1", size=(width, 900), script=script))[0]
    assert int(re.search(r'data-wide="(-?\d+)"', root)[1]) <= 0


def test_prints(browser, page, tmp_path):
    paper = tmp_path / "report.pdf"
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--print-to-pdf={paper}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    assert paper.read_bytes().startswith(b"%PDF")
    assert paper.stat().st_size > 50_000


def test_bound_is_drawn_in_the_colours_of_its_bar(visit_unsure):
    bright, dark = (249, 210, 74), (75, 17, 115)
    picture = visit_unsure("theme=light", size=(1280, 1500), picture=True)
    for colour in (bright, dark):
        assert near(picture, colour, 70) > 1000
    amber = near(picture, (154, 103, 0), 12)
    assert amber > 300


def test_view_of_the_bound_opens_and_has_its_scale(visit_unsure):
    script = """
      const shown = [...document.querySelectorAll('.viewer [data-for]')].filter((e) => !e.hidden);
      const uses = [...document.querySelectorAll('.viewer .planes use[href]')].map((u) => u.getAttribute('href'));
      document.documentElement.dataset.seen =
        [shown.map((e) => e.dataset.for), uses.every((id) => document.querySelector(id)), uses.length].join('|');
    """
    root = re.search(r"<html[^>]*>", visit_unsure("mode=bound", script=script))[0]
    assert re.search(r'data-seen="([^"]*)"', root)[1] == "bound|true|6"


@pytest.mark.parametrize("width", [520, 1280])
def test_bound_does_not_stick_out_sideways(visit_unsure, width):
    script = "document.documentElement.dataset.wide = document.documentElement.scrollWidth - innerWidth"
    root = re.search(r"<html[^>]*>", visit_unsure("sheet=1", size=(width, 900), script=script))[0]
    assert int(re.search(r'data-wide="(-?\d+)"', root)[1]) <= 0
