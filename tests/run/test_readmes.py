"""The project's own pages: they link to what is there and name every script."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT

LINK = re.compile(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)")


def pages() -> list[Path]:
    """Every Markdown page of the project (of a copy without git: those of the folders that have one)."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = listed.stdout.split() or ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "configs/README.md"]
    return [ROOT / name for name in names]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in LINK.findall(page.read_text(encoding="utf-8")):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} is not there"
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}: no such heading"


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_page_sends_readers_outside_the_repository(page: Path) -> None:
    assert "../shared" not in page.read_text(encoding="utf-8")


def test_the_readme_names_every_script_and_every_figure_script() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in (*ROOT.glob("*.py"), *(ROOT / "plotting").glob("plot_*.py"))]
    assert [name for name in names if name not in text] == []


def test_the_readme_of_benchmarks_names_every_benchmark() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "benchmarks").glob("bench_*.py") if path.name not in text] == []
