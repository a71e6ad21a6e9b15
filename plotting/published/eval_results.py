"""Reads benchmark results that lm-evaluation-harness wrote, one JSON file per checkpoint.

Step and model come from the names of the file and its folders, as in `pythia-160m/zero-shot/160m_step1000.json` or
`EleutherAI__pythia-160m/step1000/results_2024-05-01.json`. Old files (`"acc": 0.5, "acc_stderr": 0.01`) and new ones
(`"acc,none": 0.5, "acc_stderr,none": 0.01`) both work.
"""

import json
import logging
import re
from pathlib import Path

import pandas as pd

from circuits_over_time.utils.base.errors import UserError

logger = logging.getLogger("plotting")

_STEP = re.compile(r"(?:^|[-_.])step[-_]?(\d+)(?=$|[-_.])")
_NOT_A_MODEL = re.compile(r"(zero|one|few|five|\d+)[-_]?shots?|evals?|results?|step[-_]?\d+", re.IGNORECASE)
MMLU = "hendrycksTest-"
COLUMNS = ["model", "step", "shots", "benchmark", "metric", "value", "stderr"]


def step_and_model(path: Path, root: Path) -> tuple[int, str]:
    """The step and the model that a result file is about.

    Args:
        root: the folder it was found in. Its own name counts if no folder below names a model.

    Raises:
        UserError: if no name tells a step, or none a model.
    """
    relative = path.resolve().relative_to(root.resolve())
    folders = [root.resolve().name, *relative.parts[:-1]]
    stem = path.name.removesuffix(".json")
    match = next((found for name in (stem, *reversed(folders)) if (found := _STEP.search(name))), None)
    if match is None:
        raise UserError(f"{path}: neither the file's name nor its folders name a step, such as step1000")
    before = stem[: m.start()] if (m := _STEP.search(stem)) else ""
    for folder in reversed(folders):
        name = folder.rpartition("__")[2]
        if _NOT_A_MODEL.fullmatch(name):
            continue
        # A folder that ends as the file begins, or one that names the model where the file does not.
        if name.endswith(before) or not before:
            return int(match[1]), _STEP.sub("", name)
    if not before:
        raise UserError(f"{path}: neither the file's name nor its folders name a model, such as pythia-160m")
    return int(match[1]), before


def read_evaluations(folder: Path) -> pd.DataFrame:
    """All results below a folder.

    Returns:
        Columns `model, step, shots, benchmark, metric, value, stderr` (stderr is NaN if the file has none). If a file
        has all 57 MMLU subjects, a benchmark `mmlu` holds their mean, with the standard error of a mean.

    Raises:
        UserError: if there is no such folder, it holds no results, or a file is not a result.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of the harness's JSON files with -e")
    rows: list[tuple[object, ...]] = []
    for path in sorted(folder.rglob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path}: not JSON ({error}); remove it or run the evaluation again") from error
        if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
            logger.warning("%s: no results of lm-evaluation-harness; left out", path)
            continue
        step, model = step_and_model(path, folder)
        shots = int((content.get("config") or {}).get("num_fewshot") or 0)
        for benchmark, values in content["results"].items():
            rows += [(model, step, shots, benchmark, *numbers) for numbers in _metrics(values)]
    if not rows:
        raise UserError(f"{folder}: holds no JSON results of lm-evaluation-harness")
    table = pd.DataFrame(rows, columns=COLUMNS)
    keys = ["model", "step", "shots", "benchmark", "metric"]
    if (twice := table.duplicated(keys)).any():
        model, step, shots, benchmark, metric = table.loc[twice, keys].iloc[0]
        raise UserError(
            f"{folder}: {benchmark} {metric} of {model} step {step} ({shots} shots) is in two files; remove one"
        )
    return pd.concat([table, _mmlu(table)], ignore_index=True)


def _metrics(values: dict[str, object]) -> list[tuple[str, float, float]]:
    """Metric, value and standard error, for each metric of a benchmark."""
    plain = {key.partition(",")[0]: value for key, value in values.items() if isinstance(value, int | float)}
    errors = {key.removesuffix("_stderr"): float(value) for key, value in plain.items() if key.endswith("_stderr")}
    return [
        (metric, float(value), errors.get(metric, float("nan")))
        for metric, value in plain.items()
        if not metric.endswith("_stderr") and metric != "alias"
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
