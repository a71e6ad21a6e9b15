"""get_circuits_over_time.py as users run it, on an untrained family and on the trained toy family."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.formats import of_eap_ig_json
from circuits_over_time.edge_attribution_patching.circuits.mib import mib_areas
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_metric
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs, run_metric
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.plotting import plot_circuit
from circuits_over_time.utils.circuits.find import CircuitPrompts, circuit_prompts, evaluator_of, score_edges
from circuits_over_time.utils.circuits.keys import CircuitsConfig, EapConfig
from circuits_over_time.utils.circuits.measured import measure_circuit
from circuits_over_time.utils.comparison.changes import grown
from circuits_over_time.utils.comparison.inputs import read_trajectory
from circuits_over_time.utils.config.keys import load_config, result_settings
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.results.edges import named_targets
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import TASKS, build_prompts
from get_circuits_over_time import ANALYSIS
from tests.support import ioi_transformer
from tests.support.drawings import drawings
from tests.support.paths import ROOT, TOY_STEPS
from tests.support.task_tokenizers import words


def files_of(results: Path) -> dict[str, bytes]:
    return {str(path.relative_to(results)): path.read_bytes() for path in sorted(results.rglob("*")) if path.is_file()}


# The script, in a process that has no time to put anything in order when it measures the fifth of six times.
KILLED = """
import dataclasses, itertools, os, signal, sys
from get_circuits_over_time import ANALYSIS
from circuits_over_time.utils.sweep.runner import main

calls = itertools.count(1)

