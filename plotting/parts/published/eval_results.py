"""Reads what other tools say of a training: benchmark results of lm-evaluation-harness, and the Trainer's loss.

The harness writes one JSON file or more for each checkpoint. Step and model come from the names of the file and its
folders, as in `pythia-160m/zero-shot/160m_step1000.json` or `EleutherAI__pythia-160m/step1000/results_2024-05-01.json`,
or else from what the file says was evaluated. Old files (`"acc": 0.5`) and new ones (`"acc,none": 0.5`) both work.
Where a metric comes through several filters, each is a metric of its own (`exact_match,strict-match`).
"""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pandas as pd

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import read_json

logger = logging.getLogger("plotting")

_STEP = re.compile(r"(?:^|[-_.])step[-_]?(\d+)(?=$|[-_.])")
_NOT_A_MODEL = re.compile(r"(zero|one|few|five|\d+)[-_]?shots?|evals?|results?|step[-_]?\d+", re.IGNORECASE)
_DATED = re.compile(r"results_\d{4}-\d\d-\d\dT.+")
MMLU = "hendrycksTest-"
COLUMNS = ["model", "step", "shots", "benchmark", "metric", "value", "stderr"]


def step_and_model(path: Path, root: Path, content: dict[str, Any] | None = None) -> tuple[int, str]:
    """The step and the model that a result file is about.

    The name of `root`, in which it was found, counts if no folder below names a model, its `content` where the names
    tell nothing.

    Raises:
        UserError: if nothing tells a step, or nothing a model.
    """
    relative = path.resolve().relative_to(root.resolve())
    folders = [root.resolve().name, *relative.parts[:-1]]
    stem = path.name.removesuffix(".json")
    evaluated, revision = _evaluated(content or {})
    names = [stem, *reversed(folders), revision, *reversed(evaluated)]
    match = next((found for name in names if (found := _STEP.search(name))), None)
    if match is None:
        raise UserError(
            f"{path}: neither the file's name nor its folders name a step, such as step1000, and it does not say of "
            "which revision it is"
        )
    before = stem[: m.start()] if (m := _STEP.search(stem)) else ""
    dated = "" if _DATED.fullmatch(stem) else before
    for folder in reversed(folders[1:] if evaluated else folders):
        name = folder.rpartition("__")[2]
        if _NOT_A_MODEL.fullmatch(name):
            continue
        # A folder that ends as the file begins, or one that names the model where the file does not.
        if name.endswith(dated) or not dated:
            return int(match[1]), _STEP.sub("", name)
    model = before or next((name for name in reversed(evaluated) if not _NOT_A_MODEL.fullmatch(name)), "")
    if not model:
        raise UserError(f"{path}: neither the file's name nor its folders name a model, such as pythia-160m")
    return int(match[1]), model


def _evaluated(content: dict[str, Any]) -> tuple[list[str], str]:
    """What a file says was evaluated: the parts of the model's name or folder, and the revision."""
    config = content.get("config") or {}
    arguments = config.get("model_args") or {}
    if isinstance(arguments, str):
        arguments = dict(part.split("=", 1) for part in arguments.split(",") if "=" in part)
    revision = arguments.get("revision") or config.get("model_revision") or ""
    model = str(arguments.get("pretrained") or content.get("model_name") or "")
    return [part for part in re.split(r"[/\\]", model) if part], str(revision)


