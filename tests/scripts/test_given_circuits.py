"""Circuits taken out of the results in other programs' formats, and circuits of files evaluated at every checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pandas as pd
import pytest
import yaml

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import ExportFormat
from circuits_over_time.edge_attribution_patching.circuits.formats import SUFFIXES, read
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.plotting.make_report import main as make_report
from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.plotting.plot_circuit import FIGURE
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main, main_of_suite
from get_circuits_over_time import ANALYSIS
from tests.engine.test_circuit import circuit_of
from tests.support.mib_submission import faults_of_submission
from tests.support.paths import TOY
from tests.support.tiny_models import save_family

TASK, STEP, BEFORE = "ioi", 1350, 750
COMMON = [f"model={TOY}", f"task={TASK}", "n_prompts=12", "n_random=3", "device=cpu"]
FORMATS: tuple[ExportFormat, ...] = get_args(ExportFormat)


def circuits(results: Path, *overrides: str) -> int:
    return main(ANALYSIS, [*COMMON, f"results_dir={results}", *overrides])


def export_of(results: Path, format: ExportFormat, step: int = STEP) -> Path:
    path = results / "graphs" / "toy" / TASK / f"step{step:06d}{SUFFIXES[format]}"
    return path / "ioi_toy" / "importances.json" if format == "mib_folder" else path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a search, with all exports. Do not change them."""
    results = tmp_path_factory.mktemp("found")
    assert circuits(results, f"checkpoints=[{STEP}]", "eap.ig_steps=4", f"export=[{', '.join(FORMATS)}]") == 0
    return results


def test_every_format_is_written_next_to_the_circuit_and_holds_it(found: Path) -> None:
    folder = Store(found).folder("graphs", "toy", TASK)
    circuit, _ = folder.read_circuit(STEP)
    assert circuit.n_edges > 1
    recorded = folder.read_run()["files"]
    for format in FORMATS:
        path = export_of(found, format)
        assert path.is_file(), format
        assert path.relative_to(folder.path).as_posix() in recorded
    for format in ("eap_ig_json", "eap_ig_pt", "mib_folder"):
        again, about = read(export_of(found, format), circuit.graph)
        assert again.in_circuit.equal(circuit.in_circuit)
        assert again.scores.equal(circuit.scores)
        assert about["d_model"] == 128
    assert not folder.damage(STEP)


def test_the_submission_is_one_that_the_benchmark_takes(found: Path, tmp_path: Path) -> None:
    submission = export_of(found, "mib_folder").parents[1]
    assert faults_of_submission(submission, {"toy": Graph(4, 4, True)}) == []
    assert "unknown model" in faults_of_submission(submission, {"gpt2": Graph(12, 12, False)})[0]
    stored = json.loads((submission / "ioi_toy" / "importances.json").read_text())
    stored["edges"].pop("input->m0")
    (tmp_path / "ioi_toy").mkdir()
    (tmp_path / "ioi_toy" / "importances.json").write_text(json.dumps(stored))
    assert faults_of_submission(tmp_path, {"toy": Graph(4, 4, True)}) == ["ioi_toy: edges lack input->m0"]


def test_exports_are_added_to_results_that_are_there_are_checked_and_made_again_with_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("checkpoints=[1350]", "search.sizes=[20]", "eap.ig_steps=2", "n_random=0")
    assert circuits(tmp_path, *sizes) == 0
    table = Store(tmp_path).folder("graphs", "toy", TASK).file(STEP)
    written = table.stat().st_mtime_ns
    capsys.readouterr()
    assert circuits(tmp_path, *sizes, "export=[graphml, mib_folder]") == 0
    assert "nothing to do" in capsys.readouterr().err
    assert table.stat().st_mtime_ns == written
    graphml, mib = export_of(tmp_path, "graphml"), export_of(tmp_path, "mib_folder")
    before = graphml.read_bytes(), mib.read_bytes()

    mib.write_bytes(b"{}")
    assert circuits(tmp_path, *sizes) == 2
    assert f"{mib} is damaged (not what was written); pass repair=true" in capsys.readouterr().err
    assert circuits(tmp_path, *sizes, "export=[graphml, mib_folder]", "repair=true") == 0
    assert (graphml.read_bytes(), mib.read_bytes()) == before

    graphml.unlink()
    assert circuits(tmp_path, *sizes) == 2
    assert f"{graphml} is damaged (it is gone)" in capsys.readouterr().err
    # Measured anew with other settings, the results keep nothing of the old ones.
    other = ("checkpoints=[1350]", "search.sizes=[30]", "eap.ig_steps=3", "n_random=0")
    assert circuits(tmp_path, *other, "overwrite=true") == 0
    assert not graphml.exists()
    assert not mib.exists()
    assert circuits(tmp_path, *other, "export=[mib_folder]") == 0
    assert mib.read_bytes() != before[1]


