"""Circuits by the roles of tokens, from the script to figures and the report."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.circuits.formats import of_same_graph
from circuits_over_time.plotting.make_report import main as make_report
from circuits_over_time.plotting.parts.circuit_layout import at_roles
from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.plot_circuit import FIGURE
from circuits_over_time.plotting.report.circuits import circuit_records
from circuits_over_time.utils.results.edges import over_roles
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from compare_circuits import main as compare
from get_circuits_over_time import ANALYSIS
from tests.support.paths import TOY

STEP = 1350
COMMON = [f"model={TOY}", "n_prompts=12", "n_random=3", "device=cpu", "eap.ig_steps=4", "search.mib=false", "seed=3"]


def circuits(results: Path, *overrides: str) -> int:
    return main(ANALYSIS, [*COMMON, f"checkpoints=[{STEP}]", f"results_dir={results}", *overrides])


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results with and without roles. Do not change them."""
    results = tmp_path_factory.mktemp("positions")
    for positions in ("true", "false"):
        assert circuits(results, "task=[ioi, sva]", f"positions={positions}", "transfer=all") == 0
    return results


@pytest.mark.parametrize("task", ["ioi", "sva"])
def test_scores_of_roles_add_up_and_the_library_finds_the_same(found: Path, task: str, tmp_path: Path) -> None:
    store = Store(found)
    of_roles, _ = store.folder("graphs", "toy", f"{task}@positions").read_circuit(STEP)
    plain, _ = store.folder("graphs", "toy", task).read_circuit(STEP)
    strongest = float(plain.scores.abs().max())
    assert float((of_roles.over_roles.scores - plain.scores).abs().max()) < 1e-6 * strongest
    model = cot.load(TOY, step=STEP)
    keys = {"n_prompts": 12, "n_random": 3, "ig_steps": 4, "seed": 3}
    circuit = cot.find_circuit(model, cot.task(task), positions=True, **keys)
    read = store.folder("graphs", "toy", f"{task}@positions").read_table(STEP)
    assert list(circuit.edges.columns)[-1] == "role"
    ends = ["source", "target", "input", "role"]
    assert read[ends].astype(str).equals(circuit.edges[ends].astype(str))
    assert set(read["role"].astype(str)) <= set(of_roles.graph.roles)
    nodes = circuit.nodes
    assert set(nodes["node"]) == {*circuit.edges["source"], *circuit.edges["target"]}
    assert nodes["edges_in"].sum() == nodes["edges_out"].sum() == len(circuit.edges)
    drawn = circuit.draw().layout
    assert list(drawn.xaxis.ticktext) == [role for role in of_roles.graph.roles if role in set(read["role"])]
    assert f">{circuit.edges['role'][0]}</text>" in circuit._repr_html_()
    again = cot.evaluate(model, cot.task(task), circuit.edges, positions=True, **keys)
    assert again.faithfulness == circuit.faithfulness
    circuit.edges.to_csv(tmp_path / "edges.csv", index=False)
    listed = cot.evaluate(model, cot.task(task), tmp_path / "edges.csv", positions=True, **keys)
    assert (listed.n_edges, listed.faithfulness) == (again.n_edges, again.faithfulness)
    without_roles = [f"{row.source}->{row.target}" for row in circuit.edges[circuit.edges["input"] == ""].itertuples()]
    assert cot.evaluate(model, cot.task(task), without_roles, positions=True, **keys).n_edges >= len(set(without_roles))
    with pytest.raises(ValueError, match="it needs positions"):
        cot.evaluate(model, cot.task(task), circuit, **keys)


def test_a_circuit_works_as_well_in_its_own_checkpoint_and_on_no_other_task(found: Path) -> None:
    transfer = Store(found).folder("transfer", "toy", "sva@positions").read_table(STEP)
    faithfulness = Store(found).folder("faithfulness", "toy", "sva@positions").read_table(STEP)
    assert transfer["from_task"].tolist() == ["sva@positions"]
    assert transfer["metric"].tolist() == faithfulness.loc[faithfulness["selected"], "metric"].tolist()


