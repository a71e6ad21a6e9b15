"""Tables of circuits: a graph library reads the list of edges as it is, and tables of older versions are read."""

from pathlib import Path

import networkx
import pandas as pd
import pytest
import torch

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.results.edges import named_targets, with_inputs
from circuits_over_time.utils.results.kinds import BASELINES, STATUSES
from circuits_over_time.utils.results.store import ResultsFolder, Store
from tests.support.stored import write_table

OLD = (
    "model,step,tokens,source,target,score,score_se,stability,inclusion\n"
    "toy,1,2,input,a0.h1<q>,2.5,0.1,1.0,1.0\ntoy,1,2,input,m0,-1.0,0.1,1.0,1.0\ntoy,1,2,a0.h1,logits,0.5,0.1,,0.5\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> ResultsFolder:
    return Store(tmp_path).folder("graphs", "toy", "ioi")


def whole_graph() -> Circuit:
    graph = Graph(2, 2, parallel=False)
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(0))
    return Circuit(graph, scores, graph.edge_mask)


def test_a_graph_library_reads_the_file_as_it_is(folder: ResultsFolder) -> None:
    circuit = whole_graph()
    table = circuit.to_table().reindex(columns=[name for name in folder.kind.columns if name != "role"])
    edges = pd.read_csv(write_table(folder, 1, table, tokens=2))
    read = networkx.from_pandas_edgelist(edges, edge_attr=True, edge_key="input", create_using=networkx.MultiDiGraph)
    assert set(read) == {*circuit.graph.forward_nodes, "logits"}
    assert read.number_of_edges() == circuit.n_edges
    assert networkx.is_directed_acyclic_graph(read)
    score = circuit.scores[circuit.graph.edge_index("a0.h1->a1.h0<k>")]
    assert read["a0.h1"]["a1.h0"]["k"]["score"] == pytest.approx(float(score), rel=1e-6)


def test_what_is_read_is_what_was_written(folder: ResultsFolder) -> None:
    table = whole_graph().to_table().reindex(columns=[name for name in folder.kind.columns if name != "role"])
    write_table(folder, 1, table, tokens=2)
    names = ["source", "target", "input"]
    pd.testing.assert_frame_equal(folder.read_table(1)[names], table[names])


def test_a_list_of_an_older_version_is_read_and_one_with_a_row_twice_is_not(folder: ResultsFolder) -> None:
    folder.path.mkdir(parents=True)
    folder.file(1).write_text(OLD)
    edges = folder.read_table(1)
    assert list(edges.columns[3:]) == folder.kind.columns_of(edges)
    assert edges["target"].tolist() == ["a0.h1", "m0", "logits"]
    assert edges["input"].tolist() == ["q", "", ""]
    assert named_targets(edges).tolist() == ["a0.h1<q>", "m0", "logits"]
    folder.file(1).write_text(OLD + OLD.splitlines()[1] + "\n")
    with pytest.raises(Exception, match="has a row twice"):
        folder.read_table(1)


@pytest.mark.parametrize("columns", [["source", "target", "score"], ["source", "target", "input", "score"]])
def test_an_empty_list_has_the_column_too(columns: list[str]) -> None:
    assert list(with_inputs(pd.DataFrame(columns=columns)).columns) == ["source", "target", "input", "score"]


def test_columns_that_are_new_are_empty_in_tables_of_an_older_version(tmp_path: Path) -> None:
    folder = Store(tmp_path).folder("baselines", "toy", "ioi")
    old = [name for name in folder.kind.columns if name not in folder.kind.added]
    folder.path.mkdir(parents=True)
    values = ["1.5", "0.5", "20", "0.1", "0.1", "found", "5", "4", "6", "", ""]
    lines = [",".join(["model", "step", "tokens", *old]), ",".join(["toy", "1", "2", *values])]
    folder.file(1).write_text("\n".join(lines) + "\n")
    table = folder.read_table(1)
    assert list(table.columns[3:]) == list(folder.kind.columns)
    assert (table["full"].item(), table["status"].item(), table["size"].item()) == (1.5, "found", 5)
    assert table[list(folder.kind.added)].isna().all(axis=None)
    folder.file(1).write_text("\n".join(line.rpartition(",")[0] for line in lines) + "\n")
    with pytest.raises(Exception, match="has no column 'cmd'"):
        folder.read_table(1)


def test_the_words_for_a_status_are_those_of_the_column() -> None:
    assert all(f"`{status}`" in BASELINES.columns["status"] for status in STATUSES)
