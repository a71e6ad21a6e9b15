"""The files of other programs, next to the circuits in the results (`export`).

They are made from the results at the end of a run, so a format can be added to results that are there, and nothing is
measured again. Like all files of results they are in run.json with their hashes.
"""

from __future__ import annotations

from circuits_over_time.edge_attribution_patching.circuits.formats import SUFFIXES, Origin, export

from ..base.errors import UserError
from ..config.keys import task_and_method
from ..results.kinds import GRAPHS
from ..results.record import RunRecord
from ..results.store import ResultsFolder, Store
from ..tasks import tasks_of
from .keys import CircuitsConfig


def finish(config: CircuitsConfig, store: Store, model: str) -> None:
    """Write what a run asks for, of all circuits of its tasks that lack it."""
    for task in tasks_of(config):
        folder = store.folder(GRAPHS, model, task.name)
        for step in folder.steps():
            if lacking := [format for format in config.formats if not _is_there(folder, step, SUFFIXES[format])]:
                circuit, origin = folder.read_circuit(step)[0], _origin(folder, step)
                RunRecord(folder).add_files(step, dict(export(circuit, format, origin) for format in lacking))


def _is_there(folder: ResultsFolder, step: int, suffix: str) -> bool:
    return folder.has(step, suffix) or any(folder.file(step, suffix).glob("*/*"))


def _origin(folder: ResultsFolder, step: int) -> Origin:
    """Whose circuit a stored one is."""
    recorded = folder.read_run()["checkpoints"].get(str(step), {})
    if "d_model" not in recorded.get("shape", {}):
        way_out = f"run: {folder.how_to_make(overwrite=True)}"
        raise UserError(f"export: {folder.path / 'run.json'} is of an older version and says no d_model; {way_out}")
    return Origin(folder.model, task_and_method(str(folder.task))[0], step, recorded["shape"]["d_model"])
