"""Circuits from the library: the script's numbers to the last bit, closed forms, metrics, files and what is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest
import torch
from networkx import MultiDiGraph
from transformers import AutoConfig, AutoModelForCausalLM

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import Method
from circuits_over_time.get_circuits_over_time import ANALYSIS
from circuits_over_time.plotting.parts.theme import COLOURS, WHITE
from circuits_over_time.utils.circuits.handle import Model
from circuits_over_time.utils.circuits.measured import KINDS, MeasuredCircuit
from circuits_over_time.utils.results.edges import named_targets
from circuits_over_time.utils.results.store import Result, Store
from circuits_over_time.utils.sweep.runner import main
from tests.support.paths import TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

LAST = 1350
FEW = {"n_prompts": 20, "ig_steps": 3, "n_random": 2}
ARCHITECTURES = ("neox-parallel", "llama")


@pytest.fixture(scope="module")
def model() -> Model:
    """The trained checkpoint."""
    return cot.load(TOY, step=LAST)


@pytest.fixture(scope="module")
def circuit(model: Model) -> MeasuredCircuit:
    """Its circuit of subject-verb agreement."""
    return cot.find_circuit(model, cot.task("sva"), **FEW)


@pytest.fixture(scope="module")
def untrained(model: Model) -> MeasuredCircuit:
    """What is found in the untrained model: nothing."""
    return cot.find_circuit(cot.load(TOY, step=0), cot.task("sva"), **FEW)


@pytest.fixture(params=ARCHITECTURES)
def random(request: pytest.FixtureRequest) -> Model:
    """A small random model, parallel or sequential."""
    network = random_model(request.param, n_layers=2, vocab=len(words()))
    return cot.load(network, tokenizer=words())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the script writes with the same keys."""
    folder = tmp_path_factory.mktemp("script")
    keys = ["n_prompts=20", "eap.ig_steps=3", "n_random=2", "search.order=top_n", "export_json=true"]
    given = [f"model={TOY}", f"checkpoints=[{LAST}]", "task=[sva,ioi]", f"results_dir={folder}", "device=cpu", *keys]
    assert main(ANALYSIS, given) == 0
    return folder


@pytest.mark.parametrize("task", ["sva", "ioi"])
def test_the_library_finds_what_the_script_writes_to_the_last_bit(model: Model, written: Path, task: str) -> None:
    circuit = cot.find_circuit(model, cot.task(task), **FEW, order="top_n")
    store = Store(written)
    tensors = store.folder("graphs", TOY.name, task).read_tensors(LAST)
    assert tensors.keys() == circuit.tensors.keys()
    for name, stored in tensors.items():
        own = circuit.tensors[name]
        assert torch.equal(own, stored) if isinstance(stored, torch.Tensor) else own == stored
    for kind in KINDS:
        folder = store.folder(kind, TOY.name, task)
        encoded = folder.encode(LAST, Result(circuit.tables[kind.name]), model.tokens)[".csv"]
        assert encoded == folder.file(LAST).read_bytes()
    again = cot.read_circuit(written / "graphs" / TOY.name / task / f"step{LAST:06d}.pt")
    assert (again.status, again.size, again.faithfulness) == ("found", circuit.size, circuit.faithfulness)
    pd.testing.assert_frame_equal(again.edges, circuit.edges)


def test_evaluating_a_circuit_gives_back_its_faithfulness(
    model: Model, circuit: MeasuredCircuit, tmp_path: Path
) -> None:
    circuit.save(tmp_path / "sva.pt")
    circuit.save(tmp_path / "sva.json")
    names = (circuit.edges["source"] + "->" + named_targets(circuit.edges)).tolist()
    ways = [circuit, circuit.edges, names, tmp_path / "sva.pt", str(tmp_path / "sva.json"), circuit.circuit.in_circuit]
    found = [cot.evaluate(model, cot.task("sva"), way, **FEW) for way in ways]
    # The last digits depend on which circuits are evaluated together.
    assert [one.faithfulness for one in found] == pytest.approx([circuit.faithfulness] * len(ways), abs=1e-6)
    assert found[0].faithfulness_interval == pytest.approx(circuit.faithfulness_interval, abs=1e-6)
    control = circuit.controls.set_index("control")
    without = cot.ablate(model, cot.task("sva"), circuit, **FEW)
    assert without.metric == pytest.approx(control.loc["without_circuit", "metric"], abs=1e-6)