def measure(*arguments):
    if next(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return ANALYSIS.measure(*arguments)

main(dataclasses.replace(ANALYSIS, measure=measure), sys.argv[1:])
"""


# What a test does not ask about is measured coarsely, or not at all.
COARSE = ["eap.ig_steps=4", "search.mib=false", "attention=null"]


def test_every_kind_of_result_is_written_for_every_task_and_step(word_family: Path, tmp_path: Path) -> None:
    overrides = [
        f"model={word_family}",
        "task=[ioi, sva]",
        "n_prompts=6",
        f"results_dir={tmp_path}",
        "export_json=true",
    ]
    assert main(ANALYSIS, overrides) == 0
    store = Store(tmp_path)
    for task in ("ioi", "sva"):
        for kind in ANALYSIS.kinds:
            assert store.folder(kind, "words", task).steps() == [0, 5]
        tensors = store.folder("graphs", "words", task).read_tensors(5)
        circuit = Circuit.from_tensors(tensors)
        assert tensors["scores"].dtype == torch.float32
        assert tensors["scores"].shape == (circuit.graph.n_forward, circuit.graph.n_backward)
        exported = of_eap_ig_json(store.folder("graphs", "words", task).read_json(5))
        assert torch.equal(exported.scores, circuit.scores)
        baselines = store.folder("baselines", "words", task).read_table(5)
        assert baselines["n_prompts"].item() == 6
        faithfulness = store.folder("faithfulness", "words", task).read_table(5)
        assert baselines["status"].item() == "task not learned"
        assert faithfulness.empty
        assert pd.isna(baselines["size"].item())
        assert circuit.n_edges == 0
        assert circuit.scores.abs().max() > 0


def test_circuits_by_another_method_have_a_name_of_their_own(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same prompts, and scores that are the method's; the command that made them goes on with them."""
    (csv := tmp_path / "own.csv").write_text("clean,corrupted,answers,wrong_answers\nPaul is,Mary is, he, she\n")
    templates = "{templates: ['{name} is'], swap: name, answers: {male: he, female: she}, words: {name: {male: Paul, "
    given = [f"model={word_family}", f"task=[sva, {csv}, mine]", f"results_dir={tmp_path / 'results'}", "n_prompts=1"]
    given += ["checkpoints=[5]", "evaluate_on=same", "eap.ig_steps=6", f"tasks.mine={templates}female: Mary}}}}}}"]
    store = Store(tmp_path / "results")
    for method in ("eap_ig", "eap"):
        assert main(ANALYSIS, [*given, *COARSE[1:], f"eap.method={method}"]) == 0
    usual, other = (["sva", "own", "mine"], ["sva@eap", "own@eap", "mine@eap"])
    assert store.tasks("graphs", "words") == sorted(usual + other)
    for one, two in zip(usual, other, strict=True):
        folders = [store.folder("graphs", "words", task) for task in (one, two)]
        runs = [folder.read_run() for folder in folders]
        assert [run["settings"].pop("eap.method") for run in runs] == ["eap_ig", "eap"]
        assert runs[0]["settings"] == runs[1]["settings"]
        assert runs[0]["inputs"] == runs[1]["inputs"]
        scores = [folder.read_tensors(5)["scores"] for folder in folders]
        assert not torch.equal(*scores)
        parts = shlex.split(folders[1].how_to_make())
        capsys.readouterr()
        assert main(ANALYSIS, [*parts[2:], "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert "0 of 1 checkpoints to measure" in said
        assert "(no rows in hypothesis_tests: nobody asks for them)" in said
    model = cot.load(word_family, step=5)
    by_eap = cot.scores(model, cot.task("sva"), n_prompts=1, evaluate_on="same", method="eap")["score"]
    stored = store.folder("graphs", "words", "sva@eap").read_tensors(5)["scores"].flatten()
    torch.testing.assert_close(torch.tensor(by_eap.abs().max()).float(), stored.abs().max())


@pytest.fixture(scope="module")
def hand_built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose step 0 knows nothing and whose step 10 solves IOI."""
    folder = tmp_path_factory.mktemp("families") / "hand"
    for step in (0, 10):
        model = ioi_transformer.ioi_transformer()
        if step == 0:
            model.lm_head.weight.zero_()
        model.save_pretrained(folder / f"step{step}")
        ioi_transformer.tokenizer().save_pretrained(folder / f"step{step}")
    (folder / "family.json").write_text('{"tokens_per_step": 10}')
    return folder


def test_sizes_that_are_asked_for_are_measured_also_where_the_task_is_not_learned(
    hand_built: Path, tmp_path: Path
) -> None:
    given = [f"model={hand_built}", "task=ioi", "n_prompts=6", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, [*given, *COARSE, "search.sizes=[5, 20, 60]"]) == 0
    store = Store(tmp_path)
    for step, status in ((0, "task not learned"), (10, "found, not confirmed")):
        assert store.folder("baselines", "hand", "ioi").read_table(step)["status"].item() == status
        curve = store.folder("faithfulness", "hand", "ioi").read_table(step)
        assert curve["size"].tolist() == [5, 20, 60]
        assert curve["metric"].notna().all()
    assert not store.folder("faithfulness", "hand", "ioi").read_table(0)["selected"].any()


@pytest.mark.parametrize("n_random", [0, 2])
def test_the_console_says_of_every_circuit_what_the_table_says(
    hand_built: Path, tmp_path: Path, n_random: int, capsys: pytest.CaptureFixture
) -> None:
    given = [f"model={hand_built}", "task=ioi", "n_prompts=6", f"results_dir={tmp_path}", f"n_random={n_random}"]
    assert main(ANALYSIS, [*given, *COARSE, "device=cpu"]) == 0
    said = capsys.readouterr().err
    for step in (0, 10):
        row = Store(tmp_path).folder("baselines", "hand", "ioi").read_table(step).iloc[0]
        assert f"hand step {step} ioi: {row['status']}" in said
        assert (row["metric"], row["unit"]) == ("logit_diff", "logits")
        # Equal logits are no right answer.
        assert (row["accuracy"], row["accuracy_corrupted"]) == ((0, 0) if step == 0 else (1, 0))
    assert "logit_diff (logits): whole model 0, corrupted 0; accuracy 0.00" in said


def test_cpr_and_cmd_are_measured_where_asked_and_empty_otherwise(hand_built: Path, tmp_path: Path) -> None:
    given = [f"model={hand_built}", "task=ioi", "n_prompts=6", "checkpoints=[10]", "device=cpu", "eap.ig_steps=4"]
    for asked in ("true", "false"):
        assert main(ANALYSIS, [*given, f"results_dir={tmp_path / asked}", f"search.mib={asked}"]) == 0
    with_areas, without = (
        Store(tmp_path / asked).folder("baselines", "hand", "ioi").read_table(10) for asked in ("true", "false")
    )
    assert without[["cpr", "cmd"]].isna().all(axis=None)
    family = resolve_family(str(hand_built), Path("model_cache"))
    checkpoint = family.load(10, device="cpu")
    config = CircuitsConfig(model=str(hand_built), task="ioi", n_prompts=6, eap=EapConfig(ig_steps=4))
    prompts = circuit_prompts(config, TASKS["ioi"], checkpoint.tokenizer, checkpoint.weights)
    scores = score_edges(checkpoint.weights, prompts, config).scores
    metric = prompts.evaluation.metric("logit_diff")
    areas = mib_areas(CircuitEvaluator(checkpoint.weights, prompts.evaluation.pairs, metric), scores)
    assert with_areas["cpr"].item() == pytest.approx(areas.cpr, rel=1e-5)
    assert with_areas["cmd"].item() == pytest.approx(areas.cmd, rel=1e-5)
    for name, ends in (("cpr", areas.cpr_interval), ("cmd", areas.cmd_interval)):
        assert with_areas[[f"{name}_low", f"{name}_high"]].iloc[0].tolist() == pytest.approx(ends, abs=1e-5)
    assert without[["cpr_low", "cmd_high"]].isna().all(axis=None)


def test_the_console_says_that_one_prompt_has_no_interval(
    hand_built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = [f"model={hand_built}", "task=ioi", "n_prompts=1", f"results_dir={tmp_path}", "checkpoints=[10]"]
    for n_random in (0, 3):
        with caplog.at_level("INFO"):
            assert main(ANALYSIS, [*given, *COARSE, f"n_random={n_random}", "overwrite=true"]) == 0
        assert "(no interval: too few prompts (1), 3 needed)" in caplog.text
        caplog.clear()


def test_a_circuit_stands_beside_random_ones_and_its_prompts_are_told_apart(
    hand_built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = [f"model={hand_built}", "task=ioi", "n_prompts=10", f"results_dir={tmp_path}", "device=cpu", "n_random=6"]
    with caplog.at_level("INFO"):
        assert main(ANALYSIS, [*given, *COARSE, "hypothesis_tests=true"]) == 0
    assert "beats 6 of 6 random circuits" in caplog.text
    store = Store(tmp_path)
    tables = {
        kind: store.folder(kind, "hand", "ioi").read_table(10)
        for kind in ("graphs", "faithfulness", "baselines", "controls", "prompt_groups", "hypothesis_tests")
    }
    chosen = tables["faithfulness"][tables["faithfulness"]["selected"]]
    controls, groups = tables["controls"], tables["prompt_groups"].set_index("group")
    assert controls["control"].value_counts().to_dict() == {
        "random": 6, "without_random": 6, "circuit": 1, "without_circuit": 1,
    }  # fmt: skip
    own = controls[controls["control"] == "circuit"]
    assert own["faithfulness"].item() == pytest.approx(chosen["faithfulness"].item())
    assert (controls["n_edges"] == chosen["n_edges"].item()).all()
    for sign, end in ((1, "low"), (-1, "high")):
        assert (sign * (controls["faithfulness"] - controls[f"faithfulness_{end}"]) > -1e-5).all()
    assert own["faithfulness_low"].item() == pytest.approx(chosen["faithfulness_low"].item())
    assert list(groups.index) == ["all", "ABBA", "BABA"]
    assert groups.loc["all", "full"] == pytest.approx(tables["baselines"]["full"].item())
    assert groups.loc["all", "faithfulness_low"] == pytest.approx(chosen["faithfulness_low"].item())
    for column in ("full", "circuit", "corrupted"):
        parts = groups.loc[["ABBA", "BABA"]]
        mean = (parts[column] * parts["n_prompts"]).sum() / parts["n_prompts"].sum()
        assert groups.loc["all", column] == pytest.approx(mean)
    assert set(tables["hypothesis_tests"]["test"]) >= {"equivalence", "independence", "sufficiency", "necessity"}
    edges = tables["graphs"]
    assert edges["stability"].between(0, 1).all()
    assert edges["inclusion"].max() == 1.0
    assert (edges["score_se"] >= 0).all()
    # Where there is no circuit there is nothing to compare.
    assert store.folder("controls", "hand", "ioi").read_table(0).empty
    assert pd.isna(store.folder("prompt_groups", "hand", "ioi").read_table(0)["circuit"]).all()


def test_inclusion_counts_the_thresholds_whose_circuit_has_the_edge(toy_family: Path, tmp_path: Path) -> None:
    last, task = TOY_STEPS[-1], "greater_than"
    given = [f"model={toy_family}", f"task={task}", f"checkpoints=[{last}]", "n_prompts=30", "n_random=0"]
    assert main(ANALYSIS, [*given, f"results_dir={tmp_path}"]) == 0
    store = Store(tmp_path)
    curve = store.folder("faithfulness", toy_family.name, task).read_table(last)
    stored = store.folder("graphs", toy_family.name, task)
    circuit = Circuit.from_tensors(stored.read_tensors(last))
    order = edge_order(circuit.scores, circuit.graph)
    counts = torch.zeros_like(circuit.scores)
    for threshold in (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        good = curve["faithfulness"] >= min(threshold, 0.8)
        confirmed = [
            size
            for size, n_edges, enough in zip(curve["size"], curve["n_edges"], good, strict=True)
            if enough and good[curve["n_edges"] > n_edges].iloc[:1].any()
        ]
        counts += top_n_masks(order, circuit.graph, [confirmed[0]])[0]
    table = stored.read_table(last)
    for source, target, share in zip(table["source"], named_targets(table), table["inclusion"], strict=True):
        assert share == counts[circuit.graph.edge_index(f"{source}->{target}")] / 8
    assert table["inclusion"].nunique() > 1


def test_the_studys_criterion_and_grid_can_be_asked_for(
    hand_built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    given = [f"model={hand_built}", "task=ioi", "n_prompts=6", "checkpoints=[10]", f"results_dir={tmp_path}", *COARSE]
    assert main(ANALYSIS, [*given, "search.criterion=raw", "search.grid=study", "evaluate_on=same", "seed=42"]) == 0
    curve = Store(tmp_path).folder("faithfulness", "hand", "ioi").read_table(10)
    assert 25 in set(curve["size"])
    chosen = curve[curve["selected"]]
    assert chosen["faithfulness_raw"].item() > 0.8
    assert f"; by search.criterion=raw {chosen['faithfulness_raw'].item():.2f}" in caplog.text
    assert (curve.loc[curve["size"] < chosen["size"].item(), "faithfulness_raw"] <= 0.8).all()


def test_baselines_equal_the_hugging_face_model(word_family: Path) -> None:
    config = CircuitsConfig(model=str(word_family), task="ioi", n_prompts=8, checkpoints=[5])
    family = resolve_family(str(word_family), Path("model_cache"))
    checkpoint = family.load(5, "float32", torch.device("cpu"))
    of_circuit = circuit_prompts(config, TASKS["ioi"], checkpoint.tokenizer, checkpoint.weights)
    folds = score_edges(checkpoint.weights, of_circuit, config)
    measured = measure_circuit(checkpoint.weights, of_circuit, config, folds)
    prompts = of_circuit.evaluation
    rows = torch.arange(len(prompts))
    for name, tokens in (("full", prompts.clean), ("corrupted", prompts.corrupted)):
        logits = checkpoint.bridge(tokens)[rows, prompts.lengths - 1]
        metric = prompts.metric("logit_diff")(logits, rows).detach()
        assert measured.tables["baselines"][name].item() == pytest.approx(float(metric.mean()), abs=1e-4)


def test_prompts_for_scores_and_for_evaluation_are_disjoint_unless_asked(word_family: Path) -> None:
    described = resolve_family(str(word_family), Path("model_cache")).describe(0)
    base = {"model": "m", "task": "ioi", "n_prompts": 20}
    apart = circuit_prompts(CircuitsConfig(**base), TASKS["ioi"], described.tokenizer, described.shape)
    first, second = apart.scoring, apart.evaluation
    assert len(first) == len(second) == 20
    assert not set(first.texts) & set(second.texts)
    same = circuit_prompts(
        CircuitsConfig(**base, evaluate_on="same"), TASKS["ioi"], described.tokenizer, described.shape
    )
    assert same.scoring.texts == same.evaluation.texts == first.texts


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.sizes=[100000]", "search.sizes: 100000 is more than the"),
        (
            "n_prompts=100000",
            "n_prompts: 100000 prompts of gendered_pronoun asked for, and as many others",
        ),
        ("search.sizes=[5,3]", "search.sizes"),
        ("eap.quadrature=simpson", "eap.quadrature"),
        ("eap.ig_step=3", "did you mean 'eap.ig_steps'?"),
        ("task=iio", "did you mean 'ioi'?"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    word_family: Path, tmp_path: Path, override: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    overrides = [f"model={word_family}", "task=gendered_pronoun", "n_prompts=4", f"results_dir={tmp_path}", override]
    assert main(ANALYSIS, overrides) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not list(tmp_path.rglob("*.csv"))


def test_another_config_in_the_same_folder_is_refused(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    overrides = [f"model={word_family}", "task=gendered_pronoun", "n_prompts=4", f"results_dir={tmp_path}"]
    assert main(ANALYSIS, overrides) == 0
    assert main(ANALYSIS, [*overrides, "eap.ig_steps=7"]) == 2
    assert "holds ig_steps=auto, this run asks for 7; pass overwrite=true or another results_dir" in (
        capsys.readouterr().err
    )


def test_by_batch_a_small_last_batch_counts_as_much_as_the_others(hand_built: Path) -> None:
    config = CircuitsConfig(
        model=str(hand_built), task="ioi", n_prompts=7, batch_size=3, evaluate_on="same", batch_weighting="by_batch"
    )
    checkpoint = resolve_family(str(hand_built), Path("model_cache")).load(10, "float32", torch.device("cpu"))
    prompts = circuit_prompts(config, TASKS["ioi"], checkpoint.tokenizer, checkpoint.weights)
    of_batches = []
    for rows in ([0, 1, 2], [3, 4, 5], [6]):
        some = CircuitPrompts(prompts.task, prompts.scoring.select(rows), prompts.evaluation.select(rows))
        equal = config.model_copy(update={"batch_weighting": "equal"})
        evaluator = evaluator_of(checkpoint.weights, some, equal)
        scores = score_edges(checkpoint.weights, some, equal).scores
        of_batches.append((scores, float(evaluator.full.mean()), float(evaluator.corrupted.mean())))
    scores, full, corrupted = zip(*of_batches, strict=True)
    whole = evaluator_of(checkpoint.weights, prompts, config)
    assert float(whole.full.mean()) == pytest.approx(sum(full) / 3, abs=1e-5)
    assert float(whole.corrupted.mean()) == pytest.approx(sum(corrupted) / 3, abs=1e-5)
    expected = torch.stack(scores).mean(0)
    found = score_edges(checkpoint.weights, prompts, config).scores
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("more", [["batch_weighting=by_batch"], ["eap.accumulate=model"], []])
def test_the_batch_size_is_a_setting_where_results_depend_on_it(more: list[str]) -> None:
    one, other = (
        result_settings(load_config(CircuitsConfig, None, ["model=m", "task=ioi", f"batch_size={size}", *more]))
        for size in (8, 32)
    )
    assert (one == other) == (not more)


def test_redrawn_prompts_depend_on_seed_and_step_and_stand_beside_the_results(
    word_family: Path, tmp_path: Path
) -> None:
    given = [f"model={word_family}", "task=[greater_than, sva, ioi]", "n_prompts=4", "redraw_prompts=true"]
    given += ["n_random=0", "search.sizes=[5]", "eap.ig_steps=2", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, given) == 0
    store = Store(tmp_path)
    for task in ("greater_than", "sva"):
        folder = store.folder("baselines", "words", task)
        drawn = {step: folder.read_json(step) for step in folder.steps()}
        assert len({str(prompts) for prompts in drawn.values()}) == len(drawn) == 2
        for step, prompts in drawn.items():
            seed = CircuitsConfig(model="m", task=task).at_step(step).seed
            texts = build_prompts(task, words(), 8, seed).texts
            assert prompts == {"scoring": [*map(list, texts[:4])], "evaluation": [*map(list, texts[4:])]}
    assert not store.folder("baselines", "words", "ioi").has(5, ".json")
    # A step that is measured again has the same prompts, and so the same tables.
    before = files_of(tmp_path)
    for path in tmp_path.rglob("step000005*"):
        path.unlink()
    assert main(ANALYSIS, given) == 0
    assert files_of(tmp_path) == before


@pytest.mark.endurance
def test_a_killed_run_resumes_to_identical_bytes(
    word_family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # run.json holds results_dir, so both write to `results`, seen from two folders.
    overrides = [f"model={word_family}", "task=[ioi, greater_than, sva]", "n_prompts=10", "device=cpu"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", KILLED, *overrides],
        cwd=killed,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert Store(killed / "results").folder("graphs", "words", "ioi").steps() == [0, 5]
    assert Store(killed / "results").folder("graphs", "words", "sva").steps() == [0]
    monkeypatch.chdir(whole)
    assert main(ANALYSIS, overrides) == 0
    monkeypatch.chdir(killed)
    assert main(ANALYSIS, overrides) == 0
    assert files_of(killed) == files_of(whole)


def test_the_toy_family_has_faithful_circuits_at_its_end_and_none_at_its_start(
    toy_family: Path, tmp_path: Path
) -> None:
    last = TOY_STEPS[-1]
    overrides = [f"model={toy_family}", f"task=[{', '.join(TASKS)}]", f"checkpoints=[0,{last}]", "n_prompts=30"]
    assert main(ANALYSIS, [*overrides, f"results_dir={tmp_path}", *COARSE, "eap.ig_steps=6", "n_random=0"]) == 0
    store, name = Store(tmp_path), toy_family.name
    for task in TASKS:
        assert store.folder("baselines", name, task).read_table(0)["status"].item() == "task not learned"
        baselines = store.folder("baselines", name, task).read_table(last)
        curve = store.folder("faithfulness", name, task).read_table(last)
        assert baselines["status"].item() == "found"
        chosen = curve[curve["selected"]]
        assert len(chosen) == 1
        assert chosen["faithfulness"].item() >= 0.8
        assert chosen["size"].item() == baselines["size"].item()
        assert chosen["faithfulness_low"].item() <= chosen["faithfulness"].item() <= chosen["faithfulness_high"].item()
        circuit = Circuit.from_tensors(store.folder("graphs", name, task).read_tensors(last))
        assert circuit.n_edges == chosen["n_edges"].item() < 0.3 * circuit.graph.n_edges


@pytest.mark.parametrize("task", TASKS)
def test_scores_follow_exact_patching_of_single_edges_on_the_toy_family(toy_family: Path, task: str) -> None:
    """Pearson correlation with the metric lost when each edge alone carries its corrupted activation."""
    last = TOY_STEPS[-1]
    checkpoint = resolve_family(str(toy_family), Path("model_cache")).load(last, "float32", torch.device("cpu"))
    weights = checkpoint.weights
    graph = Graph.of(weights)
    config = CircuitsConfig(model=str(toy_family), task=task, n_prompts=4, evaluate_on="same")
    prompts = circuit_prompts(config, TASKS[task], checkpoint.tokenizer, checkpoint.weights).scoring
    metric = prompts.metric(TASKS[task].primary)
    pairs = prompts.pairs
    edges = graph.edge_mask.nonzero()
    masks = graph.edge_mask.repeat(len(edges), 1, 1)
    masks[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    (batch,) = pairs.batches(64)
    runs = prepare_runs(weights, batch)
    full, _ = run_metric(weights, runs, metric)
    exact = (full - evaluate_metric(weights, runs, masks, metric)).mean(1)

    def correlation(**how) -> float:
        scores = attribute(weights, pairs, metric, **how).scores[edges[:, 0], edges[:, 1]]
        return float(torch.corrcoef(torch.stack((scores, exact)))[0, 1])

    assert correlation(steps=30) > 0.8
    assert correlation(steps=1, quadrature="right") > 0.5


@pytest.mark.parametrize(
    ("level", "ablation"), [("node", "patching"), ("neuron", "patching"), ("neuron", "mean"), ("neuron", "zero")]
)
def test_circuits_of_nodes_and_neurons_are_results_like_others(
    hand_built: Path, tmp_path: Path, level: str, ablation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under a name of their own, with what the library finds; compared, exported, evaluated and drawn."""
    given = [f"model={hand_built}", "task=ioi", "n_prompts=6", "n_random=2", "checkpoints=[10]", f"level={level}"]
    given += [f"ablation={ablation}", f"results_dir={tmp_path}", "device=cpu", "transfer=all"]
    given += ["export=[circuitkit_scores, eap_ig_json]"] if level == "node" else []
    assert main(ANALYSIS, given) == 0
    store, name = Store(tmp_path), f"ioi@{level}" if ablation == "patching" else f"ioi@{ablation}+{level}"
    assert store.tasks("graphs", "hand") == [name]
    folder = store.folder("graphs", "hand", name)
    assert f"level={level}" in folder.how_to_make()
    table, (circuit, stored) = folder.read_table(10), folder.read_circuit(10)
    units = [circuit.graph.forward_nodes[unit] for unit in circuit.in_circuit[:, 0].nonzero()[:, 0]]
    assert set(table["source"]) == set(units)
    unit = "neurons" if level == "neuron" else "heads and MLPs"
    assert f"{name}: found: {len(units)} {unit}, faithfulness" in capsys.readouterr().err
    assert table["score"].abs().is_monotonic_decreasing
    assert set(table["target"]) == {"logits"}
    assert stored["scores"].shape == (circuit.graph.n_forward, 1)

    chosen = store.folder("faithfulness", "hand", name).read_table(10).query("selected").iloc[0]
    assert (chosen["size"], chosen["n_edges"], chosen["n_nodes"]) == (
        len(units),
        circuit.as_edges.n_edges,
        circuit.as_edges.n_nodes,
    )
    moved = store.folder("transfer", "hand", name).read_table(10)
    assert moved["metric"].tolist() == [pytest.approx(chosen["metric"], rel=1e-4)]
    model, task = cot.load(hand_built, step=10, device="cpu"), cot.task("ioi")
    found = cot.find_circuit(model, task, n_prompts=6, n_random=0, level=level, ablation=ablation)
    assert found.units["unit"].tolist() == table["source"].tolist()
    assert found.units["score"].tolist() == pytest.approx(table["score"].tolist(), rel=1e-4, abs=1e-5)
    of_units = units if level == "node" else [unit.rpartition(".")[0] for unit in units]
    assert found.nodes["node"].tolist() == ["input", *dict.fromkeys(of_units), "logits"]
    again = cot.evaluate(model, task, folder.file(10, ".pt"), n_prompts=6, ablation=ablation)
    assert again.metric == pytest.approx(chosen["metric"], rel=1e-4)
    without = store.folder("controls", "hand", name).read_table(10).query("control == 'without_circuit'")["metric"]
    assert cot.ablate(model, task, found, n_prompts=6, ablation=ablation).metric == pytest.approx(
        without.item(), rel=1e-4, abs=1e-4
    )

    if level == "node":
        of_nodes = circuit.graph.by_node(circuit.scores)  # type: ignore[attr-defined]
        exported = json.loads(folder.file(10, ".circuitkit_scores.json").read_text())["node_scores"]
        assert list(exported.values()) == pytest.approx(of_nodes[1:].abs().tolist())
        assert torch.equal(of_eap_ig_json(folder.read_json(10)).in_circuit, circuit.as_edges.in_circuit)
        found.save(tmp_path / "circuit.json")
        assert cot.evaluate(model, task, tmp_path / "circuit.json", n_prompts=6).metric == pytest.approx(again.metric)
    else:
        with pytest.raises(ValueError, match=r"circuit\.json: files of other programs have no neurons; save"):
            found.save(tmp_path / "circuit.json")
    (checkpoint,) = read_trajectory(store, "hand", name).checkpoints.values()
    assert checkpoint.size is not None
    assert torch.equal(grown(checkpoint, checkpoint.size), circuit.in_circuit)
    drawn = drawings(plot_circuit, store, step=None, strongest=200)[f"circuit_hand_{name}_step000010"].figure
    texts = [note.text for note in drawn.layout.annotations]
    counts = {node: sum(unit.startswith(f"{node}.") for unit in units) for node in found.nodes["node"]}
    expected = [node if level == "node" or not counts[node] else f"{node}: {counts[node]}" for node in counts]
    assert set(expected) <= set(texts)
    boxes = [shape.fillcolor for shape in drawn.layout.shapes]
    assert len(boxes) == len(found.nodes)
    few = drawings(plot_circuit, store, step=None, strongest=1)[f"circuit_hand_{name}_step000010"]
    assert f"{len(set(of_units))} heads and MLPs" in few.subtitle
    assert "; the 1 strongest heads and MLPs drawn; colour" in few.subtitle
    assert "drawn" not in found.draw(strongest=1).layout.title.text


def test_levels_that_cannot_be_measured_are_refused(hand_built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model={hand_built}", "task=ioi", "n_prompts=6", "device=cpu"]
    for wrong, said in (
        (["level=neuron", "hypothesis_tests=true"], "hypothesis_tests: takes a run for every neuron"),
        (["level=neuron", "accumulate_evaluation=model"], "accumulate_evaluation: model puts in edges of all tokens"),
        (["positions=true", "accumulate_evaluation=model"], "accumulate_evaluation: model puts in edges of all tokens"),
        (
            ["level=node", "eap.method=information_flow_routes"],
            "information_flow_routes scores edges alone",
        ),
        (["level=neuron", "export=[graphml]"], "export: files of other programs have no neurons; leave out export"),
        (["level=node", "search.sizes=[5000]"], "nodes of the model; leave it out"),
    ):
        assert main(ANALYSIS, [*given, *wrong]) == 2
        assert said in capsys.readouterr().err
