"""The notebooks run, are what their .py says, and hold small outputs without errors."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from choreographer.browsers.chromium import Chromium

from circuits_over_time.notebooks.execute import FOLDER, NAMES, REAL, execute, load, with_parameters
from tests.support.paths import ROOT, TOY_STEPS

MOST_BYTES = 400_000
MOST_SECONDS = 600  # a cell, on a machine that is busy otherwise
NO_BROWSER = {"BROWSER_PATH": "/nowhere/chromium"}  # figures stay interactive, which takes less long
# Pictures that each notebook shows at least.
FIGURES = {"ioi_circuit": 8, "greater_than_circuit": 5, "reading_a_sweep": 6, "real_ioi_circuit": 2}
PICTURE, INTERACTIVE = "image/png", "application/vnd.plotly.v1+json"


def committed(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def shown(notebook: nbformat.NotebookNode, *kinds: str) -> list[Any]:
    return [output.data for output in outputs(notebook) if any(kind in output.get("data", {}) for kind in kinds)]


def test_the_names_are_those_of_the_folder() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES + REAL) == set(FIGURES)


@pytest.mark.parametrize("name", NAMES + REAL)
def test_py_and_ipynb_hold_the_same_cells(name: str) -> None:
    def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str, list[str]]]:
        return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]

    assert cells(load(name)) == cells(committed(name)), f"run: python notebooks/execute.py {name}"


@pytest.mark.parametrize("name", NAMES + REAL)
def test_notebooks_use_the_library_the_figures_and_nothing_else_of_ours(name: str) -> None:
    """`steps.py`, `drawing.py` and `support.py`, which they share, too."""
    texts = [(FOLDER / f"{module}.py").read_text() for module in (name, "steps", "drawing", "support")]
    imports = set(re.findall(r"^(?:from|import) (circuits_over_time[\w.]*)", "\n".join(texts), flags=re.MULTILINE))
    assert "circuits_over_time" in imports
    assert {module.split(".")[1] for module in imports if "." in module} == {"notebooks", "plotting"}


@pytest.mark.parametrize("name", NAMES + REAL)
def test_committed_outputs_are_there_small_and_without_errors(name: str) -> None:
    notebook = committed(name)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed once, in order"
    assert {output.output_type for output in outputs(notebook)} <= {"execute_result", "display_data"}
    pictures = shown(notebook, PICTURE)
    assert len(pictures) >= FIGURES[name]
    assert all(base64.b64decode(data[PICTURE]).startswith(b"\x89PNG") for data in pictures)
    assert not shown(notebook, INTERACTIVE), "executed without a browser"
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES + REAL)
def test_nothing_committed_tells_where_it_was_run(name: str) -> None:
    text = json.dumps([output for output in outputs(committed(name)) if "image/png" not in output.get("data", {})])
    for place in (str(ROOT), str(Path.home()), "site-packages", "/home/", "/Users/", "/tmp/"):
        assert place not in text


@pytest.mark.parametrize(
    ("name", "environment"),
    [
        pytest.param("ioi_circuit", {}, marks=pytest.mark.endurance),
        pytest.param("greater_than_circuit", NO_BROWSER, marks=pytest.mark.endurance),
    ],
)
def test_the_circuit_notebooks_run_on_the_toy_family(name: str, environment: dict[str, str], toy_family: Path) -> None:
    parameters = {"MODEL": str(toy_family), "N_PROMPTS": 12}
    notebook = execute(with_parameters(load(name), parameters), environment, MOST_SECONDS)
    assert "error" not in {output.output_type for output in outputs(notebook)}
    assert len(shown(notebook, PICTURE, INTERACTIVE)) >= FIGURES[name]


@pytest.mark.endurance
def test_the_sweep_notebook_measures_what_is_missing(toy_family: Path, tmp_path: Path) -> None:
    parameters = {
        "RESULTS": str(tmp_path / "results"),
        "MODEL": str(toy_family),
        "CHECKPOINTS": list(TOY_STEPS),
        "TASKS": ["ioi", "sva"],
        "N_PROMPTS": 10,
    }
    notebook = execute(with_parameters(load("reading_a_sweep"), parameters), NO_BROWSER, MOST_SECONDS)
    assert len(shown(notebook, PICTURE, INTERACTIVE)) >= FIGURES["reading_a_sweep"]
    told = " ".join(data["text/markdown"] for data in shown(notebook, "text/markdown"))
    assert told.count("measuring 3 checkpoints") == 2
    assert not (tmp_path / "results").exists(), "the results folder is only read"


def test_without_a_browser_figures_are_interactive_and_the_notebook_says_so_once() -> None:
    if Chromium.find_browser(skip_local=False) != Chromium.find_browser(skip_local=True):
        pytest.skip("kaleido's own browser is installed and cannot be hidden")
    head = next(cell for cell in load("ioi_circuit").cells if cell.cell_type == "code").source.partition(
        "import pandas"
    )[0]
    figure = "show(finish(go.Figure(), 'A figure', width=300, height=200))"
    sources = (
        f"{head}\nimport plotly.graph_objects as go\nfrom circuits_over_time.notebooks.support import start\n"
        "from circuits_over_time.plotting.parts.style import finish\nshow = start()",
        *[figure] * 2,
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    execute(notebook, NO_BROWSER, MOST_SECONDS)
    assert not shown(notebook, PICTURE)
    assert len(shown(notebook, INTERACTIVE)) == 2
    assert [data["text/markdown"].count("apt-get install chromium") for data in shown(notebook, "text/markdown")] == [1]
