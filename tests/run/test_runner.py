"""The runner: what it measures and skips, how it ends, and what it says."""

from __future__ import annotations

import dataclasses
import errno
import gc
import logging
import os
import re
import signal
import socket
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from circuits_over_time.utils.base import memory
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.progress import duration
from circuits_over_time.utils.config.keys import MemoryKeys, TaskConfig
from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.models.family import LocalFamily
from circuits_over_time.utils.results.store import Result, Store
from circuits_over_time.utils.sweep import loop
from circuits_over_time.utils.sweep.estimate import size
from circuits_over_time.utils.sweep.runner import Analysis, main
from circuits_over_time.utils.tasks import Task
from tests.support.demo_analysis import ANALYSIS, FIRST, SECOND, results_in
from tests.support.endurance import finished, start
from tests.support.tiny_models import save_checkpoint, save_family


@dataclasses.dataclass
class Bench:
    """A demo analysis over the tiny family, with a record of what was loaded, measured and said."""

    family: Path
    results: Path
    loaded: list[int]
    measured: list[tuple[int, str | None]]
    caplog: pytest.LogCaptureFixture

    def run(self, *overrides: str, analysis: Analysis = ANALYSIS) -> int:
        def measure(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
            self.measured.append((checkpoint.step, task.name))
            return analysis.measure(checkpoint, config, inputs, task)

        self.loaded.clear()
        self.measured.clear()
        self.caplog.clear()
        watched = dataclasses.replace(analysis, measure=measure)
        given = [f"model={self.family}", "task=[x, y]", f"results_dir={self.results}", "device=cpu"]
        return main(watched, [*given, *overrides])

    @property
    def said(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records]


@pytest.fixture
def bench(
    tiny_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> Bench:
    loaded: list[int] = []
    load = LocalFamily.load

    def watched(self: LocalFamily, step: int, *args: Any) -> LoadedCheckpoint:
        loaded.append(step)
        return load(self, step, *args)

    monkeypatch.setattr(LocalFamily, "load", watched)
    caplog.set_level(logging.INFO)
    return Bench(tiny_family, tmp_path / "results", loaded, [], caplog)


def test_every_checkpoint_and_task_is_measured_and_loaded_once(bench: Bench) -> None:
    assert bench.run() == 0
    assert bench.loaded == [0, 10, 20, 30]
    assert bench.measured == [(step, task) for step in (0, 10, 20, 30) for task in ("x", "y")]
    table = Store(bench.results).read_tables(SECOND)
    assert list(table.columns) == ["model", "task", "step", "tokens", "metric", "value"]
    assert len(table) == 4 * 2 * 2
    assert set(table["tokens"]) == {0, 640, 1280, 1920}


def test_second_run_skips_finished_checkpoints(bench: Bench) -> None:
    bench.run()
    before = results_in(bench.results)
    assert bench.run() == 0
    assert bench.loaded == []
    assert bench.measured == []
    assert results_in(bench.results) == before
    assert bench.said == [
        f"nothing to do: tiny (4 checkpoints) finished in {bench.results}; pass overwrite=true to measure again"
    ]


def test_only_what_is_missing_is_measured(bench: Bench) -> None:
    bench.run()
    before = results_in(bench.results)
    store = Store(bench.results)
    store.folder(SECOND, "tiny", "y").file(20).unlink()
    bench.run()
    assert bench.measured == [(20, "y")]
    assert results_in(bench.results) == before


def test_more_checkpoints_join_the_finished_ones(bench: Bench) -> None:
    bench.run("checkpoints=[10]")
    bench.run("checkpoints=[0,10]")
    assert bench.measured == [(0, "x"), (0, "y")]
    assert Store(bench.results).folder(FIRST, "tiny", "x").steps() == [0, 10]


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_identical_bytes(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    with monkeypatch.context() as environment:
        environment.setenv("DEMO_KILL_AT", "20 y")
        assert finished(start(killed, bench.family)) == -signal.SIGKILL
    assert Store(killed / "results").folder(SECOND, "tiny", "y").steps() == [0, 10]
    half = killed / "results" / "first" / "tiny" / "x" / f".step000030.csv.{socket.gethostname()}.999999999.tmp"
    half.write_bytes(b"half a ta")
    # run.json holds the config, so both go to the same results_dir, seen from two folders.
    bench.results = Path("results")
    monkeypatch.chdir(killed)
    assert bench.run() == 0
    assert bench.measured == [(20, "y"), (30, "x"), (30, "y")]
    straight.mkdir()
    monkeypatch.chdir(straight)
    assert bench.run() == 0
    assert results_in(killed) == results_in(straight)
    assert len(results_in(killed)) == 2 * (4 * 3 + 2 * 2)  # in each folder run.json and its lock, too


def test_garbage_of_a_checkpoint_is_gone_before_the_next_is_measured(bench: Bench) -> None:
    class Cycle:
        """Freed by a collection alone."""

        def __init__(self) -> None:
            self.itself = self

    made: list[weakref.ref[Cycle]] = []

    def measure(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
        if task.name == "x":
            assert [cycle() for cycle in made] == [None] * len(made)
        made.append(weakref.ref(Cycle()))
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    gc.disable()
    try:
        assert bench.run(analysis=dataclasses.replace(ANALYSIS, measure=measure)) == 0
    finally:
        gc.enable()
    assert len(made) == 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_says_in_one_line_how_to_go_on(number: int, code: int, bench: Bench) -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
        if checkpoint.step == 10:
            os.kill(os.getpid(), number)
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    try:
        assert bench.run(analysis=dataclasses.replace(ANALYSIS, measure=interrupted)) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert bench.said[-1] == "interrupted: 2 of 8 measured and saved; to go on, run the same command again"
    assert Store(bench.results).folder(FIRST, "tiny", "y").steps() == [0]
    assert not [path for path in results_in(bench.results) if path.endswith(".tmp")]


def test_another_config_is_refused_and_nothing_changes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run()
    before = results_in(bench.results)
    assert bench.run("seed=3", "n_prompts=5") == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"{bench.results}/first/tiny/x holds seed=0 and n_prompts=100, this run asks for 3 and 5; "
        "pass overwrite=true or another results_dir"
    )
    assert bench.measured == []
    assert results_in(bench.results) == before


def test_keys_that_say_how_to_run_may_change(bench: Bench) -> None:
    bench.run("checkpoints=[0]")
    assert bench.run("checkpoints=[0,10]", "batch_size=7", "keep_checkpoints=none") == 0
    assert bench.measured == [(10, "x"), (10, "y")]


def test_overwrite_measures_again_and_drops_results_of_the_other_config(bench: Bench) -> None:
    bench.run()
    assert bench.run("overwrite=true", "seed=3", "checkpoints=[10]") == 0
    store = Store(bench.results)
    assert store.folder(FIRST, "tiny", "x").steps() == [10]
    assert store.folder(FIRST, "tiny", "x").read_run()["settings"]["seed"] == 3
    assert list(store.folder(FIRST, "tiny", "x").read_run()["checkpoints"]) == ["10"]


def test_overwrite_with_the_same_config_keeps_the_other_steps(bench: Bench) -> None:
    bench.run()
    before = results_in(bench.results)
    assert bench.run("overwrite=true", "checkpoints=[10]") == 0
    assert bench.measured == [(10, "x"), (10, "y")]
    tables = {path for path in before if not path.endswith(("run.json", ".lock"))}
    after = results_in(bench.results)
    assert {path: after[path] for path in tables} == {path: before[path] for path in tables}


def test_a_family_trained_anew_is_refused(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench.family = save_family(tmp_path / "tiny", {0: 0, 10: 1})
    bench.run()
    save_family(tmp_path / "tiny", {0: 0, 10: 7})
    assert bench.run("checkpoints=[0]") == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"{bench.results}/first/tiny/x holds results of {bench.family}, this run measures other weights in "
        f"{bench.family} (step 10); pass overwrite=true or another results_dir"
    )


def test_a_checkpoint_trained_anew_while_others_were_measured_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.family = save_family(tmp_path / "tiny", {0: 0, 10: 1, 20: 2})

    def trained_anew(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
        if checkpoint.step == 10:  # run.json is written again after this.
            save_checkpoint(bench.family / "step0", 7)
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    assert bench.run("checkpoints=[0, 10]", analysis=dataclasses.replace(ANALYSIS, measure=trained_anew)) == 0
    assert bench.run() == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"{bench.results}/first/tiny/x holds results of {bench.family}, this run measures other weights in "
        f"{bench.family} (step 0); pass overwrite=true or another results_dir"
    )


def test_a_checkpoint_replaced_by_one_as_old_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `cp -p` or `rsync -t` leave it. It is not the last step measured, which is hashed in any case."""
    bench.family = save_family(tmp_path / "tiny", {0: 0, 10: 1, 20: 2})
    bench.run()
    times = {path: path.stat().st_mtime for path in (bench.family / "step0").iterdir()}
    save_checkpoint(bench.family / "step0", 7)
    for path, time in times.items():
        os.utime(path, (time, time))
    Store(bench.results).folder(SECOND, "tiny", "y").file(10).unlink()
    assert bench.run() == 2
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        f"{bench.results}/first/tiny/x holds results of {bench.family}, this run measures other weights in "
        f"{bench.family} (step 0); pass overwrite=true or another results_dir"
    )


def test_a_family_may_be_named_in_another_way(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.run("checkpoints=[0]")
    monkeypatch.chdir(bench.family.parent)
    bench.family = Path("tiny")
    assert bench.run("checkpoints=[0,10]") == 0
    assert bench.measured == [(10, "x"), (10, "y")]


def test_equal_weights_at_two_steps_are_reported_and_recorded(bench: Bench, twin_family: Path) -> None:
    bench.family = twin_family
    bench.run("on_duplicate_weights=warn")
    assert bench.said.count("twins: step 30 holds the same weights as step 20; recorded in run.json") == 2
    run = Store(bench.results).folder(FIRST, "twins", "x").read_run()
    assert run["equal_weights"] == [[20, 30]]
    assert run["checkpoints"]["20"]["sha256"] == run["checkpoints"]["30"]["sha256"]


def test_run_json_holds_config_versions_and_provenance(bench: Bench) -> None:
    bench.run("checkpoints=[10]", "n_prompts=5")
    run = Store(bench.results).folder(SECOND, "tiny", "y").read_run()
    assert run["config"]["n_prompts"] == 5
    assert run["config"]["checkpoints"] == [10]
    assert run["seed"] == 0
    # torch.__version__ may tell the build too: 2.14.1+cu130
    assert torch.__version__.startswith(run["versions"]["torch"])
    provenance = run["checkpoints"]["10"]
    assert (provenance["repository"], provenance["revision"]) == (str(bench.family), "step10")
    assert provenance["shape"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": True, "d_model": 8}


def test_a_damaged_checkpoint_is_reported_and_the_sweep_goes_on(bench: Bench, tmp_path: Path) -> None:
    bench.family = save_family(tmp_path / "tiny", {0: 0, 10: 1, 20: 2})
    (bench.family / "step10" / "model.safetensors").write_bytes(b"not weights")
    assert bench.run() == 1
    assert bench.measured == [(0, "x"), (0, "y"), (20, "x"), (20, "y")]
    assert bench.said[-2] == "checkpoints that could not be measured: 1"
    assert bench.said[-1].startswith(f"  tiny step 10: {bench.family}/step10/model.safetensors: cannot be read (")
    assert Store(bench.results).folder(SECOND, "tiny", "y").steps() == [0, 20]


def test_a_first_checkpoint_without_its_small_files_stops_no_other(bench: Bench, tmp_path: Path) -> None:
    bench.family = save_family(tmp_path / "tiny", {0: 0, 10: 1})
    (bench.family / "step0" / "config.json").unlink()
    assert bench.run() == 1
    assert bench.measured == [(10, "x"), (10, "y")]
    assert bench.said[-1].startswith(f"  tiny step 0: {bench.family}/step0/config.json is missing")


def test_an_error_of_the_analysis_loses_nothing_and_is_not_hidden(bench: Bench) -> None:
    def fails_late(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
        if checkpoint.step == 20:
            raise RuntimeError("a bug")
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    with pytest.raises(RuntimeError, match="a bug"):
        bench.run(analysis=dataclasses.replace(ANALYSIS, measure=fails_late))
    assert Store(bench.results).folder(SECOND, "tiny", "y").steps() == [0, 10]


def out_of_memory_above(most: int, tried: list[int], error: type[Exception] = torch.OutOfMemoryError) -> Analysis:
    """The demo analysis on a device on which no larger batches fit."""

    def measure(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
        tried.append(config.batch_size)
        if config.batch_size > most:
            raise error("DefaultCPUAllocator: can't allocate memory")
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    return dataclasses.replace(ANALYSIS, measure=measure)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_running_out_of_memory_halves_batches_says_so_once_and_remembers(
    error: type[Exception], bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "_fitting", {})
    tried: list[int] = []
    assert bench.run("batch_size=9", "checkpoints=[0, 10]", analysis=out_of_memory_above(3, tried, error)) == 0
    assert tried == [9, 4, 2, 9, 4, 2, 2, 2]  # Each task by itself, and the second checkpoint at once with what fits.
    told = [line for line in capsys.readouterr().err.splitlines() if "fit" in line]
    assert told == [
        f"tiny step 0 demo {task}: did not fit on cpu; from here on with batch_size=2" for task in ("x", "y")
    ]
    assert Store(bench.results).folder(SECOND, "tiny", "y").steps() == [0, 10]


def test_a_prompt_that_does_not_fit_leaves_the_checkpoint_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "_fitting", {})
    tried: list[int] = []
    assert bench.run("batch_size=2", "checkpoints=[0]", analysis=out_of_memory_above(0, tried)) == 1
    assert tried == [2, 1]
    assert capsys.readouterr().err.splitlines()[-1] == (
        "  tiny step 0: batch_size: not even 1 fits on cpu; pass dtype=bfloat16, shorter prompts, or a device with "
        "more memory"
    )


class Budgeted(TaskConfig, MemoryKeys):
    """The demo's keys, and a budget of memory."""


def test_the_budget_is_halved_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "_fitting", {})
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(8e9))
    tried: list[tuple[int, float]] = []

    def measure(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Task) -> dict[str, Result]:
        tried.append((config.batch_size, config.budget_gb(checkpoint.device)))
        if tried[-1][1] > 0.2:
            raise torch.OutOfMemoryError
        return ANALYSIS.measure(checkpoint, config, inputs, task)

    analysis = dataclasses.replace(ANALYSIS, measure=measure, schema=Budgeted)
    assert bench.run("batch_size=2", "checkpoints=[0]", "task=x", analysis=analysis) == 0
    assert tried == [(2, 0.5), (1, 0.25), (1, 0.125)]
    assert "from here on with batch_size=1, memory_budget_gb=0.125" in capsys.readouterr().err


def test_an_analysis_that_leaves_out_a_kind_is_a_bug(bench: Bench) -> None:
    one = Result(pd.DataFrame({"value": [1.0]}))
    with pytest.raises(ValueError, match=r"demo measured \['first'\], its kinds are \['first', 'second'\]"):
        bench.run(analysis=dataclasses.replace(ANALYSIS, measure=lambda *_: {"first": one}))


def test_dry_run_loads_and_writes_nothing(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.run("checkpoints=[0]")
    before = results_in(bench.results)
    weights = (bench.family / "step10" / "model.safetensors").stat().st_size
    assert bench.run("--dry-run") == 0
    assert bench.loaded == []
    assert results_in(bench.results) == before
    out = capsys.readouterr().out
    assert "batch_size: 32\n" in out
    out, _, each = out.partition("    a checkpoint: ")
    assert re.fullmatch(r"(?:[xy] (?:\d+\.\d|under 0\.1) s(?:, |\n)){2}", each)
    assert out.endswith(
        f"tiny from {bench.family}: 3 of 4 checkpoints to measure\n"
        "  prepend_bos: auto is false\n"
        "  measure: 10, 20, 30\n"
        "  finished: 0\n"
        f"  results: {bench.results}/first/tiny, {bench.results}/second/tiny\n"
        f"  needs: download 0 B, peak disk 0 B, peak memory {size(2 * weights)} (weights alone)\n"
        "  time: under a second, as measured here before, without loading\n"
    )


def test_bad_input_is_found_before_the_first_checkpoint_is_measured(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(config: Any, tokenizer: Any, shape: Any) -> None:
        raise UserError(f"task: {config.task} has words that are no tokens of {type(tokenizer).__name__}")

    assert bench.run(analysis=dataclasses.replace(ANALYSIS, prepare=prepare)) == 2
    assert bench.loaded == []
    assert capsys.readouterr().err.splitlines()[-1].startswith("task: ['x', 'y'] has words that are no tokens of")
    assert not bench.results.exists()


def test_finish_runs_after_a_models_sweep_and_after_one_that_was_finished(bench: Bench) -> None:
    finished: list[tuple[str, list[int]]] = []

    def finish(config: Any, store: Store, model: str) -> None:
        finished.append((model, store.folder(FIRST, model, "x").steps()))

    analysis = dataclasses.replace(ANALYSIS, finish=finish)
    bench.run(analysis=analysis)
    bench.run(analysis=analysis)
    assert finished == [("tiny", [0, 10, 20, 30])] * 2


def test_several_models_are_measured_one_after_the_other(bench: Bench, tmp_path: Path) -> None:
    other = save_family(tmp_path / "other", {5: 3})
    assert bench.run(f"model=[{bench.family}, {other}]") == 0
    assert bench.loaded == [0, 10, 20, 30, 5]
    assert Store(bench.results).models(FIRST) == ["other", "tiny"]


def test_the_next_models_first_checkpoint_is_read_while_the_last_of_this_one_is_measured(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[tuple[str, int, list[tuple[int, str | None]]]] = []

    def prefetch(self: LocalFamily, step: int) -> None:
        fetched.append((self.name, step, list(bench.measured)))

    monkeypatch.setattr(LocalFamily, "prefetch", prefetch)
    other = save_family(tmp_path / "other", {5: 3})
    assert bench.run(f"model=[{bench.family}, {other}]", "checkpoints=all", "task=x") == 0
    steps = [0, 10, 20, 30]
    assert [(name, step) for name, step, _ in fetched] == [("tiny", 10), ("tiny", 20), ("tiny", 30), ("other", 5)]
    # Each is fetched before the one ahead of it is measured.
    assert [len(measured) for _, _, measured in fetched] == [steps.index(step) for step in steps]


def test_bad_input_of_a_later_model_costs_no_measurement_of_an_earlier_one(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(config: Any, tokenizer: Any, shape: Any) -> Any:
        if bench.loaded:
            raise UserError("task: the other model does not know these words")
        return ANALYSIS.prepare(config, tokenizer, shape)

    other = save_family(tmp_path / "other", {5: 3})
    analysis = dataclasses.replace(ANALYSIS, prepare=prepare)
    assert bench.run(f"model=[{bench.family}, {other}]", "task=x", analysis=analysis) == 2
    assert [step for step, _ in bench.measured] == [0, 10, 20, 30]
    assert Store(bench.results).folder(FIRST, "tiny", "x").steps() == [0, 10, 20, 30]
    assert "task: the other model does not know these words" in capsys.readouterr().err


def test_two_models_of_one_name_are_refused(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = save_family(tmp_path / "tiny", {5: 3})
    assert bench.run(f"model=[{bench.family}, {other}]") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"model: {bench.family} and {other} would both write to the folder 'tiny'; run them with two results_dir"
    )


def test_a_step_that_is_not_there_is_refused(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.run("checkpoints=[0,15]") == 2
    assert capsys.readouterr().err == "checkpoints: step 15 is not in tiny (nearest: 10, 20)\n"


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--seed=3", "command line: --seed=3: unknown option; write seed=3"),
        ("--sede", "command line: --sede: unknown option; --help lists them; an override is written sede=value"),
        ("seed", "command line: 'seed' is not an override; write it as key=value, for example seed=1"),
    ],
)
def test_an_argument_that_is_no_override_is_refused(
    argument: str, told: str, bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run(argument) == 2
    assert capsys.readouterr().err == f"{told}\n"


def test_a_config_file_and_overrides_may_stand_in_any_order(bench: Bench, tmp_path: Path) -> None:
    config = tmp_path / "demo.yml"
    config.write_text("checkpoints: [0, 10]\nseed: 4\n")
    assert bench.run("-c", str(config), "checkpoints=[10]") == 0
    assert bench.measured == [(10, "x"), (10, "y")]
    assert Store(bench.results).folder(FIRST, "tiny", "x").read_run()["seed"] == 4


def test_the_time_left_is_said_after_each_measurement(bench: Bench) -> None:
    bench.run("checkpoints=[0]")
    assert bench.said[0].startswith("tiny step 0 x: measured 1 of 2, about ")
    assert bench.said[-1].startswith(f"finished: 2 measured into {bench.results} in ")
    assert duration(125) == "02:05"


def test_signal_handlers_are_put_back(bench: Bench) -> None:
    before = signal.getsignal(signal.SIGTERM)
    bench.run("checkpoints=[0]")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("place", ["/proc/nowhere", "file/results"])
def test_results_that_cannot_be_written_are_told_in_one_line_before_anything_is_loaded(
    place: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("a file, and no folder")
    bench.results = Path(place)
    assert bench.run() == 2
    (line,) = capsys.readouterr().err.splitlines()
    told = {
        "/proc/nowhere": "results_dir: /proc/nowhere/first/tiny/x cannot be written to (",
        "file/results": "command line: results_dir: 'file/results': file is a file, not a folder",
    }
    assert line.startswith(told[place])
    assert line.endswith("; name another folder")
    assert bench.loaded == []


def test_a_full_disk_ends_the_run_in_one_line_with_no_half_file(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run("checkpoints=[0]")
    before = results_in(bench.results)
    sync = os.fsync
    written = 0

    def full(handle: int) -> None:
        nonlocal written
        written += 1
        if written > 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    capsys.readouterr()
    assert bench.run() == 2
    assert "cannot be written (No space left on device); free space or name another folder" in capsys.readouterr().err
    monkeypatch.undo()
    after = results_in(bench.results)
    assert not [path for path in after if path.endswith(".tmp")]
    assert {path: after[path] for path in before if "step" in path} == {
        path: data for path, data in before.items() if "step" in path
    }
    assert bench.run() == 0
    assert Store(bench.results).folder(SECOND, "tiny", "y").steps() == [0, 10, 20, 30]
