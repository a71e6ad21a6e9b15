"""Kinds of damage to a folder of results, and everything that reads one."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import circuits_over_time as cot
from circuits_over_time.plotting.make_report import report
from circuits_over_time.plotting.parts.export import Figure
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.utils.algorithms.handover import write_handover
from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import file_sha256
from circuits_over_time.utils.circuits import transfer
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.circuits.measured import read_circuit
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.comparison.run import compare
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.results.record import RunRecord, recorded_parameters
from circuits_over_time.utils.results.store import Store, csv_bytes, read_csv
from tests.support.paths import ROOT
from tests.support.seed_circuits import write_seed
from tests.support.synthetic_results import MODELS, write_all

SEEDS = ("m-seed1", "m-seed2")
STEPS = (512, 143000)
"""Of the made-up results these are kept."""
MODEL = MODELS[0]


class Evil:
    """Loads as a file that says it was run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("evil-was-here"),)


def table(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    """Damage that leaves a table."""
    return lambda path: _write(path, csv_bytes(change(read_csv(path))))


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _number(held: pd.DataFrame) -> str:
    """The last column of numbers."""
    numbers = [name for name in held if held[name].dtype.kind in "if" and name not in ("step", "tokens")]
    return str(numbers[-1]) if numbers else "tokens"


def _instead(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


TABLES: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: _write(path, b""),
    "no text": lambda path: _write(path, b"\x00\xff\xfe" * 50),
    "not UTF-8": lambda path: _write(path, path.read_bytes().replace(b"\n", b"\xe9\n", 1)),
    "header only": lambda path: _write(path, path.read_bytes().partition(b"\n")[0] + b"\n"),
    "cut off": lambda path: _write(path, path.read_bytes()[:-7]),
    "column gone": table(lambda held: held.drop(columns=_number(held))),
    "column renamed": table(lambda held: held.rename(columns={_number(held): "other"})),
    "column more": table(lambda held: held.assign(more=1)),
    "columns in another order": table(lambda held: held[list(held)[::-1]]),
    "text in numbers": table(lambda held: held.astype(object).assign(**{_number(held): "<b>many</b>"})),
    "infinity": table(lambda held: held.assign(**{_number(held): float("inf")})),
    "rows twice": table(lambda held: pd.concat([held, held])),
    "rows twice with other numbers": table(lambda held: pd.concat([held, held.assign(**{_number(held): 0.125})])),
    "places empty": table(lambda held: held.assign(**dict.fromkeys({"step", "layer"} & {*held}, ""))),
    "layer below 0": table(lambda held: held.assign(**dict.fromkeys({"tokens", "layer"} & {*held}, -1))),
    "another model": table(lambda held: held.assign(model="another")),
    "another step": table(lambda held: held.assign(step=7)),
    "huge step": table(lambda held: held.assign(step=10**30)),
    "ragged": lambda path: _write(path, path.read_bytes() + b"1,2\n,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,\n"),
    "quotes": lambda path: _write(path, path.read_bytes() + b'"never ends'),
    "link loop": lambda path: _instead(path, lambda path: path.symlink_to(path.name)),
    "folder": lambda path: _instead(path, Path.mkdir),
    "pipe": lambda path: _instead(path, os.mkfifo),
    "gone": Path.unlink,
}
TENSORS: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "empty": lambda path: _write(path, b""),
    "cut off": lambda path: _write(path, path.read_bytes()[:-100]),
    "no pickle": lambda path: _write(path, b"hello" * 100),
    "pickle of another class": lambda path: _write(path, pickle.dumps(Evil())),
    "list": lambda path: torch.save([1, 2], path),
    "other names": lambda path: torch.save({"a": torch.zeros(3)}, path),
    "other shape": lambda path: torch.save(_loaded(path) | {"scores": torch.zeros(2)}, path),
    "other types": lambda path: torch.save(_loaded(path) | {"forward_nodes": 5, "in_circuit": "x"}, path),
    "other folds": lambda path: torch.save(_loaded(path) | {"fold_scores": torch.zeros(1), "fold_sizes": None}, path),
    "link loop": lambda path: _instead(path, lambda path: path.symlink_to(path.name)),
    "folder": lambda path: _instead(path, Path.mkdir),
}


def _loaded(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, weights_only=True))


def entry(**changed: Any) -> Callable[[Path], None]:
    """Damage that leaves JSON."""
    return lambda path: _write(path, json.dumps(json.loads(path.read_bytes()) | changed).encode())


