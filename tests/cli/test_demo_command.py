"""``verimorph demo`` on the command line, with a solver that answers at once."""

import numpy as np
import pytest

pytest.importorskip("nilearn", reason="pip install 'verimorph[demo]'")


@pytest.fixture
def answer(monkeypatch):
    """Make the solver return the truth, a given number of millimetres off, on a pair that is quick to make."""
    from verimorph import demo, registration
    from verimorph.grid import Grid
    from verimorph.image import Image
    from verimorph.synthetic import random_transform
    from verimorph.transform import Affine, Composite

    axis = np.linspace(-1, 1, 32)
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(axis, axis, axis, indexing="ij")))
    grid = Grid((32, 32, 32), np.diag([5.0, 5.0, 5.0, 1.0]))
    brain = Image.from_array((radius < 0.7).astype(np.uint8), grid, name="brain mask")
    fixed = Image.from_array((200 * (radius < 0.7) + 50 * np.cos(9 * radius)).astype(np.float32), grid, name="fixed")
    truth = random_transform(grid, mask=brain.array > 0, seed=1)
    moving = truth.inverse().resample(fixed, grid)
    monkeypatch.setattr(demo, "make_pair", lambda seed=0: demo.KnownPair(fixed, moving, truth, brain))

    def set_error(millimetres: float) -> None:
        shift = np.eye(4)
        shift[0, 3] = millimetres
        found = Composite([truth, Affine(shift)])

        def register(**_):
            return registration.Registration(
                fixed=fixed,
                moving=moving,
                transform=found,
                inverse=found.inverse(),
                initial=Affine(np.eye(4)),
                settings={"seed": 0},
                timings={"solve": 1.0},
            )

        monkeypatch.setattr(registration, "register", register)

    return set_error


def test_demo_passes_below_a_millimetre(verimorph, answer, tmp_path):
    answer(0.5)
    done = verimorph("demo", "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "True error, mm" in done.out
    assert "0.50" in done.out
    assert str(tmp_path / "out" / "report.html") in done.out.replace("\n", "")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "True error, mean" in page
    assert {f.name for f in (tmp_path / "out" / "input").iterdir()} == {
        "fixed.nii.gz",
        "moving.nii.gz",
        "brain_mask.nii.gz",
        "truth.h5",
    }


def test_demo_fails_above_a_millimetre(verimorph, answer, tmp_path):
    answer(1.5)
    done = verimorph("demo", "-o", tmp_path / "out")
    assert done.code == 1
    assert "1.50 mm" in done.out.replace("\n", " ")
    assert (tmp_path / "out" / "report.html").exists()


def test_demo_on_own_images(verimorph, pair, tmp_path):
    done = verimorph("demo", "-f", pair[0], "-m", pair[1], "-o", tmp_path / "own", "-q", "fast", "-j", 1)
    assert done.code == 0, done.err
    assert "True error" not in done.out
    assert (tmp_path / "own" / "report.html").exists()


def test_demo_wants_both_images_or_none(verimorph, pair, tmp_path):
    verimorph("demo", "-f", pair[0], "-o", tmp_path / "x").assert_user_error("--moving is missing")
    assert not (tmp_path / "x").exists()
