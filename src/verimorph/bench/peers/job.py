"""The contract between the harness and a peer's script: a job file in, transform files and a result file out.

Runs in the peer's environment: standard library only at the top, SimpleITK where images are read.
"""

# mypy: ignore-errors
# (it is checked against our packages; this runs with the peer's)

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path


class Job:
    """What to do, from the JSON file named on the command line, and where the time went.

    Attributes
    ----------
    fixed, moving, fixed_mask, moving_mask
        File names; masks may be None.
    kind
        ``deformable``, ``affine`` or ``rigid``.
    contrast
        ``same`` or ``different``: how the intensities of the two images relate.
    threads
        Threads allowed.
    settings
        The engine's settings, as the harness lists them.
    out
        Folder for whatever is written.
    """

    def __init__(self) -> None:
        job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        self.fixed, self.moving = job["fixed"], job["moving"]
        self.fixed_mask, self.moving_mask = job["fixed_mask"], job["moving_mask"]
        self.kind, self.contrast = job["kind"], job.get("contrast", "same")
        self.threads, self.settings = job["threads"], job["settings"]
        self.out = Path(job["out"])
        self.loaded_at = time.time()  # a Job is made once the peer's library is imported
        self.seconds = {"files": 0.0, "register": 0.0}

    @contextmanager
    def timing(self, part: str):
        """Add the seconds of a block to ``files`` or ``register``."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def finish(self, chain: list[Path], versions: list[str]) -> None:
        """Name the transform files, the first acting first on a fixed point, and the packages used."""
        result = {
            "chain": [str(path) for path in chain],
            "loaded_at": self.loaded_at,
            "files_s": self.seconds["files"],
            "register_s": self.seconds["register"],
            "versions": {name: metadata.version(name) for name in versions},
        }
        (self.out / "result.json").write_text(json.dumps(result), encoding="utf-8")


def levels_that_fit(size, wanted: int, smallest: int = 4) -> int:
    """Return how many halvings plus one leave every axis at least ``smallest`` voxels, at most ``wanted``."""
    levels = 1
    while levels < wanted and min(size) // 2**levels >= smallest:
        levels += 1
    return levels


def itk_affine(matrix_ras):
    """Return SimpleITK's affine transform (LPS) for a homogeneous matrix in RAS+ mm, fixed to moving."""
    import numpy as np
    import SimpleITK as sitk

    matrix = np.asarray(matrix_ras, dtype=float)
    d = len(matrix) - 1
    flip = np.diag([-1.0, -1.0, 1.0, 1.0]) if d == 3 else np.diag([-1.0, -1.0, 1.0])
    matrix = flip @ matrix @ flip
    affine = sitk.AffineTransform(d)
    affine.SetMatrix(matrix[:d, :d].ravel())
    affine.SetTranslation(matrix[:d, d])
    return affine


def write_field(vectors_lps, reference, path: Path) -> Path:
    """Write displacements ``(x, y, z, d)`` in mm, ITK's frame, on the grid of ``reference`` as an ITK vector image."""
    import numpy as np
    import SimpleITK as sitk

    d = reference.GetDimension()
    order = (*range(d - 1, -1, -1), d)
    image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(vectors_lps, order)), isVector=True)
    image.CopyInformation(reference)
    sitk.WriteImage(image, str(path))
    return path
