"""Notebooks say which packages they lack."""

import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("absent", "code", "says"),
    [
        (
            "jupytext",
            "import runpy; runpy.run_path('notebooks/execute.py')",
            "notebooks: jupytext is not installed; run:",
        ),
        ("PIL", "import circuits_over_time.notebooks.support", "ImportError: notebooks: PIL is not installed; run:"),
    ],
)
def test_a_notebook_without_its_packages_says_what_to_install(absent: str, code: str, says: str) -> None:
    hidden = f"import sys; sys.modules[{absent!r}] = None; {code}"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=ROOT, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1]
    assert (done.returncode, last) == (2 if absent == "jupytext" else 1, f"{says} pip install -r requirements-dev.txt")