def test_all_edges_are_the_model_and_none_the_corrupted_run(random: Model) -> None:
    task, graph = cot.task("ioi"), random.graph
    sources, targets = graph.edge_mask.nonzero().T.tolist()
    names = [f"{graph.forward_nodes[u]}->{graph.backward_nodes[v]}" for u, v in zip(sources, targets, strict=True)]
    everything, nothing = (cot.evaluate(random, task, edges, n_prompts=6) for edges in (names, []))
    assert everything.n_edges == graph.n_edges
    assert everything.metric == pytest.approx(everything.full, abs=1e-4)
    assert nothing.metric == pytest.approx(everything.corrupted, abs=1e-4)
    assert cot.ablate(random, task, names, n_prompts=6).metric == pytest.approx(nothing.corrupted, abs=1e-4)
    shown = cot.performance(random, task, n_prompts=6).set_index(["run", "metric"])["value"]
    same = cot.evaluate(random, task, names, n_prompts=6, evaluate_on="same")
    assert shown["clean", "logit_diff"] == pytest.approx(same.full, abs=1e-4)
    assert shown["corrupted", "logit_diff"] == pytest.approx(same.corrupted, abs=1e-4)


def test_an_edge_without_a_letter_means_all_three_inputs(model: Model) -> None:
    short, long = (
        cot.evaluate(model, cot.task("sva"), ["input->a0.h1", *rest], n_prompts=5)
        for rest in ([], [f"input->a0.h1<{letter}>" for letter in "qkv"])
    )
    assert short.n_edges == long.n_edges == 3


@pytest.mark.parametrize("name", ["ioi", "sva"])
def test_a_metric_of_ones_own_gives_the_scores_of_the_same_built_in_one(model: Model, name: str) -> None:
    def difference(logits: torch.Tensor, prompts) -> torch.Tensor:
        answers = prompts.answers
        right, wrong = (
            logits.gather(1, tokens).masked_fill(~mask, 0).sum(1) / mask.sum(1)
            for tokens, mask in ((answers.right, answers.right_mask), (answers.wrong, answers.wrong_mask))
        )
        return right - wrong

    own, built_in = (cot.task(name, metric=metric) for metric in (difference, "logit_diff"))
    scores = [cot.scores(model, task, n_prompts=8, ig_steps=2, batch_size=3) for task in (own, built_in)]
    first, second = (table.sort_values(["source", "target", "input"])["score"].to_numpy() for table in scores)
    assert abs(first - second).max() < 1e-5 < abs(first).max()
    circuit = cot.find_circuit(model, own, n_prompts=8, ig_steps=2, n_random=0)
    assert circuit.about["metric"] == "difference"
    assert "difference" in cot.performance(model, own, n_prompts=8)["metric"].tolist()


def test_scores_are_those_of_the_search(model: Model, circuit: MeasuredCircuit) -> None:
    scores = cot.scores(model, cot.task("sva"), **FEW).set_index(["source", "target", "input"])
    assert len(scores) == model.graph.n_edges
    own = circuit.edges.set_index(["source", "target", "input"])
    assert scores.loc[own.index, "score"].tolist() == own["score"].tolist()
    assert scores.loc[own.index, "score_se"].tolist() == own["score_se"].tolist()


def test_every_method_agrees_with_exact_scores_and_finds_a_circuit(model: Model) -> None:
    few = {"n_prompts": 12, "ig_steps": 5}

    def scored(method: str) -> pd.Series:
        table = cot.scores(model, cot.task("sva"), method=method, **few)
        return table.set_index(["source", "target", "input"])["score"].sort_index()

    exact = scored("exact")
    found = {method: scored(method).corr(exact) for method in get_args(Method) if method != "exact"}
    assert len(set(found.values())) == len(found)
    # Information flow asks for no task.
    assert abs(found.pop("information_flow_routes")) < 0.5 < 0.8 < min(found.values()), found
    some = cot.scores(model, cot.task("sva"), method="exact", exact={"edges": 20}, **few)
    assert (some["score"] != 0).sum() == 20
    circuit = cot.find_circuit(model, cot.task("sva"), method="relp", n_random=2, **few)
    assert circuit.faithfulness > 0.8
    with pytest.raises(ValueError, match="method"):
        cot.scores(model, cot.task("sva"), method="eap-ig", **few)


