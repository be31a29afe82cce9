"""What all tests share: one thread, shapes checked at run time, real data where there is some, oblique grids."""

from __future__ import annotations

import locale
import os
from collections.abc import Iterator
from pathlib import Path

# One thread a process: results do not depend on the machine, and parallel workers do not fight over cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import jaxtyping  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"

# numba compiles functions from their own source, which a checking wrapper would hide; typer reads signatures itself.
_UNCHECKED = {
    ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for file in SOURCE.rglob("*.py")
    if "cli" in file.parts or "from numba import" in file.read_text(encoding="utf-8")
}

if os.environ.get("VERIMORPH_CHECK_SHAPES", "1") != "0":
    # An int is good where a float is asked for, as in every static type checker.
    _checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    _hook = jaxtyping.install_import_hook("verimorph", _checker).hook
    _hook.should_instrument = lambda name: name.partition(".")[0] == "verimorph" and name not in _UNCHECKED

import hypothesis  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)
# No shrinking: under shape checks it takes minutes, and the failing example is small already.
_phases = (hypothesis.Phase.explicit, hypothesis.Phase.reuse, hypothesis.Phase.generate)
hypothesis.settings.register_profile(
    "verimorph", deadline=None, max_examples=25, derandomize=True, database=None, phases=_phases
)
hypothesis.settings.load_profile("verimorph")


@pytest.fixture(autouse=True)
def _keep_locale() -> Iterator[None]:
    """Writing DICOM through ITK sets the locale of the whole process to C, and later tests read UTF-8 as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real images (``VERIMORPH_DATA``, default ``../shared/data``); tests that need it skip without it."""
    folder = Path(os.environ.get("VERIMORPH_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set VERIMORPH_DATA to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def oblique_grid():
    """Factory of oblique, anisotropic grids off the origin: ``oblique_grid(3)``, ``oblique_grid(2, shape=(9, 7))``.

    ``seed`` varies direction and origin; ``flip=True`` makes the axes left-handed, as in many clinical files.
    """
    from verimorph.grid import Grid

    def make(ndim: int = 3, shape: tuple[int, ...] | None = None, *, seed: int = 0, flip: bool = False) -> Grid:
        random = np.random.default_rng(seed)
        rotation, triangle = np.linalg.qr(random.normal(size=(ndim, ndim)))
        rotation = rotation * np.sign(np.diag(triangle))
        if (np.linalg.det(rotation) < 0) != flip:
            rotation[:, 0] *= -1
        affine = np.eye(ndim + 1)
        affine[:ndim, :ndim] = rotation * np.array([0.9, 1.3, 2.1])[:ndim]
        affine[:ndim, ndim] = random.uniform(-60, 60, ndim)
        return Grid(shape or (13, 11, 9)[:ndim], affine)

    return make


@pytest.fixture
def random() -> np.random.Generator:
    """A seeded source of random numbers."""
    return np.random.default_rng(20240517)


class _BrowserCount:
    """Fails a run that must open the report in a browser (``REQUIRE_BROWSER=1``, as in CI) and did not."""

    def __init__(self) -> None:
        self.passed = self.skipped = 0

    @property
    def failed(self) -> bool:
        return self.skipped > 0 or self.passed == 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "browser" in report.keywords:
            self.passed += report.when == "call" and report.passed
            self.skipped += report.skipped

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.failed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.failed:
            terminalreporter.section("browser", red=True, bold=True)
            terminalreporter.line(
                f"FAILED: REQUIRE_BROWSER is set; {self.passed} browser tests passed, {self.skipped} were skipped",
                red=True,
            )


def pytest_configure(config: pytest.Config) -> None:
    """Count browser tests where one is required, in the process that reports (not in xdist's workers)."""
    if os.environ.get("REQUIRE_BROWSER", "0") not in ("", "0") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_BrowserCount(), "browser-count")
