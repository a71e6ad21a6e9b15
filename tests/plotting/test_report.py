"""What the report holds, checked without a browser: its data against the tables, its size, its safety."""

import base64
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from plotly.offline import get_plotlyjs

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.plotting import plot_reproduction
from circuits_over_time.plotting.make_report import main
from circuits_over_time.plotting.parts.circuit_similarity import edges_of, nodes_of
from circuits_over_time.plotting.parts.head_attention import heads_seen
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.report import figures, heads
from circuits_over_time.plotting.report.circuits import PORTS, circuit_records, score_histories
from circuits_over_time.plotting.report.heads import head_records
from circuits_over_time.plotting.report.page import script_safe
from circuits_over_time.plotting.report.runs import run_records, runs_html
from circuits_over_time.utils.algorithms.handover import role_handover
from circuits_over_time.utils.results.store import Store
from tests.support.stored import write_tensors
from tests.support.synthetic_results import MODELS, STEPS, TASKS, write

MODEL = MODELS[0]
MADE_UP = (
    "graphs",
    "faithfulness",
    "baselines",
    "components",
    "successor",
    "cspa",
    "ioi_consistency",
    "task_performance",
)


@pytest.fixture(scope="module")
def page(report: Path) -> str:
    return report.read_text(encoding="utf-8")


HeadRecords = tuple[list[dict[str, Any]], dict[str, str]]


@pytest.fixture(scope="module")
def of_heads(store: Store) -> HeadRecords:
    """The records of the results' heads. Do not change them."""
    return head_records(results_of(store))


def results_of(store: Store) -> Results:
    return Results(store, in_report=True)


def embedded(page: str, name: str) -> dict:
    match = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert match
    return json.loads(match[1])


def test_page_refers_to_nothing_outside_itself_and_carries_plotly_once(page: str) -> None:
    assert page.count(get_plotlyjs()) == 1
    rest = page.replace(get_plotlyjs(), "")
    addresses = re.findall(r"""(?:src|href|action)\s*=\s*["']([^"']*)""", rest)
    assert addresses
    assert not [address for address in addresses if not address.startswith("#") and address != "data:,"]
    assert "default-src 'none'" in rest
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", rest)


def test_circuit_records_hold_every_edge_of_every_checkpoint(store: Store) -> None:
    records = circuit_records(results_of(store))
    assert [(record["model"], record["task"]) for record in records] == [(MODEL, task) for task in TASKS]
    for record in records:
        assert record["ofNodes"] is False
        names = [name for name, *_ in record["nodes"]]
        triples = np.array(record["edges"]).reshape(-1, 3)
        ports = [f"<{port}>" if port else "" for port in PORTS]
        edges = [(names[source], names[target] + ports[port]) for source, target, port in triples]
        assert [state["step"] for state in record["steps"]] == list(STEPS)
        for state in record["steps"]:
            table = store.folder("graphs", MODEL, record["task"]).read_table(state["step"])
            held = {edges[edge]: score for edge, score in zip(state["edges"], state["scores"], strict=True)}
            assert held == pytest.approx(edges_of(table), rel=1e-5)
            assert state["nodes"] == len(nodes_of(edges_of(table)))
            baselines = store.folder("baselines", MODEL, record["task"]).read_table(state["step"]).iloc[0]
            assert state["full"] == pytest.approx(baselines["full"], rel=1e-5)


def test_a_head_has_a_role_from_the_first_to_the_last_step_with_a_score_above_the_threshold(
    store: Store, of_heads: HeadRecords
) -> None:
    ((record,), meanings) = of_heads
    table = store.read_tables("components", MODEL)
    above = table[(table["score"] == "induction") & (table["value"] > 0.5)]
    expected = {
        key: (rows["step"].min(), rows["step"].max(), len(rows)) for key, rows in above.groupby(["layer", "head"])
    }
    rows = [row for row in record["roles"] if row["role"] == "induction"]
    assert expected
    assert {tuple(record["heads"][row["head"]]): (row["first"], row["last"], row["n"]) for row in rows} == expected
    assert meanings["induction"] == "induction score above 0.5"
    assert all(row["of"] == len(STEPS) for row in rows)


