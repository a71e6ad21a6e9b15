"""The second walk of get_circuits_over_time.py: circuits in the models of other checkpoints and on other tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.utils.circuits.find import circuit_prompts
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.circuits.transfer import StoredCircuit
from circuits_over_time.utils.models.family import LocalFamily, resolve_family
from circuits_over_time.utils.results.kinds import TRANSFER
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main, main_of_suite
from circuits_over_time.utils.tasks import TASKS
from get_circuits_over_time import ANALYSIS
from tests.support import ioi_transformer
from tests.support.hub_server import HubServer, read_folder
from tests.support.loading import point_at
from tests.support.paths import TOY, TOY_STEPS

LAST = TOY_STEPS[-1]
# What no test here asks about.
LESS = ["n_random=0", "eap.ig_steps=4", "search.mib=false", "attention=null"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The toy family's circuits of two tasks, transferred between all its kept steps."""
    results = tmp_path_factory.mktemp("transfer") / "results"
    overrides = [f"model={TOY}", "task=[greater_than, sva]", "n_prompts=20", f"results_dir={results}"]
    overrides += [*LESS, "device=cpu"]
    assert main(ANALYSIS, [*overrides, "transfer=all"]) == 0
    return overrides


def results_of(given: list[str]) -> Store:
    return Store(given[3].partition("=")[2])


def test_a_circuit_in_its_own_model_has_its_own_faithfulness(given: list[str]) -> None:
    store, found = results_of(given), 0
    for task in ("greater_than", "sva"):
        for step in store.folder("transfer", TOY.name, task).steps():
            table = store.folder("transfer", TOY.name, task).read_table(step)
            own = table.query("from_step == @step and from_task == @task")
            curve = store.folder("faithfulness", TOY.name, task).read_table(step)
            selected = curve[curve["selected"].astype(bool)]
            assert len(own) == len(selected)
            for column in ("metric", "faithfulness", "faithfulness_raw", "n_edges", "faithfulness_low"):
                assert own[column].tolist() == pytest.approx(selected[column].tolist(), rel=1e-4), column
            found += len(own)
    assert found >= 3


def test_rows_are_the_circuits_of_other_steps_and_other_tasks_by_hand(given: list[str]) -> None:
    store, name = results_of(given), TOY.name
    found = {
        task: [
            step
            for step in store.folder("graphs", name, task).steps()
            if len(store.folder("graphs", name, task).read_table(step))
        ]
        for task in ("greater_than", "sva")
    }
    table = store.folder("transfer", name, "sva").read_table(LAST)
    expected = {(step, "sva") for step in found["sva"]}
    expected |= {(LAST, "greater_than")} if LAST in found["greater_than"] else set()
    assert set(zip(table["from_step"], table["from_task"], strict=True)) == expected
    assert len(expected) == len(table) > 2
    config = CircuitsConfig(model=str(TOY), task="sva", n_prompts=20)
    checkpoint = resolve_family(str(TOY), Path("model_cache")).load(LAST, "float32", torch.device("cpu"))
    prompts = circuit_prompts(config, TASKS["sva"], checkpoint.tokenizer, checkpoint.weights).evaluation
    evaluator = CircuitEvaluator(checkpoint.weights, prompts.pairs, prompts.metric("prob_diff"))
    for row in table.itertuples():
        circuit = Circuit.from_tensors(store.folder("graphs", name, row.from_task).read_tensors(row.from_step))
        metric = float(evaluator(circuit.in_circuit[None])[0].double().mean())
        assert row.metric == pytest.approx(metric, rel=1e-4, abs=1e-6)
        gap = float((evaluator.full - evaluator.corrupted).double().mean())
        share = (metric - float(evaluator.corrupted.double().mean())) / gap
        assert row.faithfulness == pytest.approx(share, rel=1e-4, abs=1e-6)


def test_a_model_that_has_not_learned_the_task_gets_no_rows(given: list[str]) -> None:
    store = results_of(given)
    assert store.folder("baselines", TOY.name, "sva").read_table(0)["status"].item() == "task not learned"
    assert store.folder("transfer", TOY.name, "sva").read_table(0).empty


