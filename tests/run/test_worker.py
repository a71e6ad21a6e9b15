"""A worker measures each model with the settings that the model asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import torch

from circuits_over_time.utils.config.keys import BaseConfig, PromptOptions
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.results.kinds import ResultSchema
from circuits_over_time.utils.results.store import Result
from circuits_over_time.utils.sweep.analysis import Analysis
from circuits_over_time.utils.sweep.claims import Claims, WorkQueue
from circuits_over_time.utils.sweep.plan import Job, plan
from circuits_over_time.utils.sweep.worker import Worker, WorkerSetup, work_item
from tests.support.tiny_models import save_family


class Asking(PromptOptions, BaseConfig):
    """A config with a key that depends on the model."""


COLUMNS = {"start": "whether prompts start with a start token", "format": "number format of the weights"}
KIND = ResultSchema("asked", COLUMNS, "asking.py")


def measure(checkpoint: LoadedCheckpoint, config: Asking, inputs: None, task: None) -> dict[str, Result]:
    held = {"start": [config.prepend_bos], "format": [str(checkpoint.weights.dtype)]}
    return {"asked": Result(pd.DataFrame(held))}


def test_models_of_one_run_keep_their_own_start_token_and_number_format(tmp_path: Path) -> None:
    names = ["without", "with"]
    for name in names:
        save_family(tmp_path / name, {10: 1})
    about = tmp_path / "with" / "family.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "prepend_bos": True}))
    own = {"model": [str(tmp_path / name) for name in names], "dtype_of": {"with": "bfloat16"}}
    config = Asking(**own, results_dir=tmp_path / "results", device="cpu")
    job = Job(Analysis("asking", Asking, (KIND,), lambda *_: None, measure), config)
    with Claims(config.results_dir) as claims:
        queues = [WorkQueue(sweep, [10], claims) for sweep in plan([job])]
        worker = Worker(WorkerSetup("run", (job,), Path.cwd(), torch.get_num_threads()))
        found = [worker.measure(work_item(claimed)) for queue in queues if (claimed := queue.take({})) is not None]
    tables = [result[0].files[0][".csv"].decode().splitlines()[1] for result in found]
    assert [table.split(",")[-2:] for table in tables] == [["False", "torch.float32"], ["True", "torch.bfloat16"]]