RECORDS: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "empty": lambda path: _write(path, b""),
    "cut off": lambda path: _write(path, path.read_bytes()[: len(path.read_bytes()) // 2]),
    "not UTF-8": lambda path: _write(path, b'{"analysis": "\xff"}'),
    "list": lambda path: _write(path, b"[]"),
    "number": lambda path: _write(path, b"NaN"),
    "deep": lambda path: _write(path, b"[" * 100_000),
    "no entries": lambda path: _write(path, b"{}"),
    "files is a list": entry(files=[1]),
    "hashes are numbers": entry(files={"step000000.csv": 5}),
    "checkpoints is text": entry(checkpoints="all"),
    "checkpoints are numbers": entry(checkpoints={"0": 3}),
    "steps are names": entry(checkpoints={"zero": {"sha256": "a"}}),
    "parameters are text": entry(checkpoints={"0": {"sha256": "a", "parameters": "many"}}),
    "shape is a number": entry(checkpoints={"0": {"sha256": "a", "shape": 3}}),
    "settings is a list": entry(settings=[]),
    "settings are other ones": entry(settings={"seed": "x", "search.order": 5}),
    "config is null": entry(config=None),
    "equal weights is a number": entry(equal_weights=1),
    "versions are numbers": entry(versions={"torch": 2}),
    "analysis is a block": entry(analysis={}),
    "link loop": lambda path: _instead(path, lambda path: path.symlink_to(path.name)),
    "folder": lambda path: _instead(path, Path.mkdir),
}


def make_results(folder: Path, *, recorded: bool) -> Path:
    """Results of every kind; with `recorded`, run.json has the hash of each file, as those of real runs have."""
    store = write_all(folder, models=MODELS[:1], tasks=("ioi",))
    for seed, model in enumerate(SEEDS):
        write_seed(store, model, seed)
    for path in folder.rglob("step*"):
        if int(path.stem.removeprefix("step")) not in (*STEPS, 10, 20):
            path.unlink()
    for path in {path.parent for path in folder.rglob("step*.csv")} if recorded else ():
        run = path / "run.json"
        held = json.loads(run.read_text()) if run.is_file() else {}
        steps = sorted({int(file.stem.removeprefix("step")) for file in path.glob("step*.csv")})
        weights = {str(step): {"sha256": f"{step:064x}", "parameters": 10**6} for step in steps}
        files = {file.name: file_sha256(file) for file in sorted(path.glob("step*"))}
        record = {"analysis": "made up", "config": {"metric": None, "seeds": None}, "settings": {}, "seed": 0}
        record |= {"repository": "nowhere", "versions": {"torch": "2"}, "checkpoints": weights, "equal_weights": []}
        run.write_text(json.dumps(record | held | {"files": files, "checkpoints": weights}))
    return folder


def compared(root: Path) -> dict[str, pd.DataFrame]:
    """What compare_circuits.py does of the two seeds, with few random draws."""
    asked = {"results_dir": root, "model": list(SEEDS), "pairs": 100, "permutations": 99, "resamples": 100}
    return compare(ComparisonConfig.model_validate(asked))


def _declared(name: str) -> Figure:
    found: Figure = importlib.import_module(f"circuits_over_time.plotting.{name}").FIGURE
    return found


def figure(name: str) -> Callable[[Path], object]:
    """A figure's script, all but the writing."""
    return lambda root: _declared(name).drawings(Results(Store(root)))


FIGURES = {
    path.stem: figure(path.stem)
    for path in sorted((ROOT / "plotting").glob("plot_*.py"))
    if path.stem != "plot_pythia_evals"  # It reads another program's files.
}
IN_REPORT = {name for name in FIGURES if _declared(name).order is not None}
"""The report draws these too."""


def _every_table(root: Path) -> None:
    """All kinds; a kind without sound results is no reason to leave the others."""
    for kind in KINDS:
        with contextlib.suppress(UserError):
            Store(root).read_tables(kind)


def _every_circuit(root: Path) -> None:
    for path in sorted(root.glob("graphs/*/*/step*.pt")):
        with contextlib.suppress(UserError):
            read_circuit(path)


def _every_record(root: Path) -> None:
    store = Store(root)
    for kind in KINDS:
        for model in store.models(kind):
            for task in store.tasks(kind, model) or [None]:
                folder = store.folder(kind, model, task)
                with contextlib.suppress(UserError):
                    RunRecord(folder).damaged(folder.steps())


def _list(root: Path) -> None:
    with contextlib.suppress(ValueError):  # What the library makes of a UserError.
        cot.results(root)


LIGHT: dict[str, Callable[[Path], object]] = {
    "tables": _every_table,
    "circuits": _every_circuit,
    "records": _every_record,
    "list of results": _list,
    "parameters": lambda root: [recorded_parameters(Store(root), model) for model in (MODEL, *SEEDS)],
    "transfer": lambda root: transfer.outdated(
        CircuitsConfig(model=SEEDS[0], task="ioi", transfer="all"), Store(root), SEEDS[0]
    ),
    "handover": lambda root: write_handover(IoiConsistencyConfig(model=MODEL), Store(root), MODEL),
}
ALL = argparse.Namespace(model=None, task=None, evaluations=None)
READERS = (
    LIGHT | FIGURES | {"comparison": compared, "report": lambda root: report(Results(Store(root), ALL, in_report=True))}
)
"""Name -> reads a folder of results. It may raise a UserError."""