def test_what_a_circuit_says(circuit: MeasuredCircuit) -> None:
    assert circuit.status == "found"
    low, high = circuit.faithfulness_interval
    assert low <= circuit.faithfulness <= high
    assert circuit.faithfulness >= 0.8
    nodes = circuit.nodes.set_index("node")
    assert nodes["edges_in"].sum() == nodes["edges_out"].sum() == len(circuit.edges)
    assert nodes["score"].sum() == pytest.approx(circuit.edges["score"].abs().sum(), rel=1e-5)
    assert list(nodes.index[[0, -1]]) == ["input", "logits"]
    assert len(nodes) == circuit.circuit.n_nodes
    graph = circuit.to_networkx()
    assert isinstance(graph, MultiDiGraph)
    assert (graph.number_of_edges(), set(graph)) == (len(circuit.edges), set(nodes.index))
    lines = repr(circuit).split("\n")
    assert len(lines) == 3
    assert lines[0] == "Circuit of sva in toy at step 1,350"
    assert f"faithfulness {circuit.faithfulness:.2f}" in lines[1]


def test_a_notebook_shows_a_drawing_and_a_table_offline(circuit: MeasuredCircuit) -> None:
    html = circuit._repr_html_()
    assert html.count("<path") == len(circuit.edges)
    assert html.count("<rect") == len(circuit.nodes)
    assert "<table" in html
    for outside in ("<script", "href=", "src="):
        assert outside not in html
    drawn = json.loads(circuit.draw().to_json())
    assert {note["text"] for note in drawn["layout"]["annotations"]} >= set(circuit.nodes["node"])
    printed = circuit.draw(width="3.25in", font_size="9pt", title=False).layout
    assert (printed.width, printed.font.size, printed.title.text) == (312, 12, None)
    dark = circuit.draw(theme="dark").to_plotly_json()
    assert dark["layout"]["template"]["layout"]["paper_bgcolor"] != WHITE
    assert not {trace["line"]["color"] for trace in dark["data"] if "line" in trace} & {*COLOURS}
    with pytest.raises(ValueError, match=r"^width='5': not a length with a unit"):
        circuit.draw(width="5")
    with pytest.raises(ValueError, match="widht: unknown key; did you mean 'width'"):
        circuit.draw(widht="5in")


def test_no_circuit_says_so_everywhere(untrained: MeasuredCircuit, tmp_path: Path) -> None:
    assert (untrained.status, untrained.size, untrained.faithfulness) == ("task not learned", None, None)
    assert len(untrained.edges) == len(untrained.nodes) == len(untrained.controls) == 0
    assert repr(untrained).startswith("No circuit of sva in toy at step 0\n  task not learned")
    assert "task not learned" in untrained._repr_html_()
    assert untrained.to_networkx().number_of_edges() == 0
    untrained.save(tmp_path / "none.pt")
    assert repr(cot.read_circuit(tmp_path / "none.pt")) == repr(untrained)
    with pytest.raises(ValueError, match="no circuit to draw: task not learned"):
        untrained.draw()


def test_tables_without_rows_have_the_types_of_those_with_rows(
    circuit: MeasuredCircuit, untrained: MeasuredCircuit, tmp_path: Path
) -> None:
    untrained.save(tmp_path / "none.pt")
    read = cot.read_circuit(tmp_path / "none.pt")
    for empty in (untrained, read):
        for of_none, of_some in ((empty.edges, circuit.edges), (empty.nodes, circuit.nodes)):
            assert len(of_none) == 0
            names = of_some.columns[[kind == "str" for kind in of_some.dtypes]]
            assert len(names)
            assert (of_none.dtypes[names] == "str").all()
    assert (untrained.edges["source"] + "->" + untrained.edges["target"] + untrained.edges["input"]).tolist() == []
    assert untrained.edges.dtypes.equals(circuit.edges.dtypes)


