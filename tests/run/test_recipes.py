"""CONTRIBUTING.md's recipes do what they say: each is followed word for word in a copy of the repository."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.support.paths import TOY_STEPS
from tests.support.recipes import Recipe, apply, copy_of_repository, follow, recipes

RECIPES = recipes()
# How many files each recipe touches, apart from tests and from what `make docs` writes.
FILES = {
    "A new analysis": 4,
    "A new figure": 1,
    "A new metric": 1,
    "A new task": 2,
    "A new family": 1,
    "A new architecture": 2,
}
STEPS = [f"step{step:06d}.csv" for step in TOY_STEPS]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_of_repository(tmp_path)


def test_every_recipe_is_followed_by_a_test() -> None:
    assert set(RECIPES) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_touches_few_files(name: str) -> None:
    recipe = RECIPES[name]
    touched = {path for path in (*recipe.files, *dict(recipe.edits)) if not path.startswith("tests/")}
    assert len(touched) == FILES[name], sorted(touched)


def test_the_recipe_of_a_family_makes_it_known(copy: Path) -> None:
    follow(RECIPES["A new family"], copy)
    assert "| `owl-70m`, `owl-160m` | not known |" in (copy / "docs/models.md").read_text()


def test_every_recipe_writes_code_in_the_style_of_the_repository(copy: Path) -> None:
    for recipe in RECIPES.values():
        follow(Recipe(recipe.files, recipe.edits), copy)
    names = {name for recipe in RECIPES.values() for name in (*recipe.files, *dict(recipe.edits))}
    written = sorted(name for name in names if name.endswith(".py"))
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *check, *written], cwd=copy, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy in which the recipes that end in results were followed, in one process that imports the libraries once."""
    folder = copy_of_repository(tmp_path_factory.mktemp("followed"))
    rows = ["clean,corrupted,answers,wrong_answers"]
    for name in ("John", "Paul", "Mark", "Mary"):
        clean, corrupted = (
            f"When Susan and {name} went to the store. {who} gave a drink to" for who in (name, "Susan")
        )
        rows.append(f"{clean},{corrupted}, Susan, {name}")
    (folder / "drinks.csv").write_text("\n".join(rows))
    keys = "checkpoints=[1350] n_prompts=4 evaluate_on=same n_random=0 search.mib=false"
    circuits = f"python get_circuits_over_time.py -c configs/toy.yml task=drinks.csv metric=log_prob {keys}"
    merged = Recipe()
    for name in ("A new metric", "A new task", "A new analysis", "A new figure"):
        recipe = RECIPES[name]
        merged.files |= recipe.files
        merged.edits += recipe.edits
        merged.commands += recipe.commands
    follow(replace(merged, commands=[circuits, *merged.commands]), folder)
    return folder


@pytest.mark.slow
def test_the_recipe_of_an_analysis_measures_and_that_of_a_figure_draws_it(followed: Path) -> None:
    assert (
        "| `n_prompts` | `100` | How many IOI prompts to average over. | |"
        in (followed / "configs/README.md").read_text()
    )
    folder = followed / "results" / "sinks" / "toy"
    assert sorted(path.name for path in folder.glob("*.csv")) == STEPS
    table = pd.read_csv(folder / STEPS[-1])
    assert list(table.columns) == ["model", "step", "tokens", "layer", "head", "value"]
    assert len(table) == 16
    assert table["value"].between(0, 1).all()
    for page in ("figures/sinks.html", "report.html"):
        assert "Attention to the first token" in (followed / page).read_text()


@pytest.mark.slow
def test_the_recipe_of_a_metric_adds_it_to_every_task(followed: Path) -> None:
    table = pd.read_csv(followed / "results" / "task_performance" / "toy" / "ioi" / STEPS[-1])
    values = table[table["run"] == "clean"].set_index("metric")["value"]
    # P(A) is half of P(A) + P(W) and P(A) - P(W); the mean of its logarithm is below the logarithm of its mean.
    assert -1 < values["log_prob"] <= math.log((values["prob_mass"] + values["prob_diff"]) / 2)
    assert "log probability of the answers" in (followed / "figures" / "task_performance.html").read_text()
    # Circuits are found with it on prompts of a CSV.
    found = followed / "results" / "baselines" / "toy" / "drinks"
    assert json.loads((found / "run.json").read_text())["config"]["metric"] == "log_prob"
    assert (pd.read_csv(found / STEPS[-1])["full"] < 0).all()


@pytest.mark.slow
def test_the_recipe_of_a_task_leads_to_its_circuits(followed: Path) -> None:
    table = pd.read_csv(followed / "results" / "baselines" / "toy" / "days" / STEPS[-1])
    assert table["status"].item() == "found"
    assert "Days of the week" in (followed / "figures" / "circuits.html").read_text()


@pytest.mark.endurance
def test_the_recipe_of_an_architecture_computes_what_hugging_face_computes(copy: Path) -> None:
    written = follow(RECIPES["A new architecture"], copy)
    assert int(re.findall(r"(\d+) passed", written)[-1]) >= 5
    assert "failed" not in written


def test_a_change_that_does_not_fit_the_file_is_told() -> None:
    assert apply("a\nb\n", [" a", "-b", "+c"]) == "a\nc\n"
    with pytest.raises(AssertionError, match="found 0 times"):
        apply("a\nb\n", [" b", "+c", " a"])
    with pytest.raises(AssertionError, match="found 2 times"):
        apply("a\na\n", [" a", "+c"])
