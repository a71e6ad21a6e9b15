"""The tables of configs/README.md: what they hold, and that they are those of the code."""

from __future__ import annotations

import importlib
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES
from circuits_over_time.utils.config.explain import blocks_in
from circuits_over_time.utils.config.keys import BaseConfig, Section, execution
from circuits_over_time.utils.models.known_families import FAMILIES
from circuits_over_time.utils.results.comparison import COMPARISONS
from circuits_over_time.utils.results.kinds import IOI_CONSISTENCY, KINDS, WITHOUT_STEPS
from tests.support.paths import CONFIGS, ROOT
from tools.reference import Page, document, documented, find_schema, models_table, results_table

README = (CONFIGS / "README.md").read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


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
    rule: Literal["left", "gauss-legendre"] = "left"
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


@pytest.fixture
def page() -> Page:
    return Page()


def test_the_readme_has_the_tables_of_the_code() -> None:
    assert document(README) == README, "configs/README.md differs from the code; run: make docs"


def test_a_table_that_differs_is_written_anew() -> None:
    changed = README.replace("| `seed` | `0` |", "| `seed` | `1` |").replace("`kl_cspa`", "`kl`")
    assert changed != README
    assert document(changed) == README


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_its_keys_in_the_readme(script: str) -> None:
    schemas = [
        part for part in vars(importlib.import_module(f"circuits_over_time.{script}")).values() if _is_schema(part)
    ]
    tables = [find_schema(name) for name in documented(README, "keys")]
    assert [schema for schema in schemas if schema not in tables] == []


def _is_schema(part: object) -> bool:
    return isinstance(part, type) and issubclass(part, Section)


def test_every_kind_of_result_is_in_the_readme() -> None:
    kinds = (*KINDS.values(), *WITHOUT_STEPS, *COMPARISONS.values())
    assert set(documented(README, "results")) == {kind.script for kind in kinds}


def test_every_key_and_column_has_a_meaning() -> None:
    schemas = [find_schema(name) for name in documented(README, "keys")]
    assert [key for schema in schemas for key in _unexplained(schema)] == []
    assert [(kind.name, name) for kind in KINDS.values() for name, told in kind.columns.items() if not told] == []


def _unexplained(schema: type[BaseModel]) -> list[str]:
    found = []
    for name, info in schema.model_fields.items():
        blocks = blocks_in(info.annotation)
        if not (info.description or any(block.__doc__ for block in blocks)):
            found.append(f"{schema.__name__}.{name}")
        found += [key for block in blocks for key in _unexplained(block)]
    return found


def test_a_key_has_its_default_its_meaning_and_whether_it_is_free(page: Page) -> None:
    assert page.keys(Shared, "Every script").splitlines() == [
        "| key | default | meaning | free |",
        "| --- | --- | --- | --- |",
        "| `model` | (needed) | What to measure. | yes |",
        "| `seed` | `0` | Of a \\| b. | |",
    ]


def test_the_keys_of_a_block_are_nested_and_choices_are_named(page: Page) -> None:
    page.keys(Shared, "Every script")
    assert page.keys(First, "First").splitlines() == [
        "In addition to [Every script](#every-script):",
        "",
        "| key | default | meaning | free |",
        "| --- | --- | --- | --- |",
        "| `scoring` | | How to score. | |",
        "| `scoring.steps` | `12` | How many steps. | |",
        "| `scoring.rule` | `left` | Where they lie: `left`, `gauss-legendre`. | |",
    ]


def test_a_shared_block_is_explained_once_and_another_default_is_told(page: Page) -> None:
    page.keys(Shared, "Every script")
    page.keys(First, "First")
    assert page.keys(Second, "Second").splitlines()[2:] == [
        "| key | default | meaning | free |",
        "| --- | --- | --- | --- |",
        "| `seed` | `3` | Of c. | |",
        "| `scoring` | `null` | Scores, where none are stored. | |",
        "| `scoring.*` | | As in [First](#first). | |",
        "| `other` | | How to score. | |",
        "| `other.steps` | `5` | How many steps. | |",
        "| `other.rule` | | As in [First](#first). | |",
    ]


def test_a_schema_without_keys_of_its_own_says_so(page: Page) -> None:
    page.keys(Shared, "Every script")
    assert page.keys(Third, "Third") == "It has the keys of [Every script](#every-script) and no others.\n"


def test_what_stands_outside_the_markers_is_kept() -> None:
    text = "before\n\n## A B\n\n<!-- keys: utils.config.keys.PromptOptions -->\nold\n<!-- end -->\nafter\n"
    written = document(text)
    assert written.startswith(text.partition("old")[0])
    assert written.endswith("<!-- end -->\nafter\n")
    assert "old" not in written
    assert "| `prepend_bos` | `auto` |" in written


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "# A\n<!-- keys: circuits_over_time.utils.circuits.find.Circuit_ -->\n<!-- end -->",
            "there is no such schema",
        ),
        ("# A\n<!-- keys: utils.nothing.A -->\n<!-- end -->", "there is no such schema"),
        ("# A\n<!-- keys: circuits_over_time.utils.base.errors.UserError -->\n<!-- end -->", "not a schema"),
        ("# A\n<!-- results: get_nothing.py -->\n<!-- end -->", "no kind of result names this script"),
        ("# A\n<!-- models: all -->\n<!-- end -->", "name families or architectures"),
        (
            "# A\n<!-- keys: utils.config.keys.BaseConfig -->\n<!-- results: get_model_cspa.py -->\n<!-- end -->",
            "no <!-- end -->",
        ),
    ],
)
def test_a_marker_that_asks_for_nothing_is_refused(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        document(text)


def test_every_family_and_every_architecture_is_listed() -> None:
    families = models_table("families")
    assert len(families.splitlines()) == 2 + len(FAMILIES)
    assert all(f"`{next(iter(family.models))}`" in families for family in FAMILIES)
    assert "`pythia-12b`, steps 50000 and 58000: has one wrong shard (EleutherAI/pythia issue 206)" in families
    assert models_table("architectures").count("`") == 2 * len(ARCHITECTURES)
    assert documented(README, "models") == ["families", "architectures"]


def test_docstrings_of_keys_are_their_descriptions() -> None:
    assert issubclass(BaseConfig, BaseModel)
    assert (BaseConfig.model_fields["seed"].description or "").startswith("Seed")


def test_results_of_a_script_are_told_column_by_column() -> None:
    lines = results_table("get_model_task_performance.py").splitlines()
    assert lines[2] == "| `task_performance/.../step*.csv` | `run` | which prompts: `clean` or `corrupted` |"
    assert lines[3].startswith("| | `metric` |")


def test_summaries_over_all_checkpoints_are_told_column_by_column() -> None:
    lines = results_table("get_ioi_consistency.py").splitlines()
    columns = IOI_CONSISTENCY.summaries["role_handover"]
    at = next(i for i, line in enumerate(lines) if "`ioi_consistency/.../role_handover.csv`" in line)
    told = [line.split("|")[2:4] for line in lines[at : at + len(columns)]]
    assert [(name.strip(" `"), meaning.strip()) for name, meaning in told] == list(columns.items())
