"""The page about the library: its examples run, and it has every function."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import circuits_over_time as cot
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "library.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_examples_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/library.md", "exec"), names)
    assert len(blocks) > 12
    assert names["table"]["status"].tolist() == ["task not learned", "found", "found"]


def test_every_function_is_on_the_page_and_has_an_example() -> None:
    for name in cot.__all__:
        assert f"cot.{name}(" in PAGE, name
        assert "Example:" in getattr(cot, name).__doc__
