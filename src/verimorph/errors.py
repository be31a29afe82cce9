"""What goes wrong by the user's hand, said so that the user can mend it.

Every message names what is wrong, where, and what to do. The command line prints it as one line and exits with
code 2; a traceback is for our own mistakes only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VerimorphError(Exception):
    """A mistake in the input or the request. ``str(error)`` is one complete line for the user."""


class InputError(VerimorphError):
    """A file, image, transform or landmark list that cannot be used as given."""


class OptionError(VerimorphError, ValueError):
    """A setting that is unknown, malformed or contradicts another."""


class NoInverseError(VerimorphError):
    """A transform that has no inverse (a folded field, a singular matrix)."""


class ResourceError(VerimorphError):
    """Not enough memory or disk for what was asked."""


class MissingExtraError(VerimorphError):
    """An optional dependency is absent; the message says which ``pip install`` brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed; run: pip install 'verimorph[{extra}]'")


class VerimorphWarning(UserWarning):
    """Something a user should know that does not stop the work."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known word, or the list of known words.

    >>> nearest("lnc", ["lncc", "mse"])
    "; did you mean 'lncc'?"
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"
