"""Circuits while a model trains: what the callback leaves behind, and what it leaves alone."""

from __future__ import annotations

import random
import re
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

import circuits_over_time as cot
from circuits_over_time.plotting import plot_circuits
from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.utils.circuits import callback as callback_module
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.results.edges import with_inputs
from circuits_over_time.utils.results.store import Store, csv_bytes, read_csv
from tests.support.paths import ROOT, TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

KEYS: dict[str, Any] = {"n_prompts": 4, "ig_steps": 2, "n_random": 1, "sizes": [10]}
DATA = [{"input_ids": ids, "labels": ids} for ids in torch.randint(5, 60, (32, 10), generator=torch.manual_seed(1))]


def model() -> PreTrainedModel:
    dropout = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.1)
    made = random_model("gpt2", n_layers=2, vocab=len(words()), **dropout)
    return made.requires_grad_(True)


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    steps: int = 4,
    resume: str | None = None,
    log: bool = True,
    **arguments: Any,
) -> Trainer:
    """A training of a few steps with dropout, from the same start each time."""
    torch.manual_seed(0)
    asked = {"max_steps": steps, "save_steps": 2, "logging_steps": 2, "report_to": "none", "use_cpu": True}
    settings = TrainingArguments(
        str(folder), **(asked | {"per_device_train_batch_size": 4, "disable_tqdm": True} | arguments)
    )
    trainer = Trainer(model(), settings, train_dataset=DATA, processing_class=words(), callbacks=list(callbacks))
    for one in callbacks:
        if isinstance(one, cot.CircuitCallback) and log:
            one.log = trainer.log
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def steps_of(results: Path, name: str, kind: str = "baselines", task: str = "ioi") -> list[int]:
    return Store(results).folder(kind, name, task).steps()


def callback(results: Path, every: Any = 2, **keys: Any) -> cot.CircuitCallback:
    return cot.CircuitCallback("ioi", every, results_dir=results, tokens_per_step=40, **(KEYS | keys))


