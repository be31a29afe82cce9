"""Make docs/images/report.png: the top of the demonstration's report as a browser shows it.

    verimorph demo && python docs/pictures.py demo_output/report.html

Only the demonstration's template brain may be shown here; no other image may be published.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

TARGET = Path(__file__).parent / "images" / "report.png"
LARGEST_BYTES = 300_000
SIZE = (1180, 1290)


def main(report: Path) -> None:
    """Photograph a report and store it with a palette, small enough for a repository."""
    browser = next(
        (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None
    )
    if browser is None:
        sys.exit("no Chromium found; on Debian and Ubuntu: apt-get install chromium")
    shot = TARGET.with_suffix(".tmp.png")
    address = f"{report.resolve().as_uri()}#mode=edges&theme=light"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=3000"]
    try:
        subprocess.run(
            [browser, *flags, f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}", address], check=True
        )
        picture = Image.open(shot).convert("RGB")
    finally:
        shot.unlink(missing_ok=True)
    for colours in (256, 128, 64, 32):
        stored = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(stored, "PNG", optimize=True)
        if stored.tell() <= LARGEST_BYTES:
            break
    TARGET.write_bytes(stored.getvalue())
    print(f"{TARGET}: {stored.tell() / 1000:.0f} kB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