def test_a_suite_exports_too_and_export_json_is_one_of_the_formats(tmp_path: Path) -> None:
    entry = {"script": "get_circuits_over_time.py", "task": TASK, "n_prompts": 12, "n_random": 0}
    entry |= {"search": {"sizes": [20]}, "eap": {"ig_steps": 2}, "export": ["graphml"], "export_json": True}
    suite = {"model": str(TOY), "checkpoints": [STEP], "results_dir": str(tmp_path / "r"), "analyses": [entry]}
    (tmp_path / "suite.yml").write_text(yaml.safe_dump(suite))
    assert main_of_suite(["-c", str(tmp_path / "suite.yml")]) == 0
    assert [export_of(tmp_path / "r", format).is_file() for format in FORMATS] == [
        format in ("graphml", "eap_ig_json") for format in FORMATS
    ]


@pytest.mark.parametrize("format", ["pt", "csv", "eap_ig_json", "eap_ig_pt", "mib_folder"])
def test_a_found_circuit_that_is_given_back_does_what_it_did(found: Path, tmp_path: Path, format: Any) -> None:
    own = found / "graphs" / "toy" / TASK / f"step{STEP:06d}"
    path = own.with_suffix(f".{format}") if format in ("pt", "csv") else export_of(found, format)
    path = path.parents[1] if format == "mib_folder" else path
    assert circuits(tmp_path, f"checkpoints=[{BEFORE}, {STEP}]", f"circuit={path}") == 0

    before, now = Store(found), Store(tmp_path)
    baselines = now.folder("baselines", "toy", TASK).read_table(STEP).iloc[0]
    searched = before.folder("faithfulness", "toy", TASK).read_table(STEP).query("selected").iloc[0]
    (given,) = now.folder("faithfulness", "toy", TASK).read_table(STEP).to_dict("records")
    assert (baselines["status"], baselines["size"]) == ("given", searched["n_edges"])
    assert pd.isna(baselines["size_low"])
    for column in ("n_edges", "n_nodes", "metric", "faithfulness", "faithfulness_low", "metric_se"):
        assert given[column] == pytest.approx(searched[column], rel=1e-5), column
    edges = now.folder("graphs", "toy", TASK).read_table(STEP)
    old = before.folder("graphs", "toy", TASK).read_table(STEP)
    keys = ["source", "target", "input"]
    assert set(edges[keys].itertuples(index=False)) == set(old[keys].itertuples(index=False))
    assert edges[["score_se", "stability", "inclusion"]].isna().all().all()
    controls = now.folder("controls", "toy", TASK).read_table(STEP).set_index("control")["metric"]
    found_controls = before.folder("controls", "toy", TASK).read_table(STEP).set_index("control")["metric"]
    assert controls["without_circuit"] == pytest.approx(found_controls["without_circuit"], rel=1e-5)
    # At the other checkpoint it is the same circuit.
    there = now.folder("graphs", "toy", TASK).read_table(BEFORE)
    learned = now.folder("baselines", "toy", TASK).read_table(BEFORE)["status"][0] == "given"
    assert len(there) == (len(edges) if learned else 0)
    assert now.folder("faithfulness", "toy", TASK).read_table(BEFORE)["n_edges"].tolist() == [len(edges)]


