"""The library beside a user's own `utils.py` and `plotting` folder: from a wheel, editable, and not installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TOY

PACKAGES = sysconfig.get_path("purelib")
PARTS = ("edge_attribution_patching", "plotting", "utils")
# Names of modules that the repository's root would offer.
OURS = sorted(
    path.stem for path in ROOT.iterdir() if path.suffix == ".py" or (path.is_dir() and path.name.isidentifier())
)


def source(folder: Path) -> Path:
    """A copy of what is packed: building writes beside it."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("circuits_over_time.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


INSTALLED = [pytest.param(how, marks=pytest.mark.endurance) for how in ("wheel", "editable")]


@pytest.fixture(scope="module", params=[*INSTALLED, "not installed"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """An interpreter with this environment's packages and the library, and what its environment needs on top."""
    folder = tmp_path_factory.mktemp("python")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "beside.pth").write_text(PACKAGES)
    if request.param == "not installed":
        return python, {"PYTHONPATH": str(ROOT)}
    here = source(tmp_path_factory.mktemp("source"))
    install = [python, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*install, *(["-e"] if request.param == "editable" else []), here], check=True, capture_output=True)
    if request.param == "wheel":
        shutil.rmtree(here)
    return python, {}


def run(python: tuple[Path, dict[str, str]], folder: Path, code: str) -> list[str]:
    """The lines that a user's script prints, which lies in the folder."""
    script = folder / "study.py"
    script.write_text(code, encoding="utf-8")
    interpreter, more = python
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | more
    done = subprocess.run(
        [interpreter, script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_library_works_beside_a_users_own_utils_and_plotting(
    python: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "utils.py").write_text("WHOSE = 'the user'\n")
    (tmp_path / "plotting").mkdir()
    (tmp_path / "plotting" / "__init__.py").write_text("WHOSE = 'the user'\n")
    code = f"""
import circuits_over_time as cot
import plotting
import utils

model = cot.load({str(TOY / "step1350")!r})
circuit = cot.find_circuit(model, cot.task("sva"), n_prompts=4, ig_steps=1, n_random=0, sizes=[100])
print(utils.WHOSE, plotting.WHOSE, len(circuit.curve), "sva" in circuit._repr_html_())

from circuits_over_time.plotting.parts.published.reproduction import FILE
from circuits_over_time.plotting.report.page import ASSETS

print(FILE.is_file(), (ASSETS / "template.html").is_file())
"""
    lines = run(python, tmp_path, code)
    assert lines == ["the user the user 1 True", "True True"]


def test_it_puts_no_name_but_its_own_on_the_path(python: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    if "PYTHONPATH" in python[1]:
        pytest.skip("a PYTHONPATH that is the repository names all that is in it")
    # Other packages may: kaleido 1.0 brings `tests` and `docs` of its own.
    asked = [name for name in OURS if name == "circuits_over_time" or not PathFinder.find_spec(name, [PACKAGES])]
    found = f"for name in {asked}:\n    if importlib.util.find_spec(name):\n        print(name)"
    assert run(python, tmp_path, f"import importlib.util\n{found}") == ["circuits_over_time"]


def test_no_file_of_ours_asks_for_a_name_of_the_users() -> None:
    asked = re.compile(rf"^\s*(?:from|import) (?:{'|'.join(PARTS)})\b", re.MULTILINE)
    here = [
        path
        for folder in (*PARTS, "benchmarks", "notebooks", "tests", "tools")
        for path in (ROOT / folder).rglob("*.py")
    ]
    files = [path for path in (*ROOT.glob("*.py"), *here) if path != Path(__file__)]
    assert [path.name for path in files if asked.search(path.read_text(encoding="utf-8"))] == []
