"""How long is the way from the command line to the maths? What runs before the first product of gradients.

    python tools/call_path.py                                      get_circuits_over_time.py on a kept checkpoint
    python tools/call_path.py -v                                   also names the functions and the classes

It runs the script until `Gradients.contract` is called and counts this project's own code on the way: the distinct
functions that were called and their files, how many of them are open at that moment, and the classes of their
arguments. What runs while a module is imported does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import tempfile
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
END = "Gradients.contract"


class Arrived(BaseException):
    """The maths begins."""


class CallPath:
    """What is called on the way; to be given to `sys.setprofile`."""

    def __init__(self) -> None:
        self.functions: set[CodeType] = set()
        self.classes: set[type] = set()
        self.open: list[FrameType] = []
        self._importing = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            self._importing += {"call": 1, "return": -1}.get(event, 0)
        if event != "call" or self._importing or not _is_own(code):
            return
        self.functions.add(code)
        self.classes |= own_classes(frame)
        if code.co_qualname == END:
            above: FrameType | None = frame
            while above is not None:
                self.open = [above, *self.open] if _is_own(above.f_code) else self.open
                above = above.f_back
            raise Arrived


def own_classes(*frames: FrameType) -> set[type]:
    """This project's classes among the arguments of calls."""
    arguments = [
        frame.f_locals.get(name)
        for frame in frames
        for name in frame.f_code.co_varnames[: frame.f_code.co_argcount + frame.f_code.co_kwonlyargcount]
    ]
    return {kind for kind in map(type, arguments) if kind.__module__.startswith("circuits_over_time.")}


def _is_own(code: CodeType) -> bool:
    """Whether it is a function of this project. Comprehensions and lambdas belong to the function that they are in."""
    path = Path(code.co_filename)
    own = path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / ".venv") and path != Path(__file__).resolve()
    return own and not code.co_name.startswith("<")


def main() -> None:
    parser = argparse.ArgumentParser(description="count what is called before the first product of gradients")
    parser.add_argument("-v", "--verbose", action="store_true", help="name the functions and the classes")
    verbose = parser.parse_args().verbose
    from circuits_over_time.utils.sweep.runner import main as run

    analysis = importlib.import_module("circuits_over_time.get_circuits_over_time").ANALYSIS
    with tempfile.TemporaryDirectory() as folder:
        toy = ROOT / "tests" / "data" / "toy"
        keys = [f"model={toy}", "checkpoints=[1350]", f"results_dir={folder}", "device=cpu"]
        path = CallPath()
        sys.setprofile(path)
        with contextlib.suppress(Arrived):
            run(analysis, ["-c", str(ROOT / "configs" / "toy.yml"), *keys])
        sys.setprofile(None)
    if not path.open:
        sys.exit(f"{END} of {ROOT} was never called; this checkout is not the installed one: set PYTHONPATH to it")
    lines = [
        f"{len(path.functions)} functions in {len({code.co_filename for code in path.functions})} files, "
        f"{len(path.open)} of them open; arguments of {len(path.classes)} classes, "
        f"of {len(own_classes(*path.open))} in the open ones"
    ]
    lines += [f"{'  ' * depth}{frame.f_code.co_qualname}" for depth, frame in enumerate(path.open)]
    if verbose:
        lines += sorted(f"{kind.__module__}.{kind.__qualname__}" for kind in path.classes)
        lines += sorted(f"{Path(c.co_filename).relative_to(ROOT)}  {c.co_qualname}" for c in path.functions)
    sys.stdout.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
