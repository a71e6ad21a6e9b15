"""What results come from is one: settings, prompts, texts, checkpoints and their tokens, whoever runs when."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.base.files import file_sha256
from circuits_over_time.utils.config.keys import TaskConfig, files_read, key
from circuits_over_time.utils.heads.keys import CspaConfig
from circuits_over_time.utils.results.store import Result, Store
from circuits_over_time.utils.sweep.runner import main
from get_model_task_performance import ANALYSIS as PERFORMANCE
from tests.support.demo_analysis import ANALYSIS, results_in
from tests.support.tiny_models import save_family

PROMPTS = "clean,corrupted,answers,wrong_answers\n" + "\n".join(
    f"When {a} and {b} went to the store {b} gave a drink to,"
    f"When {a} and {b} went to the store {a} gave a drink to, {a}, {b}"
    for a, b in (("Mary", "John"), ("John", "Mary"))
)


class TextConfig(TaskConfig):
    """A demo that reads a text."""

    corpus: str = key("none", file=True)


TEXTUAL = dataclasses.replace(ANALYSIS, schema=TextConfig)


@dataclasses.dataclass
class Study:
    """A folder with a family, prompts and a text, and runs on them."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *overrides: str, textual: bool = False) -> int:
        self.capsys.readouterr()
        given = [f"model={self.folder / 'tiny'}", f"results_dir={self.folder / 'results'}", "device=cpu"]
        if textual:
            return main(TEXTUAL, [*given, "task=[x, y]", f"corpus={self.folder / 'text.txt'}", *overrides])
        task = [f"task={self.folder / 'own.csv'}", "metric=logit_diff", "n_prompts=2"]
        return main(PERFORMANCE, [*given, *task, *overrides])

    @property
    def told(self) -> str:
        return self.capsys.readouterr().err.strip().splitlines()[-1]

    def record(self, folder: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / "results" / folder / "run.json").read_text()))


@pytest.fixture
def study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Study:
    save_family(tmp_path / "tiny", {0: 0, 10: 1})
    (tmp_path / "own.csv").write_text(PROMPTS)
    (tmp_path / "text.txt").write_text("Mary gave John a drink")
    return Study(tmp_path, capsys)


def test_all_rows_of_a_csv_are_measured_and_another_number_is_another_setting(study: Study) -> None:
    n_rows = len(PROMPTS.splitlines()) - 1
    assert study.run("n_prompts=null", "metric=null") == 0
    settings = study.record("task_performance/tiny/own")["settings"]
    assert (settings["n_prompts"], settings["metric"]) == (None, "logit_diff")
    table = Store(study.folder / "results").read_tables("task_performance")
    assert set(table["n"]) == {n_rows}
    assert study.run("n_prompts=null") == 0
    assert study.run() == 2
    assert "holds n_prompts=null, this run asks for 2; pass overwrite=true or another results_dir" in study.told


def test_run_json_has_the_hash_of_every_file_that_numbers_depend_on(study: Study) -> None:
    assert study.run() == 0
    held = study.record("task_performance/tiny/own")
    assert held["inputs"] == {"task": file_sha256(study.folder / "own.csv")}
    for step in (0, 10):
        checkpoint, folder = held["checkpoints"][str(step)], study.folder / "tiny" / f"step{step}"
        names = {"config.json", "tokenizer.json", "tokenizer_config.json"}
        assert checkpoint["inputs"] == {name: file_sha256(folder / name) for name in names}
        assert checkpoint["tokens"] == 64 * step
    assert study.run(textual=True) == 0
    assert study.record("first/tiny/x")["inputs"] == {"corpus": file_sha256(study.folder / "text.txt")}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


ANOTHER = "another {path} than there is now (its SHA-256 has changed)"