def test_it_is_transferred_drawn_and_evaluated_as_the_library_evaluates_it(found: Path, tmp_path: Path) -> None:
    path = export_of(found, "eap_ig_json")
    assert circuits(tmp_path, f"checkpoints=[{STEP}]", f"circuit={path}", "task=[ioi, sva]", "transfer=all") == 0
    transfer = Store(tmp_path).folder("transfer", "toy", "sva").read_table(STEP)
    assert set(transfer["from_task"]) == {"ioi", "sva"}
    assert transfer["metric"].nunique() == 1  # One circuit, on the same prompts.

    model = cot.load(str(TOY), step=STEP, device="cpu")
    by_library = cot.evaluate(model, cot.task(TASK), path, n_prompts=12)
    (row,) = Store(tmp_path).folder("faithfulness", "toy", TASK).read_table(STEP).to_dict("records")
    assert by_library.metric == pytest.approx(row["metric"], rel=1e-6)
    assert by_library.n_edges == row["n_edges"]
    assert figure_main(FIGURE, ["-r", str(tmp_path), "-o", str(tmp_path / "figures")]) == 0
    assert [path.name for path in (tmp_path / "figures").glob("circuit_toy_ioi*")]
    assert make_report(["-r", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0


def edited(path: Path, change: dict[str, Any], to: Path) -> Path:
    to.write_text(json.dumps(json.loads(path.read_text()) | change))
    return to


def test_a_file_that_does_not_fit_is_refused_in_a_line_with_its_first_wrong_edge_and_nothing_is_written(
    found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = export_of(found, "eap_ig_json")
    stored = json.loads(good.read_text())
    other = save_family(tmp_path / "tiny", {0: 0})
    small = tmp_path / "small.pt"
    cot.read_circuit(good).save(small)
    alone = {"edges": {"a0.h0->m1": {"score": 1.0, "in_graph": True}}}
    unknown = stored["edges"] | {"a0.h0->m0": {"score": 1, "in_graph": True}}
    cases: dict[Path, str] = {
        edited(good, {"edges": unknown}, tmp_path / "1.json"): "a0.h0->m0: m0 does not read a0.h0",
        edited(good, {"cfg": stored["cfg"] | {"n_layers": 3}}, tmp_path / "2.json"): "the graph has no node",
        edited(good, {"cfg": stored["cfg"] | {"d_model": 64}}, tmp_path / "3.json"): (
            "the circuit is one of a model of width 64, this one has 128"
        ),
        edited(good, alone, tmp_path / "4.json"): "none of its 1 edges is on a path from input to logits",
        tmp_path / "none.json": "no such file",
        other: "a folder needs a single importances.json or importances.pt",
    }
    for path, line in cases.items():
        capsys.readouterr()
        assert circuits(tmp_path / "r", f"checkpoints=[{STEP}]", f"circuit={path}") == 2
        said = capsys.readouterr().err.strip().split("\n")[-1]
        assert said.startswith(f"circuit: {path}: "), said
        assert line in said
        assert not (tmp_path / "r" / "graphs").exists()
    of_results = found / "graphs" / "toy" / TASK / f"step{STEP:06d}.pt"
    for path in (small, of_results):
        of_other = ["task=ioi", "n_prompts=4", f"results_dir={tmp_path / 'r'}", f"model={other}", f"circuit={path}"]
        capsys.readouterr()
        assert main(ANALYSIS, of_other) == 2
        assert "the circuit is one of 4 layers of 4 heads, the model has" in capsys.readouterr().err
        assert not (tmp_path / "r" / "graphs").exists()


def test_a_circuit_of_the_results_knows_the_width_of_its_model(found: Path) -> None:
    circuit = cot.read_circuit(found / "graphs" / "toy" / TASK / f"step{STEP:06d}.pt")
    assert circuit.about["d_model"] == 128


def test_a_larger_or_smaller_model_is_told_the_edge_that_does_not_fit() -> None:
    from circuits_over_time.edge_attribution_patching.circuits.formats import of_same_graph

    small, large = Graph(1, 2, True), Graph(2, 2, True)
    with pytest.raises(ValueError, match=r"the model has 1 layers of 2 heads; it has no input->a1\.h0<q>"):
        of_same_graph(circuit_of(large, 0, 5), small)
    with pytest.raises(ValueError, match=r"the model has 2 layers of 2 heads; the file has no input->a1\.h0<q>"):
        of_same_graph(circuit_of(small, 0, 5), large)


def test_results_depend_on_the_file_and_say_so(found: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("source,target\ninput,m0\nm0,logits\n")
    given = ("checkpoints=[1350]", f"circuit={path}", "n_random=0")
    assert circuits(tmp_path / "r", *given) == 0
    path.write_text("source,target\ninput,m1\nm1,logits\n")
    assert circuits(tmp_path / "r", *given) == 2
    assert "holds results of another circuit" in capsys.readouterr().err
    assert circuits(tmp_path / "r", "checkpoints=[1350]", "n_random=0") == 2
    assert "holds circuit=" in capsys.readouterr().err
    # Scores of a file also give CPR and CMD, and keys of scores are not read.
    own = ("checkpoints=[1350]", f"circuit={export_of(found, 'eap_ig_json')}", "n_random=0", "search.mib=true")
    assert circuits(tmp_path / "mib", *own, "eap.ig_steps=7", "search.threshold=0.5") == 0
    said = capsys.readouterr().err
    assert "eap: is not read with circuit" in said
    assert "search.threshold: is not read with circuit" in said
    assert "search.mib" not in said
    assert Store(tmp_path / "mib").folder("baselines", "toy", TASK).read_table(STEP)["cmd"].notna().all()