def test_heads_of_circuits_have_their_first_and_last_step(store: Store, of_heads: HeadRecords) -> None:
    ((record,), _) = of_heads
    steps: dict[tuple[int, int], list[int]] = {}
    for step in STEPS:
        for node in nodes_of(edges_of(store.folder("graphs", MODEL, "ioi").read_table(step))):
            if match := re.fullmatch(r"a(\d+)\.h(\d+)", node):
                steps.setdefault((int(match[1]), int(match[2])), []).append(step)
    rows = [row for row in record["roles"] if row["role"] == "in IOI circuit"]
    found = {tuple(record["heads"][row["head"]]): (row["first"], row["last"], row["n"]) for row in rows}
    assert found == {head: (held[0], held[-1], len(held)) for head, held in steps.items()}


def test_roles_found_by_effect_agree_with_the_handover_table(store: Store, tmp_path: Path) -> None:
    kind, steps = "ioi_consistency_heads", (0, 8, 64)
    copied = _with_kinds(store, tmp_path, ["components"])
    for step in steps:
        heads = pd.DataFrame(
            {
                "level": ["s_inhibition", "s_inhibition", "name_movers"],
                "layer": [2, 1, 3],
                "head": [1, 0, 2],
                "role": ["s_inhibition", "s_inhibition", ""],
                "effect": [-0.2, -0.1, 0.0],
                "passes": [step > 0, False, False],
            }
        )
        write(copied, kind, MODEL, None, step, heads, 8 * step)
    ((record,), meanings) = head_records(results_of(copied))
    rows = [row for row in record["roles"] if row["role"].endswith("(by effect)")]
    held = [(*record["heads"][row["head"]], row["first"], row["last"], row["n"]) for row in rows]
    handover = role_handover(copied.read_tables(kind, MODEL), steps)
    columns = ["layer", "head", "first_step", "last_step", "n_held"]
    assert held == [(2, 1, 8, 64, 2)] == [tuple(row) for row in handover[columns].to_numpy().tolist()]
    assert "S-inhibition (by effect)" in meanings


def test_no_two_rows_of_the_table_of_heads_are_of_one_role_of_a_head(of_heads: HeadRecords) -> None:
    ((record,), _) = of_heads
    rows = [(row["head"], row["role"]) for row in record["roles"]]
    assert {"name mover (by effect)"} <= {role for _, role in rows}
    assert len(rows) == len(set(rows))


def test_a_run_is_listed_once_with_its_tasks(store: Store, tmp_path: Path) -> None:
    copied = _with_kinds(store, tmp_path, ["graphs", "faithfulness"])
    for kind in ("graphs", "faithfulness"):
        for task in TASKS:
            run = {
                "analysis": "get_circuits_over_time",
                "config": {"task": list(TASKS)},
                "files": {f"{kind}{task}": ""},
            }
            (copied.folder(kind, MODEL, task).path / "run.json").write_text(json.dumps(run))
    (run,) = run_records(results_of(copied))
    assert len(run.folders) == 4
    assert f"{MODEL}, IOI, Subject-verb agreement <span class='quiet'>graphs, faithfulness" in runs_html([run])


