"""`results/comparison/<table>.csv`: what compare_circuits.py makes of everything else in the folder.

    results/comparison/similarity.csv    one tidy table for all models and tasks; `COMPARISONS` lists the tables
                       run.json          the config and package versions
                       .parts/<key>.csv  rows of a run that has not finished, under a hash of what they follow from;
                                         its first line is the hash of the others

Tables are written whole, and only when everything is worked out. A run that was stopped finds its parts again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from ..base.errors import UserError, one_line
from ..base.files import atomic_write, file_sha256, locked, remove_stale_temporaries
from .checked import Damaged, read_run
from .store import ResultsFolder, csv_bytes, read_csv

HOW_TO_MAKE = "python compare_circuits.py -c configs/compare_toy.yml"


@dataclass(frozen=True)
class Comparison:
    """One table under `results/comparison`, about all models and tasks.

    Attributes:
        name: its file, `results/comparison/<name>.csv`.
        script: the root script that writes it.
    """

    name: str
    columns: Mapping[str, str]
    script: str = "compare_circuits.py"


_OF = {"model": "the model", "task": "the task"}
_AT = "`faithfulness`: circuits as they were found, each with its own size; `size`: circuits of one number of edges"
_CURVE = {
    "curve": "its name",
    "kind": "`head`, `metric` or `circuit`",
    "score": "head score, metric, or of a circuit `similarity` (edge Jaccard with the reference at fixed size), "
    "`found` (1 if there is a circuit) or `n_edges`",
    "task": "the task, if it has one",
    "layer": "layer of the head; empty where the best head of every checkpoint is taken",
    "head": "number of the head",
}
SIMILARITY = Comparison(
    "similarity",
    _OF
    | {
        "step": "step of the circuit",
        "tokens": "tokens seen by then",
        "against": "what it is compared with: the circuit of the `previous` checkpoint, of the `reference`, or of "
        "another `model` at the same step",
        "other_model": "the model it is compared with",
        "other_step": "the step it is compared with",
        "at": f"{_AT}; `scores` where no circuit is involved",
        "measure": "`node_jaccard`, `head_jaccard`, `edge_jaccard`, `weighted_jaccard` (by score), `edges_added`, "
        "`edges_removed`, or `rank_correlation` of all scores (Spearman)",
        "value": "similarity, or number of edges",
        "noise_floor": "the same where only the prompts differ: mean over pairs of circuits of the same two sizes from "
        "resampled folds of one checkpoint, and over the two checkpoints",
        "noise_low": "where 2.5% of the pairs are below, at the checkpoint with more noise",
        "noise_high": "where 2.5% of the pairs are above, at the checkpoint where this is higher; the band describes, "
        "`p_value` tests",
        "chance_floor": "the mean for random circuits of the same numbers of edges, heads and nodes",
        "p_value": "of the null hypothesis that both circuits come from draws of one distribution of prompts' scores: "
        "share of random deals of the folds' deviations to the two that make circuits differ at least as much",
        "q_value": "`p_value` corrected for the number of checkpoints (Benjamini and Hochberg 1995)",
        "changed": "whether `q_value` is at most `false_discovery_rate`",
        "size": "edges of the circuit before pruning",
        "other_size": "the same of the circuit it is compared with",
        "n_edges": "edges after pruning",
        "other_n_edges": "the same of the circuit it is compared with",
    },
)
TURNOVER = Comparison(
    "turnover",
    _OF
    | {
        "step": "step of the circuit",
        "tokens": "tokens seen by then",
        "at": _AT,
        "n_edges": "edges of the circuit",
        "born": "edges that no circuit before had",
        "returned": "edges that an earlier circuit had, but not the one before",
        "left": "edges of the circuit before that this one lacks, and a later one has again",
        "died": "edges of the circuit before that neither this nor any later one has",
    },
)
LIFETIMES = Comparison(
    "lifetimes",
    _OF
    | {
        "at": _AT,
        "source": "node that the edge comes from",
        "target": "what it goes into",
        "birth_after": "last checkpoint before its birth; empty if the first circuit has it",
        "birth_step": "first checkpoint whose circuit has it",
        "last_step": "last checkpoint whose circuit has it",
        "death_step": "first checkpoint after its death; empty if the last circuit has it",
        "lifetime": "checkpoints from birth to last, both counted",
        "n_present": "at how many of them it is in the circuit",
        "n_spells": "in how many uninterrupted spells",
        "median_lifetime": "median lifetime of all edges of the model and task, by Kaplan and Meier (1958), because "
        "edges that live at the end may live on; empty if more than half do",
    },
)
CURVES = Comparison(
    "curves",
    {"model": "the model"}
    | _CURVE
    | {
        "step": "the step",
        "tokens": "tokens seen by then",
        "value": "value of the curve",
        "low": "lower end of its 95% interval, where there is one",
        "high": "upper end of that interval",
        "uncertainty": "what intervals come from: `folds` of prompts that were resampled, stored `standard errors` "
        "(normal errors, independent between checkpoints), `binomial` counts, or `none` where nothing is stored",
    },
)
EMERGENCE = Comparison(
    "emergence",
    {"model": "the model"}
    | _CURVE
    | {
        "maximum": "largest value over training",
        "level": "what the curve must cross",
        "after_step": "last checkpoint before it crosses; empty if the first one is already there",
        "step": "first checkpoint of the sustained crossing: the curve emerged between these two",
        "after_tokens": "tokens seen by `after_step`",
        "tokens": "tokens seen by `step`",
        "low_step": "lower end of the 95% interval: 2.5% of the resamples have an earlier `after_step`. Both ends "
        "belong to the interval",
        "high_step": "upper end: 2.5% of the resamples have a later `step`, or none (then it is empty)",
        "share_emerged": "share of the resamples in which it emerges at all",
        "uncertainty": "as in `curves`; without any, the interval is that between the two checkpoints",
        "reason": "why it does not emerge",
    },
)
ORDER = Comparison(
    "order",
    {
        "model": "the model",
        "first": "a curve of `emergence`",
        "second": "another one",
        "share_before": "share of the resamples in which the first emerges at an earlier checkpoint",
        "share_same": "share in which both emerge between the same two checkpoints",
        "share_after": "share in which the second emerges at an earlier checkpoint",
    },
)
CHANGE_POINTS = Comparison(
    "change_points",
    _OF
    | {
        "quantity": "`n_edges` of the circuit that was found (compared as logarithms), or `similarity` with the "
        "previous checkpoint (edge Jaccard at fixed size)",
        "after_step": "last checkpoint before the change",
        "step": "first checkpoint after it",
        "before": "mean of the stretch before",
        "after": "mean of the stretch after",
    },
)
HANDOVERS = Comparison(
    "handovers",
    {
        "model": "the model",
        "role": "the role in the IOI algorithm",
        "after_step": "last checkpoint at which the first head has the largest effect of those that hold the role",
        "step": "first checkpoint at which another has",
        "from_head": "the first head",
        "to_head": "the head that takes over",
        "from_effect": "effect of the first head at `step`; empty if it was not measured",
        "to_effect": "effect of the other one",
        "share": "share of the resamples in which the new head has the larger absolute effect at `step` and the old "
        "one at `after_step`; empty where no standard errors are stored",
    },
)
SEEDS = Comparison(
    "seeds",
    {
        "group": "the models that differ in the seed",
        "curve": "name of the curve",
        "step": "the step",
        "tokens": "tokens seen by then",
        "n_seeds": "how many models have it",
        "median": "median over them",
        "lower_quartile": "lower quartile",
        "upper_quartile": "upper quartile",
        "lowest": "smallest value",
        "highest": "largest value",
        "dip": "dip statistic (Hartigan and Hartigan 1985) of the values, equal ones spread apart; only with five "
        "models or more",
        "dip_p": "its p-value; small if the models fall into several groups",
        "dip_q": "`dip_p` corrected for the number of checkpoints",
    },
)
SEED_EMERGENCE = Comparison(
    "seed_emergence",
    {
        "group": "the models that differ in the seed",
        "curve": "name of the curve",
        "n_seeds": "how many models have it",
        "n_emerged": "in how many it emerges",
        "median_step": "median of the steps at which it has emerged; models in which it never does count as later",
        "earliest_step": "earliest of them",
        "latest_step": "latest of those that emerge",
        "shape": "`abrupt` if at some checkpoint where it has emerged in some models and not in others they fall apart "
        "into groups (`dip_q` at most `false_discovery_rate`); `not shown to be abrupt` if not; empty with fewer than "
        "five models",
    },
)
SCALE = Comparison(
    "scale",
    {
        "task": "the task",
        "count": "what the mean size over checkpoints counts: `edges` or `nodes`",
        "n_models": "how many models of known size have a circuit",
        "statistic": "`pearson` or `spearman` correlation of parameters and size over models",
        "value": "the correlation",
        "low": "lower end of its 95% interval, from resampled models; only with five models or more",
        "high": "upper end of that interval",
        "p_value": "two-sided, from all permutations of the models up to 8, from random ones beyond",
        "exact": "whether all permutations were counted",
    },
)
COMPARISONS: dict[str, Comparison] = {
    table.name: table
    for table in (
        SIMILARITY,
        TURNOVER,
        LIFETIMES,
        CURVES,
        EMERGENCE,
        ORDER,
        CHANGE_POINTS,
        HANDOVERS,
        SEEDS,
        SEED_EMERGENCE,
        SCALE,
    )
}


@dataclass(frozen=True)
class ComparisonFolder:
    """The comparisons in a folder of results, `root`."""

    root: Path

    @property
    def path(self) -> Path:
        """`results/comparison`."""
        return self.root / "comparison"

    def has(self, name: str) -> bool:
        """Whether a table is there, and so is complete."""
        return self._file(name).is_file()

    def read(self, name: str) -> pd.DataFrame:
        """A table as it was written.

        Raises:
            UserError: if it is missing or damaged, naming the command that makes it.
        """
        path = self._file(name)
        if not path.is_file():
            raise UserError(f"{path} is missing; run: {HOW_TO_MAKE}")
        run = self.read_run()
        try:
            data = path.read_bytes()
            table = read_csv(BytesIO(data))
        except (OSError, ValueError) as error:
            raise Damaged(path, one_line(error), f"run: {HOW_TO_MAKE}") from None
        # Tables of an older version have no hashes.
        written = run.get("files", {path.name: None} if "config" in run else {}).get(path.name, "")
        if written is not None and hashlib.sha256(data).hexdigest() != written:
            raise Damaged(path, "not what was written", f"run: {HOW_TO_MAKE}")
        if list(table.columns) != list(COMPARISONS[name].columns):
            raise Damaged(path, f"has the columns {', '.join(table.columns)}", f"run: {HOW_TO_MAKE}")
        return table

    def write(self, name: str, table: pd.DataFrame) -> Path:
        """Write a table.

        Raises:
            ValueError: unless its columns are those of its kind, in the same order.
        """
        if list(table.columns) != list(COMPARISONS[name].columns):
            raise ValueError(f"{name} has {list(COMPARISONS[name].columns)}, not {list(table.columns)}")
        path = self._file(name)
        atomic_write(path, csv_bytes(table))
        return path

    def write_all(self, tables: Mapping[str, pd.DataFrame], run: Mapping[str, Any]) -> None:
        """Write all tables, and what made them. Of two runs that end together, all is of the one or of the other."""
        with locked(self.path / ".lock", "results_dir"):
            # While there is no run.json, no table is taken for that of the run before.
            (self.path / "run.json").unlink(missing_ok=True)
            paths = [self.write(name, table) for name, table in tables.items()]
            record = {**run, "files": {path.name: file_sha256(path) for path in paths}}
            atomic_write(self.path / "run.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())

    def read_run(self) -> dict[str, Any]:
        """What made the tables.

        Raises:
            UserError: if it is missing or damaged, naming the command that writes it.
        """
        path = self.path / "run.json"
        try:
            return read_run(path)
        except UserError:
            raise UserError(f"{path} is missing or damaged; run: {HOW_TO_MAKE}") from None

    def part(self, key: str) -> pd.DataFrame | None:
        """The rows kept under a key, if there are any, and they are as they were written."""
        path = self._part(key)
        if not path.is_file():
            return None
        sha256, _, rows = path.read_bytes().partition(b"\n")
        if hashlib.sha256(rows).hexdigest().encode() != sha256:
            return None
        return read_csv(BytesIO(rows))

    def keep_part(self, key: str, rows: pd.DataFrame) -> None:
        """Keep rows until the run is finished, and for the next one."""
        data = csv_bytes(rows)
        atomic_write(self._part(key), hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    def drop_parts(self, besides: Iterable[str]) -> None:
        """Delete all parts but these."""
        kept = {self._part(key) for key in besides}
        if not (self.path / ".parts").is_dir():
            return
        remove_stale_temporaries(self.path / ".parts")
        for path in (self.path / ".parts").glob("*.csv"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        if name not in COMPARISONS:
            raise ValueError(f"'{name}' is not a table of comparisons")
        return self.path / f"{name}.csv"

    def _part(self, key: str) -> Path:
        return self.path / ".parts" / f"{key}.csv"


def fingerprint(folders: Iterable[ResultsFolder], settings: object) -> str:
    """A hash of settings and of everything in some results folders that comparisons read."""
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for folder in folders:
        total.update(f"{folder.kind.name}/{folder.model}/{folder.task}".encode())
        for step in folder.steps():
            for suffix in (".csv", ".pt"):
                if (path := folder.file(step, suffix)).is_file():
                    total.update(f"{step}{suffix}".encode())
                    total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:32]
