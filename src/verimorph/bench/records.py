"""What a run left: one JSON line each, appended, so that a stopped benchmark goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

QUIET = 0.1
"""Seconds of a run count only if other programs used at most this share of the machine meanwhile."""


@dataclass(frozen=True)
class Record:
    """One engine on one case, once.

    Attributes
    ----------
    engine, case, set, measure, units, kind
        What was run on what.
    threads, repeat
        Threads allowed; 0 for the first run of the pair, 1 for the second ...
    settings, versions
        What the engine was told, and what it is.
    ok, exit_code, problem
        Whether a transform came out; else how the process ended and its last line.
    scores
        ``dice``, ``landmark_error``, ``reference_error`` (mm), ``folding_percent``, ``sd_log_jacobian`` ...
    wall_s
        From start of the process to its end.
    startup_s, files_s, register_s
        Parts of it: until the engine's code is loaded, reading and writing files, and the registration. NaN-free: an
        engine that does not say leaves them out (None).
    cpu_s, peak_mb
        User and system seconds and the largest resident memory of the process and its children.
    others_share
        Share of the machine that other programs used during the run, 0 to 1.
    when, machine
        ISO time (UTC) and processor.
    """

    engine: str
    case: str
    set: str
    measure: str
    threads: int
    repeat: int = 0
    units: str = "mm"
    kind: str = "deformable"
    settings: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    ok: bool = True
    exit_code: int | None = 0
    problem: str = ""
    scores: dict[str, float] = field(default_factory=dict)
    wall_s: float | None = None
    startup_s: float | None = None
    files_s: float | None = None
    register_s: float | None = None
    cpu_s: float | None = None
    peak_mb: float | None = None
    others_share: float | None = None
    when: str = ""
    machine: str = ""

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """What makes a run the same run: it is not done again."""
        return (self.engine, self.settings, self.case, self.threads, self.repeat)

    @property
    def started(self) -> bool:
        """Whether the engine ran at all: its environment and the images were there."""
        return self.ok or self.wall_s is not None

    @property
    def quiet(self) -> bool:
        """Whether the run had the machine nearly to itself, so that its seconds mean something."""
        return self.others_share is None or self.others_share <= QUIET

    @property
    def figure(self) -> float | None:
        """The value of the set's measure, None after a failure."""
        return self.scores.get(self.measure) if self.ok else None


class Records:
    """A file of records. A line that a killed process left unfinished is passed over."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __iter__(self) -> Iterator[Record]:
        if not self.path.exists():
            return
        known = {f.name for f in fields(Record)}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry: dict[str, Any] = json.loads(line)
                yield Record(**{name: value for name, value in entry.items() if name in known})
            except (ValueError, TypeError, AttributeError):
                continue

    def latest(self) -> list[Record]:
        """Return the records, of each run the last one written."""
        return list({record.key: record for record in self}.values())

    def append(self, record: Record) -> None:
        """Add ``record`` and make sure it is on the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = True
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb") as stream:
                stream.seek(-1, os.SEEK_END)
                whole = stream.read(1) == b"\n"
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(("" if whole else "\n") + json.dumps(asdict(record), allow_nan=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
