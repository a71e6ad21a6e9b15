"""The exceptions that are meant for users, and the words that help them out."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Sequence


class UserError(Exception):
    """Bad input, told in one line: what is wrong, where, the value, and the way out. Ends a script with exit code 2."""


class CheckpointUnusable(UserError):
    """One checkpoint is missing or damaged. A sweep reports it and goes on with the others."""


class HubUnreachable(CheckpointUnusable):
    """The hub did not answer: no network, offline mode, or the hub is down."""


@contextlib.contextmanager
def errors_of_python() -> Iterator[None]:
    """For functions of the library: what scripts tell their users becomes a ValueError in the caller's words."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("=true", "=True").replace("=false", "=False")
        raise ValueError(re.sub(r"pass dtype=(\w+)", r"pass dtype='\1'", text)) from None
    except FloatingPointError as error:
        way_out = "" if "float32" in str(error) else "; pass dtype='float32'"
        raise ValueError(f"model: {error}{way_out}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError("batch_size: a batch does not fit on the device; pass a smaller one") from None


def with_way_out(error: FloatingPointError) -> str:
    """What is not finite, and what to do about it: `layer 1 gives NaN or infinity in float16; pass dtype=float32`."""
    if ";" in str(error):  # It says so itself.
        return str(error)
    if "float32" in str(error):
        return f"{error}; its training diverged, or the file is damaged: leave the step out"
    return f"{error}; pass dtype=float32, and if it stays, leave the step out"


_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "std::bad_alloc",
    "backend out of memory",
    # What PyTorch's own allocator has no part in: handles of libraries, pinned memory, kernels as they are loaded.
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on the CPU or on a GPU. torch need not be imported for it."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(words in str(error) for words in _OUT_OF_MEMORY)
    )


def one_line(error: BaseException) -> str:
    """An error's first line, without secrets."""
    text = " ".join(str(error).strip().split("\n")[0].split()) or type(error).__name__
    return without_secrets(text)[:200]


def without_secrets(text: str) -> str:
    """A text without the user's token and without passwords or signatures in addresses."""
    from huggingface_hub import get_token

    if token := get_token():
        text = text.replace(token, "***")
    text = re.sub(r"(?i)\bbearer\s+[^\s'\"]+", "Bearer ***", text)
    text = re.sub(r"//[^/\s@]+@", "//***@", text)
    return re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text)


def suggest(name: str, known: Iterable[str], listing: str = "known", examples: Iterable[str] | None = None) -> str:
    """The way out of an unknown name: `; did you mean 'batch_size'?`, or a list of the known names, or of `examples` of
    them, which `listing` introduces.
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


def shortened(items: Sequence[object], most: int = 10, separator: str = ", ") -> str:
    """`0, 1 and 152 more`: the first items, and how many there are besides."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more


def some(steps: Sequence[int]) -> str:
    """`step 1000`, `steps 1000, 2000`, `steps 0, 1 and 152 more`."""
    return f"step{'s' if len(steps) > 1 else ''} {shortened(steps)}"
