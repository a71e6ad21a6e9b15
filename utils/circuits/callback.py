"""Circuits while a model trains: a callback for the Trainer of transformers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from circuits_over_time.edge_attribution_patching.model.weights import read_weights

from ..base.errors import UserError, errors_of_python, is_out_of_memory, one_line
from ..models.checkpoint import LoadedCheckpoint
from ..models.family import Family
from ..models.weight_files import CheckpointFiles
from ..results import record
from ..results.kinds import BASELINES, FAITHFULNESS
from ..results.store import Result, ResultsFolder, Store
from ..sweep.claims import Claims
from ..tasks import TASKS, Task, get_task
from ..tasks.prompts import metric_name
from .find import CircuitPrompts, circuit_prompts
from .handle import model_in_memory, settings_of
from .keys import CircuitsConfig
from .measured import KINDS, measure

SCRIPT = "get_circuits_over_time"
"""What the results say made them: the figures and the comparisons read them like the script's."""

log = logging.getLogger(__name__)


class CircuitCallback(TrainerCallback):
    """Finds circuits while a Trainer trains, and leaves the model, its gradients and all random states as they are.

    Results go where get_circuits_over_time.py writes its own, under the training's name, so all figures read them. The
    metric, and the circuit's size and faithfulness if there is one, also go into the trainer's log. If a training goes
    on from a checkpoint, so do the results.

    With several processes, the first one measures while the others wait.

    Args:
        task: a task's name, what `cot.task` returns, or several of these.
        every: measure before the first step, then every so many steps, and at the last one; or at exactly these steps.
        name: what the results call the model; by default the last part of the trainer's `output_dir`.
        tokenizer: by default the trainer's `processing_class`.
        tokens_per_step: tokens of a training step, for the axes of figures. Not needed if the trainer counts them:
            `TrainingArguments(include_num_input_tokens_seen="all")`.
        overwrite: replace the results of an earlier training of this name.
        log: `trainer.log`, which also tells whatever `report_to` names. Without it the numbers go into
            `trainer.state.log_history` alone, since a trainer does not tell its callbacks who it is.
        keys: as of `cot.find_circuit`.

    Raises:
        ValueError, TypeError: as `cot.find_circuit`, when the training begins.

    Example:
        trainer.add_callback(cot.CircuitCallback("ioi", every=100, log=trainer.log))
    """

    def __init__(
        self,
        task: str | Task | Sequence[str | Task],
        every: int | Collection[int],
        *,
        results_dir: str | Path = "results",
        name: str | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        tokens_per_step: int | None = None,
        overwrite: bool = False,
        log: Callable[[dict[str, float]], None] | None = None,
        **keys: Any,
    ) -> None:
        if isinstance(every, int) and every < 1:
            raise ValueError(f"every={every}: not a number of steps, 1 or more")
        tasks = [task] if isinstance(task, str | Task) else task
        with errors_of_python():
            self.tasks = [get_task(one, "logit_diff") if isinstance(one, str) else one for one in tasks]
        self.every, self.results_dir, self.name, self.overwrite = every, Path(results_dir), name, overwrite
        self.tokenizer, self.tokens_per_step, self.log, self.keys = tokenizer, tokens_per_step, log, keys
        self._inputs: dict[str, CircuitPrompts] = {}
        self._configs: dict[str, CircuitsConfig] = {}
        self._hashes: dict[str, dict[str, str]] = {}
        self._claims = Claims(self.results_dir)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check everything that can be checked, and measure the model as it is."""
        if not state.is_world_process_zero:
            return
        if getattr(args, "deepspeed", None) or getattr(args, "fsdp", None):
            raise ValueError("CircuitCallback needs whole weights, which fsdp and deepspeed spread over processes")
        self.tokenizer = self.tokenizer or kwargs.get("processing_class")
        if self.tokenizer is None:
            raise TypeError("tokenizer: missing; pass tokenizer=, or processing_class= to the Trainer")
        if self.tokens_per_step is None and args.include_num_input_tokens_seen in ("no", False):
            counted = 'TrainingArguments(include_num_input_tokens_seen="all")'
            raise ValueError(f"tokens_per_step: not known; pass tokens_per_step=, or let the trainer count: {counted}")
        if self.log is None and args.report_to:
            reporters = ", ".join(args.report_to)
            log.warning("circuits are not told to %s; pass log=trainer.log to the CircuitCallback", reporters)
        self.name = self.name or Path(str(args.output_dir)).resolve().name
        with errors_of_python():
            model = model_in_memory(kwargs["model"], None, self.tokenizer, None, None)
            for task in self.tasks:
                run = {"model": self.name, "task": str(task.source or task.name), "results_dir": str(self.results_dir)}
                run |= {"dtype": str(model.weights.dtype).removeprefix("torch."), "device": str(model.weights.device)}
                config = settings_of(CircuitsConfig, self.keys, model, run)
                if task.name not in TASKS:  # Figures ask run.json.
                    config = config.model_copy(update={"metric": metric_name(task.primary)})
                self._hashes[task.name] = record.input_hashes(config, config.name_in_results(task.name))
                self._inputs[task.name] = inputs = circuit_prompts(config, task, self.tokenizer, model.weights)
                if task.usual is None and task.source is None:  # No file tells how many rows there were.
                    config = config.model_copy(update={"n_prompts": len(inputs.scoring)})
                self._configs[task.name] = config
                for folder in self._folders(task):
                    self._begin(folder, config, Family(self.name, str(args.output_dir), (), {}), state.global_step)
            measured = all(folder.has(state.global_step) for task in self.tasks for folder in self._folders(task))
            if self._due(state) and not measured:
                self._measure(kwargs["model"], args, state, control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is time. What goes wrong is reported, and the training goes on."""
        if state.is_world_process_zero and self._due(state):
            try:
                self._measure(kwargs["model"], args, state, control)
            except (UserError, FloatingPointError) as error:
                log.warning("%s step %d is left out: %s", self.name, state.global_step, error)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = f"a batch does not fit on the device ({one_line(error)})"
                log.warning("%s step %d is left out: %s", self.name, state.global_step, reason)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let others write into the folders of results."""
        self._claims.__exit__()

    def _due(self, state: TrainerState) -> bool:
        if isinstance(self.every, int):
            return state.global_step % self.every == 0 or state.global_step == state.max_steps
        return state.global_step in self.every

    def _folders(self, task: Task) -> list[ResultsFolder]:
        name = self._configs[task.name].name_in_results(task.name)
        return [Store(self.results_dir).folder(kind, str(self.name), name) for kind in KINDS]

    def _begin(self, folder: ResultsFolder, config: CircuitsConfig, family: Family, start: int) -> None:
        """Make a folder ready for the results after a step, and refuse to mix those of two trainings."""
        done = folder.steps()
        if done and not self.overwrite:
            if start == 0:
                way_out = "pass overwrite=True, or another name= or results_dir="
                raise UserError(f"{folder.path} holds the results of an earlier training; {way_out}")
            changed = record.differences(held := folder.read_run(), folder, SCRIPT, config)
            holds = " and ".join(f"{key}={record.shown(old)}, not {record.shown(new)}" for key, old, new in changed)
            if holds := holds or record.changed_inputs(held, config, folder.task):
                raise UserError(f"{folder.path} holds {holds}; pass overwrite=True or another results_dir=")
        for step in done:
            if step > start or self.overwrite:
                folder.delete(step)
        if self.overwrite:
            (folder.path / "run.json").unlink(missing_ok=True)
        run = f"{SCRIPT}/{self.name}/{folder.task}"
        enter, others = partial(self._claims.enter, run), partial(self._claims.entered, run)
        record.RunRecord(folder).begin(SCRIPT, config, family, [], enter, others)

    def _measure(
        self, model: PreTrainedModel, args: TrainingArguments, state: TrainerState, control: TrainerControl
    ) -> None:
        """Find the circuit of every task, save it, and log it."""
        step, counted = state.global_step, int(state.num_input_tokens_seen)
        tokens = counted if self.tokens_per_step is None else step * self.tokens_per_step
        assert self.tokenizer is not None  # Since the training began, as is the name.
        hashes: Future[dict[str, str]] = Future()
        hashes.set_result({"weights": _sha256(model)})
        origin = {"repository": str(args.output_dir), "revision": f"checkpoint-{step}", "commit": None}
        files = CheckpointFiles(Path(str(args.output_dir)), origin, hashes.result)
        size, name = model.num_parameters(), str(self.name)
        checkpoint = LoadedCheckpoint(name, step, tokens, read_weights(model), size, self.tokenizer, files, hashes)
        logged: dict[str, float] = {}
        for task in self.tasks:
            results = measure(checkpoint, self._configs[task.name], self._inputs, task)
            folders = self._folders(task)
            encoded = tuple(folder.encode(step, results[folder.kind.name], tokens) for folder in folders)
            record.write_results(
                folders, [record.EncodedResults(step, checkpoint.provenance, self._hashes[task.name], encoded)]
            )
            logged |= {f"circuits/{task.name}/{key}": value for key, value in _summary(results, task).items()}
        if self.log is None:
            state.log_history.append({**logged, "step": step})
            return
        # Logging says that all is logged. What the trainer itself wants to log at this step is still to come.
        should_log = control.should_log
        self.log(logged)
        control.should_log = should_log


def _summary(results: dict[str, Result], task: Task) -> dict[str, float]:
    """The numbers of a circuit that a log shows."""
    metric, curve = metric_name(task.primary), results[FAITHFULNESS.name].table
    baselines = results[BASELINES.name].table.iloc[0]
    found = {metric: float(baselines["full"]), f"{metric}_corrupted": float(baselines["corrupted"])}
    for row in curve[curve["selected"].astype(bool)].to_dict("records"):
        found |= {"edges": float(row["n_edges"]), "faithfulness": float(row["faithfulness"])}
    return found


def _sha256(model: PreTrainedModel) -> str:
    """One hash of all weights, whatever their device."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
