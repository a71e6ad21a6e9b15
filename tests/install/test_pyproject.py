"""What `pyproject.toml` promises: every folder is in the wheel, and the pinned versions lie in its ranges."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable

import pytest
from packaging.requirements import Requirement

from circuits_over_time.utils.models.adapters import INSTALL
from tests.support.paths import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PREFIX = "_circuits_over_time."


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    """By name, as the package index compares names."""
    found = [Requirement(line) for line in lines]
    return {re.sub(r"[-_.]+", "-", each.name).lower(): each for each in found}


def pinned(name: str) -> dict[str, Requirement]:
    """What a file of requirements pins; it may read others and install this project too."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return requirements(line for line in lines if line and not line.startswith(("#", "-")))


RANGES = {"requirements.txt": PROJECT["dependencies"]} | {
    f"requirements-{extra}.txt": PROJECT["optional-dependencies"][extra] for extra in ("cluster", "real", "dev")
}


def test_what_adapters_need_is_told_as_it_is_required() -> None:
    """By the name of the package itself: this project's own is on no index."""
    (needed,) = PROJECT["optional-dependencies"]["adapters"]
    assert f"pip install '{needed}'" == INSTALL
    assert f"`{INSTALL}`" in (ROOT / "docs" / "models.md").read_text(encoding="utf-8")


def test_every_folder_with_code_is_in_the_wheel() -> None:
    setuptools = PYPROJECT["tool"]["setuptools"]
    tops = [name.removeprefix(PREFIX) for name in setuptools["package-dir"]]
    folders = {init.parent for top in tops for init in (ROOT / top).rglob("__init__.py")}
    names = {PREFIX + folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}
    assert set(setuptools["packages"]) == names, "write the difference into pyproject.toml: packages"
    modules = {path for top in tops for path in (ROOT / top).rglob("*.py")}
    assert {path for path in modules if path.parent not in folders} == set(), "a folder without __init__.py"


def test_every_file_beside_the_code_is_in_the_wheel() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["package-data"]
    packed = {
        path
        for name, patterns in listed.items()
        for pattern in patterns
        for path in (ROOT / name.removeprefix(PREFIX).replace(".", "/")).glob(pattern)
    }
    tops = ("edge_attribution_patching", "plotting", "utils")
    files = {path for top in tops for path in (ROOT / top).rglob("*") if path.is_file()}
    others = {path for path in files if path.suffix not in {".py", ".pyc"}}
    assert others - packed == set((ROOT / "plotting" / "examples").iterdir()), "pictures of README alone stay out"


@pytest.mark.parametrize("name", RANGES)
def test_pinned_versions_lie_in_the_ranges(name: str) -> None:
    ranges = requirements(RANGES[name])
    ranges.pop("circuits-over-time", None)  # the extra `dev` names the extra `cluster`
    pins = pinned(name)
    assert set(pins) == set(ranges)
    for package, pin in pins.items():
        (version,) = pin.specifier
        assert version.operator == "=="
        assert version.version in ranges[package].specifier, package


@pytest.mark.parametrize("name", RANGES)
def test_ranges_name_a_lowest_version_and_end(name: str) -> None:
    for requirement in requirements(RANGES[name]).values():
        if requirement.name != "circuits-over-time":
            assert {part.operator for part in requirement.specifier} == {">=", "<"}, requirement
