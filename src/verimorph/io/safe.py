"""Writing that leaves either the whole result or nothing: build beside, then rename.

Everything the package writes goes through here. A run that fails, is interrupted or fills the disk removes what it had
begun; files that were there before stay as they were.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from verimorph.errors import InputError, ResourceError

_counter = itertools.count()
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EISDIR}


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; what was written there becomes ``path`` when the block ends well.

    The yielded path has the same file name in a hidden folder beside ``path``, so that suffixes stay and formats of two
    files (``.mhd`` with ``.raw``, ``.hdr`` with ``.img``) refer to each other by their final names: every file left in
    that folder is moved. Missing parent folders are made.

    Parameters
    ----------
    path
        Where the result goes. A file that exists there is replaced in one step, and kept if the block fails.

    Raises
    ------
    InputError
        If the place cannot be written to.
    ResourceError
        If the disk is full.

    Examples
    --------
    >>> with replacing("result.json") as beside:  # doctest: +SKIP
    ...     beside.write_text("{}")
    """
    target = Path(path)
    if os.path.isdir(target):
        raise InputError(f"{target}: is a folder, a file name is needed; give e.g. {target / 'result.nii.gz'}")
    with writing_folder(target.parent) as folder:
        yield folder / target.name


@contextmanager
def writing_folder(path: str | os.PathLike, *, stale: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a hidden folder to fill; when the block ends well all its files move into the folder ``path``.

    Files of the same name in ``path`` are replaced, others are kept but for those named as stale. If the block raises
    (a Ctrl-C is an exception too, and on the command line so is a SIGTERM) nothing in ``path`` has changed, and folders
    made for it are removed again.

    Parameters
    ----------
    path
        The folder for the results; made, with its parents, if missing.
    stale
        Names of files that are removed at the end if the block did not write them: what an earlier run left under
        these names would be taken for a part of this one.

    Raises
    ------
    InputError
        If the folder cannot be made or written to, or a folder stands where a file is to go.
    ResourceError
        If the disk is full.
    """
    target = Path(path)
    made = [folder for folder in (target, *target.parents) if not os.path.exists(folder)]
    hidden = target / f".partial-{os.getpid()}-{next(_counter)}"
    try:
        with _plain_disk_errors(target, hidden):
            hidden.mkdir(parents=True)
            yield hidden
            left = [target / name for name in stale if not (hidden / name).exists()]
            _move_into(hidden, target)
            for file in left:
                if file.is_file():
                    file.unlink()
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        for folder in made:  # deepest first; one that somebody else has put a file into stays
            try:
                folder.rmdir()
            except OSError:
                break
        raise
    shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def replacing_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a hidden folder to fill; when the block ends well it becomes the folder ``path``, as a whole.

    For folders whose files belong together (weights and their card): a reader never sees files of two generations. What
    stood there before is replaced, and kept if the block fails. The files are on the disk before the folder is renamed.

    Raises
    ------
    InputError
        If the place cannot be written to, or a file stands there.
    ResourceError
        If the disk is full.
    """
    target = Path(path)
    if target.is_file():
        raise InputError(f"{target}: is a file where a folder of results goes; choose another output")
    hidden = target.parent / f".partial-{os.getpid()}-{next(_counter)}"
    before = target.parent / f".before-{os.getpid()}-{next(_counter)}"
    try:
        with _plain_disk_errors(target, hidden):
            hidden.mkdir(parents=True)
            yield hidden
            for file in hidden.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as stream:
                        os.fsync(stream.fileno())
            if target.exists():
                os.replace(target, before)
            os.replace(hidden, target)
    except BaseException:
        if before.exists() and not target.exists():
            os.replace(before, target)
        raise
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def keep_inputs(targets: Iterable[str | os.PathLike], inputs: Iterable[str | os.PathLike]) -> None:
    """Refuse to write results onto files that are read: nothing may take the place of what it was made of.

    Raises
    ------
    InputError
        Naming the first target that is an input, whatever way it is written.
    """
    read = {os.path.realpath(file) for file in inputs}
    for target in targets:
        if os.path.realpath(target) in read:
            raise InputError(f"{target}: is an input, and a result would take its place; choose another output folder")


def _move_into(source: Path, target: Path) -> None:
    """Move every file below ``source`` to the same place below ``target``; check for clashes before the first move."""
    files = sorted(file.relative_to(source) for file in source.rglob("*") if not file.is_dir())
    for file in files:
        if (target / file).is_dir():
            raise InputError(
                f"{target / file}: a folder stands where a result file goes; move it or choose another output"
            )
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / file, target / file)


@contextmanager
def _plain_disk_errors(target: Path, hidden: Path) -> Iterator[None]:
    """Turn an operating system's refusal to write below ``target`` into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise ResourceError(disk_full_message(target)) from error
        about = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | os.PathLike) else target
        ours = about == target or about in target.parents or hidden == about or hidden in about.parents
        if error.errno in _REFUSED | {errno.EEXIST} and (ours or target in about.parents):
            reason = (error.strerror or "refused").lower()
            raise InputError(f"{target}: cannot be written ({reason}); choose another output") from error
        raise


def disk_full_message(path: str | os.PathLike) -> str:
    """Return the line that says the disk holding ``path`` is full."""
    return f"{path}: the disk is full ({_megabytes(free_space(path))} free); free some space or choose another output"


def free_space(path: str | os.PathLike) -> int:
    """Bytes free on the disk that holds ``path`` (which need not exist yet)."""
    return shutil.disk_usage(_existing_parent(Path(path))).free


def require_free_space(path: str | os.PathLike, needed: int) -> None:
    """Refuse, before any work is done, to write ``needed`` bytes where they do not fit.

    Raises
    ------
    ResourceError
        If the disk that holds ``path`` has less free than ``needed``; the message gives both.
    """
    free = free_space(path)
    if free < needed:
        raise ResourceError(
            f"{path}: needs about {_megabytes(needed)}, the disk has {_megabytes(free)} free; "
            "free some space or choose another output"
        )


def require_writable(path: str | os.PathLike) -> None:
    """Check, before long work, that results can be written into the folder ``path``; nothing is left behind.

    Raises
    ------
    InputError
        If they cannot.
    """
    target = Path(path)
    existing = _existing_parent(target)
    if not existing.is_dir():
        raise InputError(f"{target}: {existing} is a file, a folder is needed; choose another output")
    with _plain_disk_errors(target, existing):
        trial = existing / f".partial-{os.getpid()}-{next(_counter)}"
        try:
            trial.mkdir()
        except FileNotFoundError:  # how a file system of another kind, such as /proc, says no
            raise InputError(f"{target}: cannot be written (no folder can be made there); choose another") from None
        trial.rmdir()


def require_writable_file(path: str | os.PathLike) -> None:
    """The same for one file.

    Raises
    ------
    InputError
        If it cannot be written, or a folder stands there.
    """
    target = Path(path)
    if target.is_dir():
        raise InputError(f"{target}: is a folder, a file name is needed; choose another output")
    require_writable(target.absolute().parent)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not os.path.exists(path):
        path = path.parent
    return path


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
