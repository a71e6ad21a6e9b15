"""The configs, versions and weights behind the results, from every folder's run.json."""

import html
import json
from dataclasses import dataclass
from typing import Any

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.kinds import KINDS
from circuits_over_time.utils.tasks.registry import task_label

from ..parts.style import task_order
from ..parts.tables import Results, html_table, logger


@dataclass(frozen=True)
class RunRecord:
    """One run record, and the folders (`kind/model/task`) that have it."""

    record: dict[str, Any]
    model: str
    folders: list[str]


def run_records(results: Results) -> list[RunRecord]:
    """Every different run once, in the order of kinds. Folders without a run.json are logged.

    The folders of one run differ in their files and definitions alone.
    """
    runs: dict[str, RunRecord] = {}
    for kind in KINDS:
        for model in results.models(kind):
            tasks: list[str | None] = [*results.tasks(kind, model)]
            for task in tasks or [None]:
                try:
                    record = results.store.folder(kind, model, task).read_run()
                except UserError:
                    logger.info("%s has no run.json: config unknown", results.store.folder(kind, model, task).path)
                    continue
                key = json.dumps([model, *(record.get(part) for part in _OF_A_RUN)], sort_keys=True)
                folder = "/".join(part for part in (kind, model, task) if part)
                runs.setdefault(key, RunRecord(record, model, [])).folders.append(folder)
    return list(runs.values())


def runs_html(runs: list[RunRecord]) -> str:
    """A foldable block per run: config, versions, and each checkpoint's revision, commit and hash."""
    return "\n".join(_run_html(run) for run in runs) or "<p>No folder of these results has a run.json.</p>"


def equal_weights_notes(runs: list[RunRecord]) -> list[str]:
    """A line for each model and group of checkpoints that turn out to hold the same weights."""
    lines = [
        f"{run.model}: steps {', '.join(f'{step:,}' for step in group)} hold the same weights (equal SHA-256), "
        "so at most one of them is what its name says"
        for run in runs
        for group in run.record.get("equal_weights", [])
    ]
    return list(dict.fromkeys(lines))


def _run_html(run: RunRecord) -> str:
    record = run.record
    checkpoints = record.get("checkpoints", {})
    rows = ([str(value or "–") for value in (step, *map(of.get, _WEIGHTS))] for step, of in checkpoints.items())
    weights = html_table(("step", *_WEIGHTS), rows, "weights")
    kinds = dict.fromkeys(folder.partition("/")[0].replace("_", " ") for folder in run.folders)
    config, packages = (_cell(_yaml_like(values)) for values in (record.get("config", {}), record.get("versions", {})))
    return (
        f"<details class='run'><summary><b>{_cell(record.get('analysis'))}</b> {_cell(', '.join(_what(run)))}"
        f" <span class='quiet'>{_cell(', '.join(kinds))}</span></summary>"
        f"<p class='quiet'>Results in {_cell(', '.join(run.folders))}</p>"
        f"<div class='columns'><div><h4>Config</h4><pre class='config'>{config}</pre></div>"
        f"<div><h4>Versions</h4><pre class='versions'>{packages}</pre>"
        f"<h4>Weights from</h4><p><code>{_cell(record.get('repository'))}</code></p></div></div>"
        f"<details><summary>Weights of {counted(len(checkpoints), 'checkpoint')}</summary>{weights}</details></details>"
    )


def _what(run: RunRecord) -> list[str]:
    """The model, and the tasks if there are any."""
    tasks = task_order(folder.split("/")[2] for folder in run.folders if folder.count("/") == 2)
    return [run.model, *map(task_label, tasks)]


def counted(n: int, what: str) -> str:
    """A number and what it counts: 1 checkpoint, 1,000 checkpoints."""
    return f"{n:,} {what}" + ("" if n == 1 else "s")


_OF_A_RUN = ("analysis", "config", "versions", "repository", "checkpoints")
_WEIGHTS = ("repository", "revision", "commit", "sha256")


def _cell(value: object) -> str:
    return "–" if value is None else html.escape(str(value))


def _yaml_like(values: dict[str, Any], indent: str = "") -> str:
    """Keys and values, one per line and with blocks indented, as in a config."""
    lines = []
    for key, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", _yaml_like(value, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines)