def test_the_circuit_of_the_results_is_given_to_its_task_alone(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = found / "graphs" / "toy" / "sva@positions" / f"step{STEP:06d}.pt"
    assert circuits(tmp_path, "task=sva", "positions=true", f"circuit={path}") == 0
    given = Store(tmp_path).folder("controls", "toy", "sva@positions").read_table(STEP)
    own = Store(found).folder("controls", "toy", "sva@positions").read_table(STEP)
    assert given["metric"][0] == pytest.approx(own["metric"][0], rel=1e-5)
    for task, line in (("ioi", "the roles of its tokens are subject, "), ("sva", "leave out export or positions")):
        more = ["export=[graphml]"] if task == "sva" else [f"circuit={path}"]
        assert circuits(tmp_path / "none", f"task={task}", "positions=true", *more) == 2
        assert line in capsys.readouterr().err
    assert circuits(tmp_path / "none", "task=sva", "positions=true", "level=node") == 2
    assert "positions: tells edges apart, not nodes" in capsys.readouterr().err


def test_redrawn_prompts_and_other_seeds_keep_the_order_of_roles(found: Path, tmp_path: Path) -> None:
    few = ["task=sva", "positions=true", "n_prompts=8", "seed=0"]
    more = ["redraw_prompts=true", "transfer=all", "checkpoints=[750,1350]"]
    assert circuits(tmp_path, *few, *more) == 0
    folder = Store(tmp_path).folder("graphs", "toy", "sva@positions")
    first, second = (folder.read_circuit(step)[0].graph.roles for step in (750, STEP))
    assert first == second
    assert len(Store(tmp_path).folder("transfer", "toy", "sva@positions").read_table(STEP)) == 2
    # Whose tokens stand elsewhere: the edges are those of the names.
    circuit, _ = Store(found).folder("graphs", "toy", "sva@positions").read_circuit(STEP)
    other = replace(circuit.graph, roles=(*circuit.graph.roles[-2::-1], "end"))
    there = of_same_graph(circuit, other)
    assert there.graph.roles == other.roles
    ends = ["source", "target", "input", "role"]
    pd.testing.assert_frame_equal(
        there.to_table().sort_values(ends, ignore_index=True), circuit.to_table().sort_values(ends, ignore_index=True)
    )


def test_circuits_are_compared_over_time_by_edge_and_role(found: Path, tmp_path: Path) -> None:
    assert circuits(tmp_path, "task=sva", "positions=true", f"checkpoints=[750,{STEP}]") == 0
    assert compare([f"results_dir={tmp_path}", "pairs=100", "permutations=99", "resamples=100"]) == 0
    lifetimes = pd.read_csv(tmp_path / "comparison" / "lifetimes.csv")
    of_roles = lifetimes.loc[lifetimes["task"] == "sva@positions", "source"]
    assert of_roles.str.contains("@").all()
    similarity = pd.read_csv(tmp_path / "comparison" / "similarity.csv")
    steps = {step: edges_at(tmp_path, step) for step in (750, STEP)}
    wanted = (similarity["task"] == "sva@positions") & (similarity["measure"] == "edge_jaccard")
    wanted &= (similarity["at"] == "faithfulness") & (similarity["against"] == "previous")
    jaccard = len(steps[750] & steps[STEP]) / len(steps[750] | steps[STEP])
    assert similarity.loc[wanted, "value"].tolist() == pytest.approx([jaccard])


def edges_at(results: Path, step: int) -> set[tuple[str, ...]]:
    table = Store(results).folder("graphs", "toy", "sva@positions").read_table(step)
    return set(table[["source", "target", "input", "role"]].astype(str).itertuples(index=False, name=None))


def test_figures_and_the_report_show_roles_or_add_them_up(found: Path, tmp_path: Path) -> None:
    edges = Store(found).folder("graphs", "toy", "sva@positions").read_table(STEP)
    added = over_roles(edges)
    assert added["score"].sum() == pytest.approx(edges["score"].sum())
    assert not added.duplicated(["source", "target", "input"]).any()
    assert over_roles(added) is added
    assert figure_main(FIGURE, ["-r", str(found), "-o", str(tmp_path), "-t", "sva@positions"]) == 0
    (drawn,) = tmp_path.glob("*.html")
    assert "Subject-verb agreement (positions)" in drawn.read_text()
    assert make_report(["-r", str(found), "-o", str(tmp_path / "report.html")]) == 0
    records = {one["task"]: one for one in circuit_records(Results(Store(found)))}
    record = records["sva@positions"]
    graph = Store(found).folder("graphs", "toy", "sva@positions").read_circuit(STEP)[0].graph
    (state,) = record["steps"]
    assert state["size"] == len(state["edges"]) == len(edges) > len(added)
    assert state["nodes"] == len({*edges["source"], *edges["target"]})
    drawn_at = at_roles(edges, graph)
    assert {node for node, _, _ in record["nodes"]} == {*drawn_at["source"], *drawn_at["target"]}
    several = drawn_at.index.value_counts()
    assert sorted(map(len, record["ends"].values())) == sorted(several[several > 1])
    assert len(record["histories"]["edges"]) == len(edges)
    page = (tmp_path / "report.html").read_text()
    rows = re.findall(r"<tr>(.*?)</tr>", page[: page.index("Compare, find, hide")])
    told = [re.findall(r"data-name='Circuit edges'>([^<]*)<", row) for row in rows if "agreement (pos" in row]
    assert told == [[str(len(edges))]]


def test_a_role_in_files_is_of_a_column_that_other_circuits_lack(found: Path) -> None:
    headers = {
        name: list(pd.read_csv(found / "graphs" / "toy" / name / f"step{STEP:06d}.csv", nrows=0).columns)
        for name in ("sva", "sva@positions")
    }
    assert headers["sva@positions"] == [*headers["sva"], "role"]
