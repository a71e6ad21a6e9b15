"""`prepend_bos: auto` becomes true or false for each model before anything is prepared; that is what is recorded."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.config.keys import TaskConfig, for_model, load_config
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from get_model_task_performance import ANALYSIS as PERFORMANCE
from tests.support.demo_analysis import ANALYSIS as DEMO
from tests.support.hub_server import Files, HubServer
from tests.support.paths import TOY

CSPA = {"corpus": "toy"}


@pytest.fixture
def with_bos(word_family: Path, tmp_path: Path) -> Path:
    """The family of words, which says that it was trained with a start token."""
    folder = tmp_path / "families" / "with_bos"
    shutil.copytree(word_family, folder)
    about = json.loads((folder / "family.json").read_text())
    (folder / "family.json").write_text(json.dumps(about | {"prepend_bos": True}))
    return folder


def run(model: Path, results: Path, *overrides: str) -> int:
    given = [f"model={model}", f"results_dir={results}", "task=ioi", "n_prompts=4", "checkpoints=[0]", "device=cpu"]
    return main(PERFORMANCE, [*given, *overrides])


def settings(results: Path, model: str) -> Any:
    return Store(results).folder(PERFORMANCE.kinds[0], model, "ioi").read_run()["settings"]["prepend_bos"]


@pytest.mark.parametrize(("habit", "becomes"), [(True, True), (False, False), (None, False)])
def test_auto_is_the_models_habit_in_every_block_and_no_where_nobody_says(habit: bool | None, becomes: bool) -> None:
    config = IoiConsistencyConfig(model="any", cspa=CSPA)
    assert config.prepend_bos == "auto"
    resolved = for_model(config, habit)
    assert (resolved.prepend_bos, resolved.cspa and resolved.cspa.prepend_bos) == (becomes, becomes)
    of_cspa = resolved.cspa_config()
    assert of_cspa is not None
    assert (resolved.circuits_config().prepend_bos, of_cspa.prepend_bos) == (becomes, becomes)


@pytest.mark.parametrize("typed", [True, False])
def test_what_is_typed_stays(typed: bool) -> None:
    config = IoiConsistencyConfig(model="any", prepend_bos=typed, cspa={**CSPA, "prepend_bos": typed})
    assert for_model(config, not typed) == config


def test_nothing_but_the_start_token_changes() -> None:
    config = IoiConsistencyConfig(model="any", cspa=CSPA, n_prompts=3)
    changed = for_model(config, True).model_dump()
    changed["prepend_bos"] = changed["cspa"]["prepend_bos"] = "auto"
    assert changed == config.model_dump()


def test_a_number_format_is_of_a_models_name_or_of_where_it_is() -> None:
    config = IoiConsistencyConfig(
        model="any", dtype_of={"org/name": "bfloat16"}, circuit={"dtype_of": {"name": "float16"}}
    )
    found = for_model(config, None, "name", "org/name")
    assert (found.dtype, found.circuit.dtype) == ("bfloat16", "float16")
    assert for_model(config, None, "other", "org/other").dtype == "float32"


def test_pythia_and_the_toy_families_start_without_and_amber_with_one(
    served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    served.repositories["IFM/Amber"] = {"ckpt_000": branches["step0"]}
    served.repositories["common-pile/comma-v0.1-1t"] = {"stage1-step001000-tokens2B": branches["step0"]}
    config = TaskConfig(model="any", task="ioi")
    habits = {
        model: for_model(config, resolve_family(model, tmp_path).prepend_bos).prepend_bos
        for model in ("pythia-70m", str(TOY), "Amber", "comma-v0.1-1t")
    }
    assert habits == {"pythia-70m": False, str(TOY): False, "Amber": True, "comma-v0.1-1t": True}


def test_auto_measures_and_records_what_the_same_choice_typed_does(with_bos: Path, tmp_path: Path) -> None:
    kind = PERFORMANCE.kinds[0]
    tables = {}
    for name, typed in (("auto", []), ("true", ["prepend_bos=true"]), ("false", ["prepend_bos=false"])):
        assert run(with_bos, tmp_path / name, *typed) == 0
        tables[name] = Store(tmp_path / name).folder(kind, "with_bos", "ioi").file(0).read_bytes()
        assert settings(tmp_path / name, "with_bos") is (name != "false")
    assert tables["auto"] == tables["true"] != tables["false"]


def test_results_of_auto_and_of_the_same_choice_typed_are_one_folders(
    with_bos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(with_bos, tmp_path / "results") == 0
    assert run(with_bos, tmp_path / "results", "prepend_bos=true", "checkpoints=[0,5]") == 0
    capsys.readouterr()
    assert run(with_bos, tmp_path / "results", "prepend_bos=false") == 2
    assert "holds prepend_bos=true, this run asks for false; pass overwrite=true" in capsys.readouterr().err


def test_every_model_of_a_run_is_prepared_by_its_own_habit(with_bos: Path, word_family: Path, tmp_path: Path) -> None:
    prepared = []

    def prepare(config: TaskConfig, tokenizer: Any, shape: Any) -> Any:
        prepared.append(config.prepend_bos)
        return DEMO.prepare(config, tokenizer, shape)

    watched = dataclasses.replace(DEMO, prepare=prepare)
    models = f"model=[{with_bos},{word_family}]"
    assert main(watched, [models, "task=x", f"results_dir={tmp_path / 'results'}", "device=cpu"]) == 0
    assert prepared == [True, False]


def test_a_dry_run_says_what_auto_is(with_bos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for typed, told in (([], True), (["prepend_bos=true"], False)):
        assert run(with_bos, tmp_path / "results", "--dry-run", *typed) == 0
        assert ("\n  prepend_bos: auto is true\n" in capsys.readouterr().out) is told


def test_a_habit_that_is_not_true_or_false_is_refused(
    with_bos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (with_bos / "family.json").write_text('{"tokens_per_step": 2, "prepend_bos": "yes"}')
    assert run(with_bos, tmp_path / "results") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{with_bos}/family.json: prepend_bos: 'yes' is not true or false; correct it or leave it out"


def test_a_start_token_is_true_false_or_auto() -> None:
    with pytest.raises(Exception, match="command line: prepend_bos: 'sometimes' is not true or false or 'auto'"):
        load_config(TaskConfig, None, ["model=any", "task=ioi", "prepend_bos=sometimes"])