def edit_json(path: Path) -> None:
    """Change a number that a config says, or swap two tokens of a tokenizer."""
    content = json.loads(path.read_text())
    if path.name == "family.json":
        content["tokens_per_step"] *= 2
    elif path.name == "config.json":
        content["layer_norm_eps"] *= 2
    else:
        words = content["model"]["vocab"]
        words |= {"to": words["the"], "the": words["to"]}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("own.csv", "results of another task (SHA-256 {sha}), this run measures {path} as it is now"),
        ("text.txt", "results of another corpus (SHA-256 {sha}), this run measures {path} as it is now"),
        (
            "tiny/step10/config.json",
            f"results of step 10 with {ANOTHER}",
        ),
        (
            "tiny/step0/tokenizer.json",
            f"results of step 0 with {ANOTHER}",
        ),
        ("tiny/family.json", "tokens=640 at step 10, {family} says 1280 (tokens_per_step)"),
    ],
    ids=["prompts", "corpus", "config", "tokenizer", "tokens"],
)
def test_an_edited_input_is_refused_by_name_and_overwrite_measures_all_again(
    file: str, told: str, study: Study
) -> None:
    textual, path = file == "text.txt", study.folder / file
    assert study.run(textual=textual) == 0
    folder = study.folder / "results" / ("first/tiny/x" if textual else "task_performance/tiny/own")
    holds = told.format(sha=file_sha256(path)[:12], path=path, family=study.folder / "tiny")
    if path.suffix == ".json":
        edit_json(path)
    else:
        edit(path, "drink", "store")
    before = results_in(study.folder / "results")
    assert study.run(textual=textual) == 2
    assert study.told == f"{folder} holds {holds}; pass overwrite=true or another results_dir"
    assert results_in(study.folder / "results") == before
    # All is measured again, for a folder has one set of inputs.
    assert study.run("overwrite=true", "checkpoints=[0]", textual=textual) == 0
    assert [name.name for name in folder.glob("*.csv")] == ["step000000.csv"]
    assert study.run(textual=textual) == 0


def test_another_prompts_csv_of_the_same_stem_is_refused(study: Study) -> None:
    assert study.run() == 0
    other = study.folder / "elsewhere" / "own.csv"
    other.parent.mkdir()
    other.write_text(PROMPTS.replace("drink", "store"))
    assert study.run(f"task={other}") == 2
    assert f"this run measures {other} as it is now; pass overwrite=true" in study.told
    other.write_text(PROMPTS)  # The same prompts are the same input, wherever they are.
    assert study.run(f"task={other}") == 0


def test_a_file_that_is_edited_while_it_is_read_measures_nothing(study: Study) -> None:
    def prepare(config: TextConfig, tokenizer: Any, shape: Any) -> Any:
        edit(Path(config.corpus), "Mary", "John")
        return ANALYSIS.prepare(config, tokenizer, shape)

    edited = dataclasses.replace(TEXTUAL, prepare=prepare)
    given = [f"model={study.folder / 'tiny'}", f"results_dir={study.folder / 'results'}", "device=cpu", "task=x"]
    assert main(edited, [*given, f"corpus={study.folder / 'text.txt'}"]) == 2
    assert study.told.startswith("demo: a prompts CSV or corpus was edited while this run reads it; run again")
    assert list((study.folder / "results").rglob("*.csv")) == []


def test_results_of_before_inputs_were_recorded_can_be_added_to(study: Study) -> None:
    assert study.run("checkpoints=[0]") == 0
    path = study.folder / "results/task_performance/tiny/own/run.json"
    held = json.loads(path.read_text())
    del held["inputs"], held["checkpoints"]["0"]["inputs"], held["checkpoints"]["0"]["tokens"]
    path.write_text(json.dumps(held))
    assert study.run() == 0
    assert sorted(study.record("task_performance/tiny/own")["checkpoints"]) == ["0", "10"]


def test_only_keys_that_name_files_count_as_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a")
    named = str(tmp_path / "text.txt")
    assert files_read(CspaConfig(model="toy", corpus=named)) == {"corpus": Path(named)}
    nested = IoiConsistencyConfig.model_validate({"model": "toy", "cspa": {"corpus": named}})
    assert files_read(nested) == {"cspa.corpus": Path(named)}
    assert files_read(CspaConfig(model="toy", corpus="NeelNanda/pile-10k")) == {}


# Two processes.


