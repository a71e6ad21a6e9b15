"""The one exception that is meant for users, and the words that help them out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, the value, and the way out. Ends a script with exit code 2."""


def suggest(name: str, known: Iterable[str], listing: str = "known", examples: Iterable[str] | None = None) -> str:
    """The way out of an unknown name: `; did you mean 'batch_size'?`, or a list of the known names.

    Args:
        name: what was written.
        known: what may be written.
        listing: introduces the list, where no known name is close.
        examples: what to list instead, where there are too many known names.
    """
    names = list(known)
    listed = ", ".join(names if examples is None else examples)
    return did_you_mean(closest(name, names)) or f"; {listing}: {listed}"


def closest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name that looks most like `name`; None where the similarity of all is below `cutoff` (0 to 1)."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str | None) -> str:
    """`; did you mean 'batch_size'?`, or nothing where there is no such name."""
    return "" if name is None else f"; did you mean '{name}'?"