def test_fewer_circuits_are_not_measured_again_and_changed_ones_are(
    given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = results_of(given).folder("transfer", TOY.name, "sva")
    before, stamp = folder.file(LAST).read_bytes(), folder.file(LAST).stat().st_mtime_ns
    assert main(ANALYSIS, [*given, "transfer=neighbours"]) == 0
    assert folder.file(LAST).stat().st_mtime_ns == stamp
    with monkeypatch.context() as other:
        other.setattr(StoredCircuit, "fingerprint", "another")
        assert main(ANALYSIS, [*given, "transfer=all"]) == 0
    assert set(folder.read_table(LAST)["circuit"]) == {"another"}
    assert main(ANALYSIS, [*given, "transfer=all"]) == 0
    assert folder.file(LAST).read_bytes() == before


def test_a_table_is_measured_again_when_there_are_more_circuits(tmp_path: Path) -> None:
    given = [f"model={TOY}", "task=sva", "n_prompts=20", f"results_dir={tmp_path}", *LESS, "device=cpu"]
    folder = Store(tmp_path).folder("transfer", TOY.name, "sva")
    assert main(ANALYSIS, [*given, "transfer=all", f"checkpoints=[{LAST}]"]) == 0
    assert folder.read_table(LAST)["from_step"].tolist() == [LAST]
    assert main(ANALYSIS, [*given, "transfer=all"]) == 0
    assert folder.read_table(LAST)["from_step"].tolist() == [750, LAST]


def test_a_step_without_results_is_refused_before_anything_is_loaded(
    given: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFamily, "load", None)
    assert main(ANALYSIS, [*given, "transfer=[7]"]) == 2
    assert "transfer: step 7 is neither a checkpoint of this run nor in the results of " in capsys.readouterr().err


def test_neighbours_are_the_steps_before_and_after_with_a_circuit(tmp_path: Path) -> None:
    family = tmp_path / "family"
    for step in (0, 10, 20, 30, 40):
        model = ioi_transformer.ioi_transformer()
        if step == 0:
            model.lm_head.weight.zero_()
        model.save_pretrained(family / f"step{step}")
        ioi_transformer.tokenizer().save_pretrained(family / f"step{step}")
    (family / "family.json").write_text('{"tokens_per_step": 10}')
    overrides = [f"model={family}", "task=ioi", "n_prompts=6", f"results_dir={tmp_path}", *LESS, "device=cpu"]
    overrides += ["on_duplicate_weights=warn"]
    assert main(ANALYSIS, [*overrides, "transfer=neighbours"]) == 0
    folder = Store(tmp_path).folder(TRANSFER, "family", "ioi")
    assert {step: folder.read_table(step)["from_step"].tolist() for step in folder.steps()} == {
        0: [],
        10: [10, 20],
        20: [10, 20, 30],
        30: [20, 30, 40],
        40: [30, 40],
    }
    # Every checkpoint holds the same weights: a circuit does the same in all of them.
    table = folder.read_table(20)
    assert table["metric"].nunique() == 1
    assert main(ANALYSIS, [*overrides, "transfer=[40]"]) == 0
    assert folder.read_table(20)["from_step"].tolist() == [20, 40]


def test_a_dry_run_says_what_both_walks_lack_and_deletes_nothing(
    given: list[str], capsys: pytest.CaptureFixture
) -> None:
    folder = results_of(given).folder(TRANSFER, TOY.name, "sva")
    before = folder.steps()
    assert main(ANALYSIS, ["--dry-run", *given, "transfer=all", "overwrite=true"]) == 0
    assert capsys.readouterr().out.count("3 of 3 checkpoints to measure") == 2
    assert folder.steps() == before == list(TOY_STEPS)


def test_a_suite_makes_the_second_walk_after_all_circuits(tmp_path: Path) -> None:
    entry = {"script": "get_circuits_over_time.py", "task": "sva", "n_prompts": 20, "n_random": 0, "transfer": "all"}
    entry |= {"eap": {"ig_steps": 4}, "search": {"mib": False}, "attention": None}
    suite = {"model": str(TOY), "device": "cpu", "checkpoints": [750, LAST], "results_dir": str(tmp_path / "results")}
    (tmp_path / "suite.yml").write_text(json.dumps(suite | {"analyses": [entry]}))
    assert main_of_suite(["-c", str(tmp_path / "suite.yml")]) == 0
    folder = Store(tmp_path / "results").folder(TRANSFER, TOY.name, "sva")
    assert {step: folder.read_table(step)["from_step"].tolist() for step in folder.steps()} == {
        750: [750, LAST],
        LAST: [750, LAST],
    }


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["all", "none"])
def test_after_fetching_both_walks_run_offline(keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = {path.name: path.read_bytes() for path in TOY.iterdir() if path.is_file() and path.name != "family.json"}
    branches = {f"step{step}": shared | read_folder(TOY / f"step{step}") for step in TOY_STEPS}
    overrides = ["model=lab/toy", "tokens_per_step=4096", "task=sva", "n_prompts=10", *LESS, "device=cpu"]
    overrides += [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache", f"keep_checkpoints={keep}"]
    with HubServer({"lab/toy": branches}) as hub:
        point_at(hub.endpoint, monkeypatch)
        if keep == "none":  # Circuits are there already, and their checkpoints are gone.
            assert main(ANALYSIS, overrides) == 0
            assert not list((tmp_path / "cache").rglob("*.safetensors"))
        assert main(ANALYSIS, [*overrides, "transfer=all", "--fetch"]) == 0
        hub.requests.clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert main(ANALYSIS, [*overrides, "transfer=all"]) == 0
        assert hub.requests == []
    assert Store(tmp_path / "results").folder(TRANSFER, "toy", "sva").steps() == list(TOY_STEPS)
    # What another run fetched is never deleted.
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(TOY_STEPS)