def test_a_threshold_that_is_not_reached_names_the_best_circuit(model: Model) -> None:
    circuit = cot.find_circuit(model, cot.task("sva"), sizes=[1, 2, 4], **FEW)
    assert circuit.status == "threshold not reached"
    best = circuit.curve["faithfulness"].max()
    assert f"has {best:.2f}" in repr(circuit)
    of_nodes = cot.find_circuit(model, cot.task("sva"), sizes=[1, 3], level="node", threshold=1.0, **FEW)
    best = of_nodes.curve.sort_values("faithfulness").iloc[-1]
    assert best["n_edges"] > best["size"]
    assert f"the best, of {best['size']} heads and MLPs, has {best['faithfulness']:.2f}" in repr(of_nodes)


def test_a_saved_circuit_is_read_back_whole(circuit: MeasuredCircuit, tmp_path: Path) -> None:
    circuit.save(tmp_path / "sva.pt")
    again = cot.read_circuit(tmp_path / "sva.pt")
    pd.testing.assert_frame_equal(again.edges, circuit.edges)
    assert repr(again) == repr(circuit)
    assert again.size_interval == circuit.size_interval
    assert again.about == circuit.about
    circuit.save(tmp_path / "sva.json")
    plain = cot.read_circuit(tmp_path / "sva.json")
    assert plain.status == "not measured"
    assert named_targets(plain.edges).tolist() == named_targets(circuit.edges).tolist()
    plain.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "sva.json").read_bytes()


def test_circuits_go_out_to_other_programs_and_come_back(
    model: Model, circuit: MeasuredCircuit, tmp_path: Path
) -> None:
    task, few = cot.task("sva"), {"n_prompts": 20}
    own = cot.evaluate(model, task, circuit, **few).faithfulness
    assert own == pytest.approx(circuit.faithfulness, abs=1e-6)
    circuit.save(tmp_path / "mib", format="mib_folder")
    circuit.save(tmp_path / "graph.pt", format="eap_ig_pt")
    circuit.edges.to_csv(tmp_path / "edges.csv", index=False)
    for name in ("mib", "mib/sva_toy", "mib/sva_toy/importances.json", "graph.pt", "edges.csv"):
        assert cot.evaluate(model, task, tmp_path / name, **few).faithfulness == own, name
        again = cot.read_circuit(tmp_path / name, model)
        assert named_targets(again.edges).tolist() == named_targets(circuit.edges).tolist()
    circuit.save(tmp_path / "sva_scores.json", format="circuitkit_scores")
    whole = cot.evaluate(model, task, tmp_path / "sva_scores.json", **few)
    assert whole.n_edges > len(circuit.edges)
    assert {*cot.read_circuit(tmp_path / "sva_scores.json", model).nodes["node"]} == {*circuit.nodes["node"]}
    circuit.save(tmp_path / "sva.graphml")
    assert len((tmp_path / "sva.graphml").read_text()) > 100
    with pytest.raises(ValueError, match=r"must end with .pt, .json or .graphml, or name a format: eap_ig_json"):
        circuit.save(tmp_path / "sva.txt")
    with pytest.raises(ValueError, match="format='mib'"):
        circuit.save(tmp_path / "sva", format="mib")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"edges.csv: holds no circuit \(a .csv like this names no model"):
        cot.read_circuit(tmp_path / "edges.csv")


def test_a_circuit_of_another_model_is_refused_by_its_first_edge(
    circuit: MeasuredCircuit, random: Model, tmp_path: Path
) -> None:
    circuit.save(tmp_path / "sva.json")
    task = cot.task(clean=["1 2"], corrupted=["1 3"], answers=["4"], wrong_answers=["5"])
    with pytest.raises(
        ValueError, match=r"one of 4 layers of 4 heads, the model has 2 layers of 4 heads.*it has no input->a"
    ):
        cot.evaluate(random, task, tmp_path / "sva.json")


