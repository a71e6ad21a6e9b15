"""A suite: several analyses over the same checkpoints, each of which is loaded once for all of them.

    model: pythia-160m
    analyses:
      - script: get_circuits_over_time.py
        config: configs/ioi_160m.yml      # its settings, as for the script alone; its model does not count
      - script: get_model_cspa.py
        corpus: NeelNanda/pile-10k        # or its keys, right here

The keys of every script stand above, for all analyses. An analysis may have its own `checkpoints`, `batch_size`,
`seed` and `dtype`: weights are read again where the next one has another number format. Analyses run in an order in
which later ones find what earlier ones made: get_ioi_consistency.py comes after the circuits and head scores that it
reads. The files are those of the single scripts, byte for byte.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from ..base.errors import UserError, suggest
from ..config.explain import checked
from ..config.keys import BaseConfig
from ..config.strict_yaml import Block, read_yaml
from ..results.kinds import KINDS
from .analysis import Analysis
from .plan import Job

SCRIPT, CONFIG = "script", "config"
OWN = ("checkpoints", "batch_size", "seed", "dtype", "dtype_of")
"""Keys of every script that an analysis of a suite may set for itself."""


class SuiteConfig(BaseConfig):
    """Keys of run_suite.py."""

    analyses: list[dict[str, Any]] = Field(min_length=1)
    """What to [run](../docs/clusters.md#suites): of each analysis its `script`, and its keys, in a `config` or right
    there."""


def jobs_of(config: SuiteConfig, where: str = "analyses") -> list[Job]:
    """A suite's analyses with their configs, in the order in which they run; `where` is how errors name the list.

    It is a UserError, with one line for each bad key, or if two entries write to the same folder.
    """
    lines: list[str] = []
    jobs = []
    for number, entry in enumerate(config.analyses):
        try:
            jobs.append(_job(config, entry, f"{where}[{number}]"))
        except UserError as error:
            lines.append(str(error))
    if lines:
        raise UserError("\n".join(lines))
    seen: set[Path] = set()
    for job in jobs:
        for folder in job.folders("model"):
            if folder.path in seen:
                what = f" of {folder.task}" if folder.task is not None else ""
                raise UserError(
                    f"{where}: two entries of {job.analysis.name}.py would write the same results{what}; join "
                    "them, or run one of them with another results_dir"
                )
            seen.add(folder.path)
    return in_order(jobs)


def in_order(jobs: Sequence[Job]) -> list[Job]:
    """Jobs sorted so that each comes after those that write what it reads; otherwise in the order given."""
    left, ordered = list(jobs), []
    while left:
        made = {job: [kind for other in left if other is not job for kind in other.analysis.kinds] for job in left}
        ready = (job for job in left if not any(kind in made[job] for kind in job.analysis.reads))
        following = next(ready, left[0])
        left.remove(following)
        ordered.append(following)
    return ordered


def find_analysis(script: str) -> Analysis:
    """The analysis of a root script; a UserError if no script of that name writes results."""
    scripts = list(dict.fromkeys(kind.script for kind in KINDS.values()))
    if script not in scripts:
        raise UserError(f"'{script}' is not an analysis{suggest(script, scripts)}")
    found: Analysis = importlib.import_module(f"circuits_over_time.{script.removesuffix('.py')}").ANALYSIS
    return found


def _job(suite: SuiteConfig, entry: Block, where: str) -> Job:
    if not isinstance(entry.get(SCRIPT), str):
        raise UserError(f"{where}: names no script; write '- script: get_circuits_over_time.py'")
    try:
        analysis = find_analysis(entry[SCRIPT])
    except UserError as error:
        raise UserError(f"{where}.{SCRIPT}: {error}") from None
    where = f"{where} ({entry[SCRIPT]})"
    own = {name: value for name, value in entry.items() if name not in (SCRIPT, CONFIG)}
    shared = [name for name in BaseConfig.model_fields if name not in OWN]
    if refused := sorted(set(own) & set(shared)):
        raise UserError(f"{where}: {refused[0]}: is the same for all analyses; set it for the whole suite")
    path = entry.get(CONFIG)
    if path is not None and not isinstance(path, str):
        raise UserError(f"{where}: {CONFIG}: {json.dumps(path)} is not a path")
    try:
        base = {} if path is None else read_yaml(Path(path))
    except UserError as error:
        raise UserError("\n".join(f"{where}: {CONFIG}: {line}" for line in str(error).splitlines())) from None
    of_suite = suite.model_dump(mode="json", exclude_unset=True, exclude={"analyses"})
    of_file = {name: value for name, value in base.items() if name not in shared}
    data = of_file | of_suite | own
    return Job(analysis, checked(analysis.schema, data, Path(where)), where)