def demo(family: Path, results: Path, wait: Path | None, *overrides: str) -> None:
    """Run the demo in this process, and end it. It waits with its first measurement until a file is there."""

    def measure(*arguments: Any) -> dict[str, Result]:
        while wait is not None and not wait.exists():
            time.sleep(0.01)
        return ANALYSIS.measure(*arguments)

    given = [f"model={family}", "task=[x, y]", f"results_dir={results}", "device=cpu", "prefetch=false"]
    os._exit(main(dataclasses.replace(ANALYSIS, measure=measure), [*given, *overrides]))


def started(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def test_other_settings_are_refused_while_the_first_measurement_is_under_way(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    family, results, go = save_family(tmp_path / "tiny", {0: 0, 10: 1}), tmp_path / "results", tmp_path / "go"
    first = started(demo, family, results, go, "seed=0")
    while not (results / "second" / "tiny" / "y" / "run.json").is_file():
        time.sleep(0.01)
    capfd.readouterr()
    given = [f"model={family}", f"results_dir={results}", "device=cpu"]
    for overrides, told in (
        (
            ["task=[x, y]", "seed=1"],
            f"{results}/first/tiny/x: process {first.pid} on {os.uname().nodename} measures with "
            "seed=0, this run asks for 1; wait for it, or pass another results_dir",
        ),
        (
            ["task=[x, y]", "overwrite=true"],
            f"overwrite: process {first.pid} on {os.uname().nodename} is measuring demo of "
            f"tiny into {results}; wait for it, or leave overwrite out to share the work",
        ),
    ):
        second = started(lambda more: os._exit(main(ANALYSIS, [*given, *more])), overrides)
        second.join(60)
        assert second.exitcode == 2
        assert told in capfd.readouterr().err
    other_task = started(demo, family, results, None, "task=z", "seed=1")  # Another folder: nothing is mixed.
    go.touch()
    for process in (first, other_task):
        process.join(60)
        assert process.exitcode == 0
    assert json.loads((results / "first/tiny/x/run.json").read_text())["seed"] == 0
    assert main(ANALYSIS, [*given, "task=[x, y]", "seed=0"]) == 0
    assert not (results / ".claims").exists()


def test_settings_of_a_run_that_was_killed_before_its_first_result_bind_nobody(tmp_path: Path) -> None:
    family, results = save_family(tmp_path / "tiny", {0: 0}), tmp_path / "results"
    first = started(demo, family, results, tmp_path / "never", "seed=0")
    while not (results / "second" / "tiny" / "y" / "run.json").is_file():
        time.sleep(0.01)
    first.kill()
    first.join()
    assert main(ANALYSIS, [f"model={family}", "task=[x, y]", f"results_dir={results}", "device=cpu", "seed=1"]) == 0
    assert json.loads((results / "first/tiny/x/run.json").read_text())["seed"] == 1


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, bytes]]]:
    """A family, and its results of seed 0 and of seed 1."""
    folder = tmp_path_factory.mktemp("alone")
    family = save_family(folder / "tiny", {step: step for step in range(3)})
    processes = [started(demo, family, folder / str(seed), None, f"seed={seed}") for seed in (0, 1)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    return family, [tables(folder / str(seed)) for seed in (0, 1)]


def tables(results: Path) -> dict[str, bytes]:
    return {name: data for name, data in results_in(results).items() if name.endswith((".csv", ".pt"))}


@pytest.mark.parametrize("number", range(4))
def test_of_two_that_start_together_one_alone_writes(
    number: int, alone: tuple[Path, list[dict[str, bytes]]], tmp_path: Path
) -> None:
    """Their tables hold other numbers, so that a mix would show."""
    family, of_seeds = alone
    both = [started(demo, family, tmp_path / "both", None, f"seed={seed}") for seed in (0, 1)]
    for process in both:
        process.join(60)
    codes = [process.exitcode for process in both]
    assert sorted(codes) == [0, 2]
    winner = codes.index(0)
    assert tables(tmp_path / "both") == of_seeds[winner]
    assert json.loads((tmp_path / "both/first/tiny/x/run.json").read_text())["seed"] == winner
