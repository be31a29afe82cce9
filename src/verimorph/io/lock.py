"""Folders that one process has for itself. The system lets a lock go when its process ends, in whatever way."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from verimorph.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".verimorph-lock"
_HELD = {errno.EACCES, errno.EAGAIN}


def _lock(stream: int) -> bool:
    """Lock an open file; False where another process (or another opening in this one) has it.

    A file system that knows no locks cannot tell: that counts as had.
    """
    try:
        if fcntl is not None:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(stream, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except OSError as error:
        return error.errno not in _HELD
    return True


def _is_file(stream: int, path: Path) -> bool:
    """Whether an open file is still the one of that name: who ends removes it."""
    try:
        return os.path.samestat(os.fstat(stream), os.stat(path))
    except FileNotFoundError:
        return False


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
    while True:
        try:
            stream = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            told = (error.strerror or "refused").lower()
            raise InputError(f"{path}: cannot be had ({told}); remove it, or choose another folder") from error
        if not _lock(stream):
            os.close(stream)
            raise InputError(f"{target}: another process is {doing} there; wait for its end, or choose another folder")
        if _is_file(stream, path):
            break
        os.close(stream)
    try:
        yield
    finally:
        if os.name == "nt":  # where an open file cannot be removed
            os.close(stream)
        with suppress(OSError):
            path.unlink()
        if os.name != "nt":
            os.close(stream)
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
        # Locked under another name first: a sweep looks at locks of that name alone.
        hidden = self.path / f"{LOCK}-{os.getpid()}"
        self._stream = os.open(hidden, os.O_RDWR | os.O_CREAT, 0o600)
        if fcntl is not None:  # elsewhere a locked file can be neither renamed nor removed, and nothing is swept
            _lock(self._stream)
            os.replace(hidden, self.path / LOCK)

    def __del__(self) -> None:
        stream = getattr(self, "_stream", None)
        if stream is not None:
            with suppress(OSError):
                os.close(stream)


def sweep(prefix: str) -> None:
    """Remove temporary folders of a prefix whose process has ended without doing so."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            stream = os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
            try:
                mine = os.fstat(stream).st_uid == os.getuid()
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if mine:
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(stream)


__all__ = ["LOCK", "TemporaryFolder", "locked", "sweep"]
