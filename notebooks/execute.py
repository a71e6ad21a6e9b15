"""Run notebooks from their .py, and write the .ipynb with its outputs next to them.

    python notebooks/execute.py                      # all that need only the toy family
    python notebooks/execute.py ioi_circuit          # one
    python notebooks/execute.py real_ioi_circuit     # the one that needs `make real` first

The .py (jupytext, percent format) is what is edited; the .ipynb is made from it, so the two cannot differ. What differs
from run to run (times, ids) is left out of the file.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    import jupytext
    import nbformat
    from nbclient import NotebookClient
except ImportError as error:
    # In one line, as the scripts say what is wrong.
    sys.stderr.write(f"notebooks: {error.name} is not installed; run: pip install -r requirements-dev.txt\n")
    sys.exit(2)

FOLDER = Path(__file__).resolve().parent
NAMES = ("ioi_circuit", "greater_than_circuit", "reading_a_sweep")
REAL = ("real_ioi_circuit",)  # needs the results of `make real`

logger = logging.getLogger("notebooks")


def load(name: str) -> nbformat.NotebookNode:
    """A notebook without outputs, from its .py; cells are numbered, so that the same .py gives the same notebook."""
    notebook = jupytext.read(FOLDER / f"{name}.py")
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    return notebook


def with_parameters(notebook: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> nbformat.NotebookNode:
    """Set parameters in a cell after the one tagged `parameters` (papermill's convention)."""
    place = next(i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    source = "\n".join(f"{key} = {value!r}" for key, value in parameters.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(source, id="injected"))
    return notebook


def execute(
    notebook: nbformat.NotebookNode, environment: Mapping[str, str] | None = None, timeout: int | None = None
) -> nbformat.NotebookNode:
    """Run a notebook from its own folder, as Jupyter does.

    Args:
        notebook: gets its outputs.
        environment: variables on top of the process's own.
        timeout: seconds that a cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
        record_timing=False,
    )
    client.execute(env={**os.environ, "PYTHONWARNINGS": "ignore", **(environment or {})})
    return notebook


def main(argv: list[str] | None = None) -> int:
    """Run the notebooks named, or all of the toy family."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(NAMES + REAL)} (all but the last)")
    names = parser.parse_args(argv).names or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES + REAL)):
        parser.error(f"no notebook {unknown[0]}; there are {', '.join(NAMES + REAL)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in names:
        notebook = execute(load(name))
        path = FOLDER / f"{name}.ipynb"
        nbformat.write(notebook, path)
        logger.info("wrote %s (%d kB)", path.name, path.stat().st_size / 1000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