def figure(folder: Path) -> str:
    """The page that plot_circuits.py draws of a folder's results."""
    asked = ["-r", str(folder / "results"), "-o", str(folder / "figures")]
    assert figure_main(plot_circuits.FIGURE, asked) == 0
    return (folder / "figures" / "circuits.html").read_text()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """The code of docs/training.md, run on the kept checkpoint; its folder, and the trainer."""
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "training.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    folder, names = tmp_path_factory.mktemp("example"), dict[str, Any]()
    (folder / "model_cache").mkdir()
    (folder / "model_cache" / "toy").symlink_to(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(code[1], names)
    return folder, names["trainer"]


@pytest.mark.slow
def test_the_example_leaves_results_that_figures_read(example: tuple[Path, Trainer]) -> None:
    folder, _ = example
    for kind in ("baselines", "faithfulness", "graphs", "controls", "prompt_groups"):
        assert steps_of(folder / "results", "ioi_only", kind) == [0, 5, 10]
    table = Store(folder / "results").read_tables("baselines")
    assert table["tokens"].tolist() == [0, 600, 1200]
    assert (table["status"] == "found").any()
    assert "ioi_only" in figure(folder)


@pytest.mark.slow
def test_the_log_holds_the_numbers_of_the_tables(example: tuple[Path, Trainer]) -> None:
    folder, trainer = example
    logged = [line for line in trainer.state.log_history if "circuits/ioi/logit_diff" in line]
    table = Store(folder / "results").read_tables("baselines")
    assert [line["step"] for line in logged] == [0, 5, 10]
    assert [line["circuits/ioi/logit_diff"] for line in logged] == pytest.approx(table["full"].tolist(), rel=1e-6)
    selected = Store(folder / "results").read_tables("faithfulness").query("selected")
    found = {line["step"]: line["circuits/ioi/edges"] for line in logged if "circuits/ioi/edges" in line}
    assert found == dict(zip(selected["step"], selected["n_edges"], strict=True))
    assert [line["step"] for line in trainer.state.log_history if "loss" in line] == [5, 10], "its own lines are there"


class Watcher(TrainerCallback):
    """What a logger such as TensorBoard's sees, and the state of the training after every step."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []
        self.states: list[Any] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(dict(logs))

    def on_step_begin(self, *_: Any, model: PreTrainedModel, **__: Any) -> None:
        grads = [None if weight.grad is None else weight.grad.clone() for weight in model.parameters()]
        numpy_state = np.random.get_state()[1]  # noqa: NPY002
        self.states.append((torch.get_rng_state(), random.getstate(), numpy_state, model.training, grads))


def test_the_training_is_the_same_with_and_without_it_to_the_last_bit(tmp_path: Path) -> None:
    before, after = Watcher(), Watcher()
    without, with_it = train(tmp_path / "a", before), train(tmp_path / "b", after, callback(tmp_path / "results"))
    assert steps_of(tmp_path / "results", "b") == [0, 2, 4]
    assert before.logs[0].keys() != after.logs[0].keys(), "it did log"
    for one, other in zip(without.model.state_dict().values(), with_it.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert len(before.states) == len(after.states) == 4
    for one, other in zip(before.states, after.states, strict=True):
        assert torch.equal(one[0], other[0])
        assert one[1] == other[1]
        assert np.array_equal(one[2], other[2])
        assert one[3] is other[3]
        assert [grad is None for grad in one[4]] == [grad is None for grad in other[4]]


def test_loggers_that_the_trainer_knows_see_the_numbers(tmp_path: Path) -> None:
    logger = Watcher()
    train(tmp_path / "run", logger, callback(tmp_path / "results"), steps=2)
    assert sum("circuits/ioi/logit_diff" in line for line in logger.logs) == 2
    assert sum("loss" in line for line in logger.logs) == 1


def test_without_the_trainers_log_the_history_alone_has_the_numbers_and_reporters_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Reporting(Watcher):
        def on_train_begin(self, args: TrainingArguments, *_: Any, **__: Any) -> None:
            args.report_to = ["wandb"]  # Trainer itself refuses those that are not installed.

    logger = Reporting()
    trainer = train(tmp_path / "run", logger, callback(tmp_path / "results"), steps=2, log=False)
    held = [line for line in trainer.state.log_history if "circuits/ioi/logit_diff" in line]
    assert [line["step"] for line in held] == [0, 2]
    assert held[0]["circuits/ioi/logit_diff"] == pytest.approx(
        Store(tmp_path / "results").read_tables("baselines")["full"][0]
    )
    assert not any("circuits/ioi/logit_diff" in line for line in logger.logs)
    assert caplog.text.count("circuits are not told to wandb; pass log=trainer.log") == 1


def test_numbers_are_those_of_the_library_for_the_weights_of_that_step(tmp_path: Path) -> None:
    trainer = train(tmp_path / "run", callback(tmp_path / "results"), steps=2)
    found = cot.find_circuit(cot.load(trainer.model, tokenizer=words()), cot.task("ioi"), **KEYS)
    stored = cot.read_circuit(tmp_path / "results" / "graphs" / "run" / "ioi" / "step000002.pt")
    assert torch.equal(stored.circuit.scores, found.circuit.scores)
    for kind, table in found.tables.items():
        written = Store(tmp_path / "results").folder(kind, "run", "ioi").read_table(2)
        again = read_csv(StringIO(csv_bytes(table).decode()))
        pd.testing.assert_frame_equal(written.iloc[:, 3:], with_inputs(again) if kind == "graphs" else again)


def test_it_measures_at_the_steps_asked_for(tmp_path: Path) -> None:
    train(tmp_path / "run", callback(tmp_path / "results", every=[1, 3]))
    assert steps_of(tmp_path / "results", "run") == [1, 3]
    train(tmp_path / "other", callback(tmp_path / "results", every=3))
    assert steps_of(tmp_path / "results", "other") == [0, 3, 4], "the last one too"


def test_a_training_that_goes_on_goes_on_with_its_results(tmp_path: Path) -> None:
    folder, results = tmp_path / "run", tmp_path / "results"
    train(folder, callback(results))
    before = Store(results).folder("baselines", "run", "ioi").read_run()["checkpoints"]
    train(folder, callback(results), steps=6, resume=str(folder / "checkpoint-2"))
    assert steps_of(results, "run") == [0, 2, 4, 6]
    after = Store(results).folder("baselines", "run", "ioi").read_run()["checkpoints"]
    assert after["2"] == before["2"]
    assert after["4"]["sha256"] != after["2"]["sha256"]
    with pytest.raises(ValueError, match=r"holds n_prompts=4, not 5; pass overwrite=True"):
        train(folder, callback(results, n_prompts=5), steps=6, resume=str(folder / "checkpoint-4"))


def test_two_trainings_never_share_results(tmp_path: Path) -> None:
    folder, results = tmp_path / "run", tmp_path / "results"
    train(folder, callback(results))
    with pytest.raises(ValueError, match=r"ioi holds the results of an earlier training; pass overwrite=True"):
        train(folder, callback(results))
    train(folder, callback(results, overwrite=True, every=3))
    assert steps_of(results, "run") == [0, 3, 4]
    assert set(Store(results).folder("graphs", "run", "ioi").read_run()["checkpoints"]) == {"0", "3", "4"}


class Diverging(TrainerCallback):
    """Weights are no longer finite after the first step."""

    def on_step_end(self, *of_trainer: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(float("nan"))


def test_a_training_that_diverges_goes_on_without_circuits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = train(tmp_path / "training", Diverging(), callback(tmp_path / "results", name="t"))
    assert trainer.state.global_step == 4
    assert steps_of(tmp_path / "results", "t") == [0]
    told = [line for line in caplog.messages if "left out" in line]
    assert told == [f"t step {step} is left out: the embedding gives NaN or infinity in float32" for step in (2, 4)]


def test_too_little_memory_on_the_way_leaves_a_step_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    measure = callback_module.measure

    def full(checkpoint: LoadedCheckpoint, *inputs: Any) -> Any:
        if checkpoint.step == 2:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return measure(checkpoint, *inputs)

    monkeypatch.setattr(callback_module, "measure", full)
    train(tmp_path / "training", callback(tmp_path / "results", name="t"))
    assert steps_of(tmp_path / "results", "t") == [0, 4]
    (told,) = (line for line in caplog.messages if "left out" in line)
    assert told.startswith("t step 2 is left out: a batch does not fit on the device ([enforce fail] DefaultCPU")


def test_several_tasks_also_in_memory_and_a_trainer_that_counts_tokens(tmp_path: Path) -> None:
    names = ["Mary", "Paul", "Sarah", "James"]
    pairs = cot.task(
        clean=[f"John and {name} gave" for name in names] + [f"{name} and John gave" for name in names],
        corrupted=[f"Lisa and {name} gave" for name in names] + [f"{name} and Lisa gave" for name in names],
        answers=[" John"] * 8,
        wrong_answers=[" Lisa"] * 8,
        name="givers",
    )
    both = cot.CircuitCallback(["ioi", pairs], 2, results_dir=tmp_path / "results", **KEYS)
    train(tmp_path / "run", both, steps=2, include_num_input_tokens_seen="all")
    store = Store(tmp_path / "results")
    assert store.tasks("baselines", "run") == ["givers", "ioi"]
    assert store.read_tables("baselines")["tokens"].tolist() == [0, 80, 0, 80]
    assert store.folder("baselines", "run", "givers").read_run()["config"]["metric"] == "logit_diff"
    assert "givers" in figure(tmp_path)


def test_what_cannot_be_measured_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every=0"):
        cot.CircuitCallback("ioi", 0)
    with pytest.raises(ValueError, match="'iio' is unknown"):
        cot.CircuitCallback("iio", 2)
    with pytest.raises(ValueError, match=r"tokens_per_step: not known; pass tokens_per_step="):
        train(tmp_path / "run", cot.CircuitCallback("ioi", 2, results_dir=tmp_path))
    with pytest.raises(TypeError, match="n_prompt: there is no such keyword"):
        train(tmp_path / "run", callback(tmp_path, n_prompt=3))
    assert not list(tmp_path.glob("baselines"))
