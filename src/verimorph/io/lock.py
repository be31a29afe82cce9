"""Folders that one process has for itself. The system lets a lock go when its process ends, in whatever way."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from verimorph.errors import InputError

LOCK = ".verimorph-lock"
YOUNG = 60.0
"""Seconds: a folder that was made just now may be about to be locked."""


@contextmanager
def locked(folder: str | os.PathLike, *, doing: str) -> Iterator[None]:
    """Have a folder for this process alone while the block runs; the folder is made, and removed again if still empty.

    Parameters
    ----------
    doing
        What the message says that another process does there.

    Raises
    ------
    InputError
        If another process has the folder, or its lock cannot be opened.
    """
    target = Path(folder)
    made = [one for one in (target, *target.parents) if not one.exists()]
    target.mkdir(parents=True, exist_ok=True)
    path = target / LOCK
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{target}: another process is {doing} there; wait for its end, or choose another folder"
        ) from None
    except OSError as error:
        told = (error.strerror or "refused").lower()
        raise InputError(f"{path}: cannot be had ({told}); remove it, or choose another folder") from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held, so that nobody else's is removed; Windows keeps it
            path.unlink()
        lock.release()
        with suppress(OSError):
            for one in made:
                one.rmdir()


class TemporaryFolder:
    """A folder that lasts as long as this object, and is swept away by the next of its kind if the process is killed.

    Parameters
    ----------
    prefix
        Of its name; those of the same prefix that no living process holds are removed.
    """

    def __init__(self, prefix: str) -> None:
        sweep(prefix)
        self._folder = tempfile.TemporaryDirectory(prefix=prefix)
        self.path = Path(self._folder.name)
        self._lock = FileLock(self.path / LOCK, timeout=0)
        self._lock.acquire()

    def __del__(self) -> None:
        if (lock := getattr(self, "_lock", None)) is not None:
            lock.release()


def sweep(prefix: str) -> None:
    """Remove temporary folders of a prefix whose process has ended without doing so."""
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Another user's, one that is held and one that is gone meanwhile are left alone.
        with suppress(OSError, Timeout):
            if (folder / LOCK).is_file() and time.time() - folder.stat().st_mtime > YOUNG:
                with FileLock(folder / LOCK, timeout=0):
                    shutil.rmtree(folder, ignore_errors=True)


__all__ = ["LOCK", "TemporaryFolder", "locked", "sweep"]
