"""The project's own pages: they link to what is there and name every script."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT, TOY
from tests.support.recipes import recipes

PATH = re.compile(
    r"`((?:benchmarks|configs|docs|edge_attribution_patching|notebooks|plotting|tests|tools|utils)/[\w/.]*)`"
)
LINK = re.compile(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)")


def pages() -> list[Path]:
    """Every Markdown page of the project (of a copy without git: those at the top and one folder below)."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in listed.stdout.split()] or sorted((*ROOT.glob("*.md"), *ROOT.glob("*/*.md")))


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


def test_every_path_and_every_make_target_that_a_page_names_is_there() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    made = {name for recipe in recipes().values() for name in recipe.files}
    for page in pages():
        text = page.read_text(encoding="utf-8")
        assert [name for name in PATH.findall(text) if name not in made and not (ROOT / name).exists()] == [], page
        assert [name for name in re.findall(r"`make ([\w-]+)", text) if name not in targets] == [], page


def test_the_readme_names_every_script_and_links_to_every_page_of_docs() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in ROOT.glob("*.py")]
    names += [f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")]
    assert [name for name in names if name not in text] == []


@pytest.mark.slow
def test_the_library_in_the_readme_does_what_it_says() -> None:
    code = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    names: dict[str, Any] = {}
    exec(code[0].replace("model_cache/toy", TOY.as_posix()), names)
    assert set(names["circuit"].edges[["source", "target", "input"]].itertuples(index=False, name=None)) == {
        ("a3.h1", "logits", ""),
        ("input", "m0", ""),
        ("m0", "a3.h1", "v"),
        ("m2", "a3.h1", "v"),
        ("m0", "m2", ""),
    }


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1300


def test_the_readme_of_benchmarks_names_every_benchmark() -> None:
    text = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "benchmarks").glob("bench_*.py") if path.name not in text] == []
