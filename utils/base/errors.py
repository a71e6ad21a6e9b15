"""The one exception that is meant for users, and the words that help them out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def without_secrets(text: str) -> str:
    """A text without the user's token and without passwords or signatures in addresses."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "***")
    text = re.sub(r"(?i)\bbearer\s+[^\s'\"]+", "Bearer ***", text)
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)


def one_line(error: BaseException) -> str:
    """An error's first line, without secrets."""
    text = " ".join(str(error).strip().split("\n")[0].split()) or type(error).__name__
    return without_secrets(text)[:200]


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


# What is wrong with one checkpoint and no other.


class CheckpointUnusable(UserError):
    """One checkpoint is missing or damaged. A sweep reports it and goes on with the others."""