def read_evaluations(folder: Path) -> pd.DataFrame:
    """All results below a folder. Of several runs of one evaluation, the newest counts.

    Returns:
        Columns `model, step, shots, benchmark, metric, value, stderr` (stderr is NaN if the file has none). If a file
        has all 57 MMLU subjects, a benchmark `mmlu` holds their mean, with the standard error of a mean.

    Raises:
        UserError: if there is no such folder, it holds no results, or a file is not a result.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of the harness's JSON files with -e")
    found: dict[tuple[Any, ...], tuple[Path, float, float]] = {}
    versions: dict[str, set[Any]] = {}
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); remove it or run the evaluation again") from error
        if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
            logger.warning("%s: no results of lm-evaluation-harness; left out", path)
            continue
        step, model = step_and_model(path, folder, content)
        for benchmark, values in content["results"].items():
            if (version := (content.get("versions") or {}).get(benchmark)) is not None:
                versions.setdefault(benchmark, set()).add(version)
            for metric, value, stderr in _metrics(values):
                key = model, step, _shots(content, benchmark), benchmark, metric
                _refuse_twice(folder, key, found.get(key), path)
                found[key] = path, value, stderr  # Dates sort as they follow each other.
    if not found:
        raise UserError(f"{folder}: holds no JSON results of lm-evaluation-harness")
    for benchmark, several in versions.items():
        if len(several) > 1:
            logger.warning("%s: %s was evaluated in versions %s", folder, benchmark, ", ".join(map(str, several)))
    table = pd.DataFrame([(*key, *values) for key, (_, *values) in found.items()], columns=COLUMNS)
    return pd.concat([table, _mmlu(table)], ignore_index=True)


def _refuse_twice(folder: Path, key: tuple[Any, ...], before: tuple[Path, float, float] | None, path: Path) -> None:
    """Two files may hold the same where the harness dates them: runs of one evaluation."""
    if before is None:
        return
    model, step, shots, benchmark, metric = key
    if before[0].parent == path.parent and _DATED.fullmatch(before[0].stem) and _DATED.fullmatch(path.stem):
        logger.info("%s: %s %s of step %d again; it counts, not %s", path, benchmark, metric, step, before[0].name)
        return
    raise UserError(
        f"{folder}: {benchmark} {metric} of {model} step {step} ({shots} shots) is in two files, {before[0]} and "
        f"{path}; remove one"
    )


def _shots(content: dict[str, Any], benchmark: str) -> int:
    """How many examples a benchmark's prompts had: as new files say it, benchmark by benchmark, or old ones for all."""
    by_task = content.get("n-shot") or {}
    of_task = (content.get("configs") or {}).get(benchmark) or {}
    of_all = content.get("config") or {}
    return int(by_task.get(benchmark) or of_task.get("num_fewshot") or of_all.get("num_fewshot") or 0)


def _metrics(values: dict[str, object]) -> list[tuple[str, float, float]]:
    """Metric, value and standard error, for each metric of a benchmark."""
    numbers = {key: float(value) for key, value in values.items() if type(value) in (int, float)}  # type: ignore[arg-type]
    if any("," in key for key in numbers):  # Then numbers without a filter are none: sample_len and the like.
        numbers = {key: value for key, value in numbers.items() if "," in key}
    split = {key: key.partition(",")[::2] for key in numbers}
    named = [name for name, _ in split.values()]
    return [
        (
            key if named.count(name) > 1 else name,
            numbers[key],
            numbers.get(f"{name}_stderr,{filtered}" if filtered else f"{name}_stderr", float("nan")),
        )
        for key, (name, filtered) in split.items()
        if not name.endswith("_stderr")
    ]


def _mmlu(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over the MMLU subjects, with equal weights, for the checkpoints that have all of them."""
    subjects = table[table["benchmark"].str.startswith(MMLU) & (table["metric"] == "acc")]
    n_subjects = subjects["benchmark"].nunique()
    rows = []
    for (model, step, shots), part in subjects.groupby(["model", "step", "shots"]):
        if len(part) < n_subjects:
            logger.warning("%s step %d: %d of %d MMLU subjects; no mean", model, step, len(part), n_subjects)
            continue
        stderr = float((part["stderr"] ** 2).sum(min_count=len(part)) ** 0.5 / len(part))
        rows.append((model, step, shots, "mmlu", "acc", float(part["value"].mean()), stderr))
    return pd.DataFrame(rows, columns=COLUMNS).astype(table.dtypes.to_dict())


def read_training_loss(folder: Path) -> pd.DataFrame:
    """The loss that the Trainer of transformers logged: `model, step, value`, of the log that goes furthest.

    The folder is its output folder, or one of its checkpoints; the model is called as that folder is.

    Raises:
        UserError: if no `trainer_state.json` there holds a loss.
    """
    logs = []
    for path in [folder / "trainer_state.json", *folder.glob("*/trainer_state.json")]:
        history = (read_json(path) or {}).get("log_history") or []
        logs.append([(entry["step"], entry["loss"]) for entry in history if "loss" in entry and "step" in entry])
    if not any(logs):
        raise UserError(f"{folder}: no trainer_state.json there holds a loss; name the output folder of a Trainer")
    name = folder.resolve().name
    table = pd.DataFrame(max(logs, key=lambda log: max(log, default=(-1, 0))), columns=["step", "value"])
    return table.assign(model=name).sort_values("step", ignore_index=True)