@pytest.mark.parametrize("kind", MADE_UP)
def test_one_kind_of_results_is_enough(
    kind: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the study has besides, and how long it takes, is not of this kind.
    monkeypatch.setattr(plot_reproduction, "remaining", lambda *_: None)
    copied = _with_kinds(store, tmp_path / "results", [kind])
    assert main(["-r", str(copied.root), "-o", str(tmp_path / "report.html")]) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ('id="circuit" hidden' in text) == (kind != "graphs")


def test_results_without_any_circuit_say_so(tmp_path: Path) -> None:
    copied = Store(tmp_path)
    empty = pd.DataFrame(columns=["source", "target", "score"])
    for step in (0, 8):
        write(copied, "graphs", MODEL, "ioi", step, empty, 8)
        baselines = {"full": 0.1, "corrupted": 0.1, "n_prompts": 4, "status": "task not learned"}
        write(copied, "baselines", MODEL, "ioi", step, pd.DataFrame([baselines]), 8)
    (record,) = circuit_records(results_of(copied))
    assert [(state["edges"], state["status"]) for state in record["steps"]] == [([], "task not learned")] * 2
    assert main(["-r", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0


def test_without_results_one_line_names_the_command_that_makes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["-r", str(tmp_path / "none"), "-o", str(tmp_path / "report.html")]) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert re.fullmatch(
        r"(\S+) holds no results; run: python get_circuits_over_time\.py -c configs/\w+\.yml results_dir=\1", error
    )
    assert not (tmp_path / "report.html").exists()


def test_an_unreadable_circuit_is_named_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edges = pd.DataFrame({"source": ["input"], "target": ["a0.h1<z>"], "score": [1.0]})
    write(Store(tmp_path), "graphs", MODEL, "ioi", 8, edges, 8)
    assert main(["-r", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 2
    (error,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert f"graphs/{MODEL}/ioi" in error
    assert "a0.h1<z>" in error
    assert "\n" not in error


def test_configs_versions_weights_and_equal_weights_stand_on_the_page(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "figures", list)  # They take long to draw.
    copied = _with_kinds(store, tmp_path, ["components"])
    run = {
        "analysis": "get_full_model_components_over_time",
        "config": {"model": MODEL, "n_sequences": 50, "eap": {"ig_steps": 5}},
        "seed": 0,
        "repository": "EleutherAI/pythia-70m",
        "versions": {"torch": "2.13.0"},
        "checkpoints": {
            "0": {"repository": "r", "revision": "step0", "commit": "abc", "sha256": "5" * 64},
            "8": {"repository": "r", "revision": "step8", "commit": None, "sha256": "5" * 64},
        },
        "equal_weights": [[0, 8]],
    }
    (copied.folder("components", MODEL).path / "run.json").write_text(json.dumps(run))
    main(["-r", str(tmp_path), "-o", str(tmp_path / "report.html")])
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for line in ("n_sequences: 50", "eap:\n  ig_steps: 5", "torch: 2.13.0", "EleutherAI/pythia-70m", "5" * 64):
        assert line in text
    assert "steps 0, 8 hold the same weights" in text


@pytest.mark.parametrize(("budget", "n_kept"), [(10**6, 4), (2 * 4 * 3, 3), (0, 0)])
def test_histories_hold_the_scores_of_the_edges_most_often_in_a_circuit(
    tmp_path: Path, budget: int, n_kept: int
) -> None:
    folder = Store(tmp_path).folder("graphs", MODEL, "ioi")
    graph = Graph(2, 2, parallel=True)
    edges = [("input", "m0"), ("m0", "a1.h1<v>"), ("a1.h1", "logits"), ("m0", "logits")]
    scores = {}
    for step in (0, 8, 64):
        values = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(step))
        scores[step] = [float(1000 * values[graph.edge_index("->".join(edge))]) for edge in edges]
        write(Store(tmp_path), "graphs", MODEL, "ioi", step, pd.DataFrame(columns=["source"]), 8)
        if step != 8:
            write_tensors(folder, step, Circuit(graph, 1000 * values, values > 0).to_tensors())
    found = score_histories(folder, edges, [1, 2, 3, 2], budget)
    if not n_kept:
        assert found is None
        return
    assert found is not None
    assert found["edges"] == [2, 1, 3, 0][:n_kept]
    values = found["scale"] * np.frombuffer(base64.b64decode(found["data"]), "<f2").reshape(n_kept, 3).astype(float)
    assert np.isnan(values[:, 1]).all(), "step 8 has no tensors"
    for row, edge in enumerate(found["edges"]):
        assert values[row, [0, 2]] == pytest.approx([scores[0][edge], scores[64][edge]], rel=1e-3)


def test_attention_on_the_page_is_what_was_stored_as_far_as_it_fits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, folder = MODELS[0], store.folder("attention", MODELS[0], "ioi")
    whole = heads.attention_records(Results(store), model)
    assert set(whole) == set(TASKS)
    kept = [step for step in STEPS if folder.read_json(step)["heads"]]
    assert [seen["step"] for seen in whole["ioi"]["seen"]] == kept
    assert whole["ioi"]["measured"] == len(kept) > 3
    for seen in whole["ioi"]["seen"]:
        stored = folder.read_json(seen["step"])
        assert set(seen["heads"]) == set(stored["heads"])
        for head, (encoded, _) in seen["heads"].items():
            assert list(base64.b64decode(encoded)) == [255 * share for row in stored["heads"][head] for share in row]
    # Half of the room: every second from the last.
    size = len(json.dumps(whole).encode())
    monkeypatch.setattr(heads, "BUDGET", 2 * size // 3)
    half = heads.attention_records(Results(store), model)
    assert [seen["step"] for seen in half["ioi"]["seen"]] == kept[::-2][::-1]
    assert half["ioi"]["measured"] == len(kept)
    # Room for less than the last: the heads that move a token the most, which have the highest numbers here.
    monkeypatch.setattr(heads, "BUDGET", 3000)
    least = heads.attention_records(Results(store), model)
    (seen,) = least["ioi"]["seen"]
    assert len(json.dumps(least).encode()) < 3200
    assert 0 < len(seen["heads"]) == len(stored["heads"]) - seen["without"]
    numbers = {name: int(name.partition(".h")[2]) for name in stored["heads"]}
    assert min(numbers[name] for name in seen["heads"]) >= max(
        numbers[name] for name in set(numbers) - set(seen["heads"])
    )


def test_a_file_without_the_attention_of_its_heads_is_left_out_and_told(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(store.root / "attention", tmp_path / "attention")
    folder = Store(tmp_path).folder("attention", MODELS[0], "ioi")
    stored = folder.read_json(STEPS[-1])
    for wrong in ({"heads": {}}, {"tokens": 3}, {"tokens": ["a"]}, {"left_out": None}):
        folder.file(STEPS[-1], ".json").write_text(json.dumps(stored | wrong))
        caplog.clear()
        seen = heads_seen(Results(Store(tmp_path)), MODELS[0], "ioi")
        assert STEPS[-2] in seen
        assert STEPS[-1] not in seen
        assert "does not hold the attention of the table's heads" in caplog.text


def test_embedded_data_cannot_end_its_script() -> None:
    hostile = "</script><script>alert(1)</script> & \u2028"
    safe = script_safe(json.dumps(hostile, ensure_ascii=False))
    assert not set("<>&\u2028") & set(safe)
    assert json.loads(safe) == hostile


def test_every_figure_of_the_results_is_on_the_page(page: str) -> None:
    names = [figure["name"] for figure in embedded(page, "figure-data")["figures"]]
    assert names == [
        "task_performance",
        "circuits",
        f"controls_{MODEL}",
        "circuit_similarity",
        f"transfer_{MODEL}",
        f"component_swaps_{MODEL}",
        f"faithfulness_curve_{MODEL}",
        "cpr_cmd",
        "head_scores",
        f"head_scores_{MODEL}",
        "ioi_consistency",
        "greater_than_consistency",
        f"ioi_roles_{MODEL}",
        "ioi_backup",
        "reproduction",
    ]


def _with_kinds(store: Store, folder: Path, kinds: list[str]) -> Store:
    for kind in kinds:
        shutil.copytree(store.root / kind, folder / kind)
    return Store(folder)
