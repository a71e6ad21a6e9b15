"""The tables in the documentation: what they hold, and that they are those of the code."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES
from circuits_over_time.utils.config.explain import blocks_in
from circuits_over_time.utils.config.keys import BaseConfig, Section, execution
from circuits_over_time.utils.models.known_families import FAMILIES
from circuits_over_time.utils.results.comparison import COMPARISONS
from circuits_over_time.utils.results.kinds import IOI_CONSISTENCY, KINDS, WITHOUT_STEPS
from circuits_over_time.utils.tasks.metrics import METRICS
from circuits_over_time.utils.tasks.registry import TASKS
from tests.support.paths import ROOT
from tools.reference import (
    PAGES,
    TABLES,
    architectures,
    columns,
    document,
    families,
    figures,
    keys_of,
    metrics,
    schema_of,
    scripts,
    tasks,
)

SCRIPTS = [script for script in scripts() if script != "circuits_over_time.py"]


class Shared(Section):
    """Keys of all."""

    model: str = execution(...)
    """What to
    measure."""
    seed: int = 0
    """Of a | b."""


class Scoring(Section):
    """How to score."""

    steps: int = Field(12, gt=0)
    """How many steps."""
    rule: str = "left"
    """Where they lie."""


class First(Shared):
    scoring: Scoring = Scoring()


class Second(Shared):
    seed: int = 3
    """Of c."""
    scoring: Scoring | None = None
    """Scores, where none are stored."""
    other: Scoring = Scoring(steps=5)


class Third(Shared):
    pass


HEAD = ["| key | default | meaning | free |", "| --- | --- | --- | --- |"]
SHARED: dict[str, type[BaseModel]] = {"Every script": Shared}


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_on_a_page_are_those_of_the_code(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert document(text) == text, f"{page} differs from the code; run: make docs"


def test_every_table_stands_on_a_page() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert [name for name in TABLES if text.count(f"<!-- table: {name} -->") != 1] == []


def test_what_stands_outside_the_markers_is_kept() -> None:
    written = document("before\n\n<!-- table: architectures -->\nold\n<!-- end -->\nafter\n")
    assert written == f"before\n\n<!-- table: architectures -->\n\n{architectures()}\n<!-- end -->\nafter\n"


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table: nothing -->\n<!-- end -->",
        "<!-- table: metrics -->\n<!-- table: architectures -->\n<!-- end -->",
    ],
)
def test_a_marker_that_asks_for_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no such table, or no <!-- end -->"):
        document(text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_keys_and_every_key_its_meaning(script: str) -> None:
    schema = schema_of(script)
    assert schema is not None
    assert list(_unexplained(schema)) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_key_with_choices_names_them_all(script: str) -> None:
    schema = schema_of(script)
    assert schema is not None
    assert [key for key, meaning, choice in _named_choices(schema) if f"`{choice}`" not in meaning] == []


def _unexplained(schema: type[BaseModel]) -> Iterator[str]:
    for name, info in schema.model_fields.items():
        blocks = blocks_in(info.annotation)
        if not (info.description or any(block.__doc__ for block in blocks)):
            yield f"{schema.__name__}.{name}"
        for block in blocks:
            yield from _unexplained(block)


def _named_choices(schema: type[BaseModel]) -> Iterator[tuple[str, str, str]]:
    for name, info in schema.model_fields.items():
        for choice in _choices(info.annotation):
            yield f"{schema.__name__}.{name}", info.description or "", choice
        for block in blocks_in(info.annotation):
            yield from _named_choices(block)


def _choices(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def test_a_key_has_its_default_its_meaning_and_whether_it_is_free() -> None:
    assert keys_of(Shared, "Every script", SHARED).splitlines() == [
        "## Every script",
        "",
        *HEAD,
        "| `model` | (needed) | What to measure. | yes |",
        "| `seed` | `0` | Of a \\| b. | |",
    ]


def test_the_keys_of_a_block_are_nested() -> None:
    assert keys_of(First, "First", SHARED).splitlines()[2:] == [
        "The keys of [every script](#every-script), and",
        "",
        *HEAD,
        "| `scoring` | | How to score. | |",
        "| `scoring.steps` | `12` | How many steps. | |",
        "| `scoring.rule` | `left` | Where they lie. | |",
    ]


def test_another_default_of_a_shared_key_or_of_a_block_is_told() -> None:
    assert keys_of(Second, "Second", SHARED).splitlines()[4:] == [
        *HEAD,
        "| `seed` | `3` | Of c. | |",
        "| `scoring` | `null` | Scores, where none are stored. | |",
        "| `scoring.steps` | `12` | How many steps. | |",
        "| `scoring.rule` | `left` | Where they lie. | |",
        "| `other` | | How to score. | |",
        "| `other.steps` | `5` | How many steps. | |",
        "| `other.rule` | `left` | Where they lie. | |",
    ]


def test_a_schema_without_keys_of_its_own_says_so() -> None:
    assert keys_of(Third, "Third", SHARED) == "## Third\n\nThe keys of [every script](#every-script).\n\n"


def test_every_family_and_every_architecture_is_listed() -> None:
    lines = families()
    assert len(lines.splitlines()) == 2 + len(FAMILIES)
    assert all(f"`{next(iter(family.models))}`" in lines for family in FAMILIES)
    assert "`pythia-12b`, steps 50000 and 58000: has one wrong shard (EleutherAI/pythia issue 206)" in lines
    assert architectures().count("`") == 2 * len(ARCHITECTURES)


def test_every_task_every_metric_and_every_figure_script_is_listed() -> None:
    assert all(f"| `{name}` |" in tasks() for name in TASKS)
    assert "| `ioi` | Indirect object identification (" in tasks()
    assert "| `sva` | Subject-verb agreement in " in tasks()
    assert all(f"| `{name}` |" in metrics() for name in METRICS)
    scripts_of_figures = [path.name for path in (ROOT / "plotting").glob("plot_*.py")]
    assert all(f"| `{name}` | " in figures() for name in scripts_of_figures)


def test_docstrings_of_keys_are_their_descriptions() -> None:
    assert issubclass(BaseConfig, BaseModel)
    assert (BaseConfig.model_fields["seed"].description or "").startswith("Seed")


def test_results_of_a_script_are_told_column_by_column() -> None:
    lines = _section("get_model_task_performance.py")
    assert lines[2] == "| `task_performance/.../step*.csv` | `run` | which prompts: `clean` or `corrupted` |"
    assert lines[3].startswith("| | `metric` |")


def test_summaries_over_all_checkpoints_are_told_column_by_column() -> None:
    lines, told = _section("get_ioi_consistency.py"), IOI_CONSISTENCY.summaries["role_handover"]
    at = next(i for i, line in enumerate(lines) if "`ioi_consistency/.../role_handover.csv`" in line)
    cells = [line.split("|")[2:4] for line in lines[at : at + len(told)]]
    assert [(name.strip(" `"), meaning.strip()) for name, meaning in cells] == list(told.items())


def test_every_kind_of_result_and_every_comparison_has_its_columns() -> None:
    text = columns()
    names = [f"`{kind.name}/" for kind in (*KINDS.values(), *WITHOUT_STEPS)]
    names += [f"`comparison/{name}.csv`" for name in COMPARISONS]
    assert [name for name in names if name not in text] == []
    assert [(kind.name, name) for kind in KINDS.values() for name, told in kind.columns.items() if not told] == []


def _section(script: str) -> list[str]:
    """The lines of a script's table."""
    return columns().partition(f"### {script}\n\n")[2].partition("\n### ")[0].splitlines()
