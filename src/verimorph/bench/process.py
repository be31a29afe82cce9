"""Run one process and say what it cost: wall seconds, CPU seconds, peak memory, how it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from verimorph.bench import machine

_LAUNCHER = Path(__file__).with_name("launcher.py")


@dataclass(frozen=True)
class Outcome:
    """How a process ended and what it used.

    Attributes
    ----------
    exit_code
        As shells count: 128 + signal where a signal ended it; None if it ran into the time limit.
    wall_s, cpu_s
        Seconds from start to end; user and system seconds of it and its children.
    peak_mb
        Largest resident memory of any one of its processes.
    started
        ``time.time()`` at the start.
    last_line
        Last line it printed, for the record of a failure.
    others
        Share of the machine that other programs used meanwhile, 0 to 1; None where the system does not tell.
    """

    exit_code: int | None
    wall_s: float
    cpu_s: float
    peak_mb: float
    started: float
    last_line: str
    others: float | None = None


def measure(command: list[str], *, log: Path, threads: int, limit_s: float, folder: Path | None = None) -> Outcome:
    """Run ``command`` with at most ``threads`` threads and ``limit_s`` seconds; both outputs go to the file ``log``.

    Every common numerical library is told the number of threads through its environment variable. The process gets a
    group of its own, so that a time limit or Ctrl-C here ends its children too. POSIX systems only.
    """
    environment = dict(os.environ)
    for variable in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
    ):
        environment[variable] = str(threads)
    environment["PYTHONUNBUFFERED"] = "1"
    environment.pop("PYTHONPATH", None)  # a peer's interpreter must see its own packages only
    log = log.absolute()
    log.parent.mkdir(parents=True, exist_ok=True)
    before = machine.busy_seconds()
    launcher = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_LAUNCHER), str(log), str(limit_s), *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env=environment,
        cwd=folder,
        start_new_session=True,  # a Ctrl-C reaches it only through us
    )
    try:
        answer, _ = launcher.communicate()
    except BaseException:
        launcher.send_signal(signal.SIGTERM)
        launcher.wait()
        raise
    if launcher.returncode:
        raise RuntimeError(f"the launcher of {command[0]} ended with exit code {launcher.returncode}")
    after = machine.busy_seconds()
    facts = json.loads(answer)
    code = facts["exit_code"]
    others = None
    if before is not None and after is not None and facts["wall_s"] > 0:
        capacity = facts["wall_s"] * (os.cpu_count() or 1)
        others = min(max((after - before - facts["cpu_s"]) / capacity, 0.0), 1.0)
    if facts["not_started"]:
        last_line = f"{command[0]}: {os.strerror(facts['not_started'])}"
    else:
        last_line = _last_line(log)
    unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss is in bytes on macOS, in kB elsewhere
    return Outcome(
        exit_code=None if facts["expired"] else (code if code >= 0 else 128 - code),
        wall_s=facts["wall_s"],
        cpu_s=facts["cpu_s"],
        peak_mb=facts["maxrss"] / unit,
        started=facts["started"],
        last_line=last_line,
        others=others,
    )


def _last_line(log: Path) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - 4096))
        lines = [line.strip() for line in stream.read().decode("utf-8", "replace").splitlines()]
    return next((line for line in reversed(lines) if line), "")[:300]