@pytest.mark.parametrize("ablation", ["zero", "mean", "mean_positional"])
def test_without_edges_all_nodes_are_ablated_and_with_all_it_is_the_model(model: Model, ablation: str) -> None:
    task, keys = cot.task("sva"), {"n_prompts": 6, "ablation": ablation}
    none, everything = (cot.evaluate(model, task, model.graph.edge_mask & held, **keys) for held in (False, True))
    assert none.metric == none.corrupted
    assert f"ablated {none.corrupted:.4g})" in repr(none)
    assert everything.metric == pytest.approx(everything.full, abs=1e-4)
    assert cot.ablate(model, task, model.graph.edge_mask, **keys).metric == none.corrupted
    patched = cot.evaluate(model, task, ["input->logits"], n_prompts=6)
    assert f"corrupted {patched.corrupted:.4g})" in repr(patched)
    assert none.full == pytest.approx(patched.full, abs=1e-5)
    assert none.corrupted != pytest.approx(patched.corrupted, abs=1e-3)
    if ablation != "zero":
        of_text = {"reference": {"corpus": "toy", "n_prompts": 20}}
        own, text = (cot.scores(model, task, **keys, **of, ig_steps=2)["score"].abs().max() for of in ({}, of_text))
        assert own != text


def test_what_no_mean_can_be_taken_of_is_refused(model: Model, tmp_path: Path) -> None:
    (text := tmp_path / "short.txt").write_text("The doctor is here.")
    with pytest.raises(ValueError, match=r"reference.corpus: .*short.txt gives .* \(reference.n_prompts\)"):
        cot.scores(model, cot.task("sva"), ablation="mean", corpus=str(text))
    with pytest.raises(ValueError, match="the last positions have no mean"):
        cot.scores(model, cot.task("sva"), ablation="mean_positional", reference={"n_prompts": 1})


def test_edges_put_in_one_by_one_give_the_same_and_circuits_of_neurons_have_none(
    model: Model, circuit: MeasuredCircuit
) -> None:
    task, keys = cot.task("sva"), FEW | {"accumulate_evaluation": "model"}
    assert cot.evaluate(model, task, circuit, **keys).faithfulness == pytest.approx(circuit.faithfulness, abs=1e-4)
    of_neurons = cot.find_circuit(model, task, level="neuron", **FEW)
    with pytest.raises(ValueError, match="puts in edges of all tokens, not neurons"):
        cot.evaluate(model, task, of_neurons, **keys)


def test_a_circuit_of_neurons_is_evaluated_at_other_ablations_in_models_that_have_them(
    model: Model, tmp_path: Path
) -> None:
    task = cot.task("sva")
    of_neurons = cot.find_circuit(model, task, level="neuron", **FEW)
    kept = cot.evaluate(model, task, of_neurons.circuit, n_prompts=20)
    assert kept.faithfulness == of_neurons.faithfulness
    of_neurons.save(path := tmp_path / "neurons.pt")
    wide = of_neurons.circuit.graph.d_mlp
    given = [f"model={TOY}", f"checkpoints=[{LAST}]", "task=sva", f"results_dir={tmp_path / 'r'}", "device=cpu"]
    given += ["n_prompts=20", "n_random=0", "ablation=mean"]
    assert main(ANALYSIS, [*given, f"circuit={path}"]) == 0
    (folder,) = (store := Store(tmp_path / "r")).tasks("faithfulness", TOY.name)
    measured = store.folder("faithfulness", TOY.name, folder).read_table(LAST)
    ablated = cot.evaluate(model, task, path, n_prompts=20, ablation="mean")
    assert ablated.faithfulness == pytest.approx(measured["faithfulness"].item(), abs=1e-5)
    by_zero, neither = (
        cot.evaluate(model, task, of_neurons, n_prompts=20, ablation=how) for how in ("zero", "patching")
    )
    assert by_zero.full == pytest.approx(ablated.full, abs=1e-5)
    assert len({round(one.metric, 4) for one in (ablated, by_zero, neither)}) == 3
    nothing = replace(of_neurons.circuit, in_circuit=torch.zeros_like(of_neurons.circuit.in_circuit))
    empty = cot.evaluate(model, task, nothing, n_prompts=20, ablation="zero")
    assert empty.metric == empty.corrupted == by_zero.corrupted
    config = AutoConfig.from_pretrained(TOY / f"step{LAST}")
    config.intermediate_size = wide // 2
    narrow = cot.load(AutoModelForCausalLM.from_config(config), step=0, tokenizer=model.tokenizer)
    with pytest.raises(ValueError, match=rf"edges: .* {wide} in an MLP, the model has .* {wide // 2} in an MLP"):
        cot.evaluate(narrow, task, of_neurons, n_prompts=20)
