"""The one exception that is meant for users, and the words that help them out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, the value, and the way out. Ends a script with exit code 2."""


def suggest(name: str, known: Iterable[str], listing: str = "known", examples: Iterable[str] | None = None) -> str:
    """The way out of an unknown name: `; did you mean 'batch_size'?`, or the list of names where none is close (or of
    examples, where there are too many)."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; {listing}: {', '.join(names if examples is None else examples)}"
