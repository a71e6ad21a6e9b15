"""Results on disk: paths, whole files, exact values, and the words about what is missing."""

from __future__ import annotations

import errno
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.base.files import atomic_write, remove_stale_temporaries
from circuits_over_time.utils.results.commands import how_to_make
from circuits_over_time.utils.results.kinds import KINDS, ResultSchema
from circuits_over_time.utils.results.record import equal_weights
from circuits_over_time.utils.results.store import Store, read_csv
from tests.support.stored import write_json, write_table, write_tensors

TABLE = pd.DataFrame({"head": [0, 1], "value": [0.1, -2.5]})
SCORES = ResultSchema("scores", {"head": "number", "value": "score"}, "get_model_cspa.py", "cspa")


def kind_of(table: pd.DataFrame) -> ResultSchema:
    """A kind with the table's columns."""
    return ResultSchema("trial", dict.fromkeys(table.columns, ""), "get_model_cspa.py")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store("results")


def test_paths_are_kind_model_task_step(store: Store) -> None:
    assert store.folder("graphs", "pythia-160m", "ioi").file(1000, ".pt") == Path(
        "results/graphs/pythia-160m/ioi/step001000.pt"
    )
    assert store.folder("cspa", "toy").file(1_000_000) == Path("results/cspa/toy/step1000000.csv")


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a\\b"])
def test_a_name_cannot_leave_its_folder(name: str, store: Store) -> None:
    with pytest.raises(UserError, match="cannot name a results folder"):
        store.folder("graphs", "toy", name)
    with pytest.raises(UserError, match="cannot name a results folder"):
        store.folder("graphs", name)


def test_an_unknown_kind_is_a_bug(store: Store) -> None:
    with pytest.raises(ValueError, match="'graph' is not a kind of result"):
        store.folder("graph", "toy")


def test_tables_begin_with_model_step_and_tokens(store: Store) -> None:
    path = write_table(store.folder(SCORES, "toy"), 20, TABLE, tokens=1280)
    assert path.read_text() == "model,step,tokens,head,value\ntoy,20,1280,0,0.1\ntoy,20,1280,1,-2.5\n"
    assert list(TABLE.columns) == ["head", "value"]


def test_the_same_table_gives_the_same_bytes(store: Store) -> None:
    first = write_table(store.folder(SCORES, "toy"), 20, TABLE, tokens=1).read_bytes()
    shuffled_index = TABLE.set_index(pd.Index([7, 3]))
    assert write_table(store.folder(SCORES, "toy"), 20, shuffled_index, tokens=1).read_bytes() == first


@pytest.mark.parametrize("columns", [["head"], ["value", "head"], ["head", "value", "step"]])
def test_a_table_with_other_columns_than_its_kinds_is_a_bug(columns: list[str], store: Store) -> None:
    table = pd.DataFrame({column: [1] for column in columns})
    with pytest.raises(ValueError, match=r"a table of scores has \['head', 'value'\], not \["):
        write_table(store.folder(SCORES, "toy"), 0, table, tokens=0)


def test_a_kind_without_tensors_takes_none(store: Store) -> None:
    with pytest.raises(ValueError, match=r"scores has no \.pt files"):
        write_tensors(store.folder(SCORES, "toy"), 0, {})


FLOATS = st.floats(allow_nan=False, width=64)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1)


@settings(max_examples=50, deadline=None)
@example([(-0.0, 1, "a\rb"), (1e-320, -1, '"\n,')])
@given(st.lists(st.tuples(FLOATS, st.integers(-(2**63), 2**63 - 1), TEXTS), min_size=1, max_size=5))
def test_values_survive_the_file_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, int, str]]
) -> None:
    store = Store(tmp_path_factory.getbasetemp() / "round_trip")
    # A letter before each text: a column of nothing but digits is read as numbers.
    table = pd.DataFrame([(x, n, f"t{text}") for x, n, text in rows], columns=["x", "n", "text"])
    write_table(store.folder(kind_of(table), "toy"), 0, table, tokens=0)
    read = store.folder(kind_of(table), "toy").read_table(0)
    assert [math.copysign(1, x) for x in read["x"]] == [math.copysign(1, x) for x in table["x"]]
    pd.testing.assert_frame_equal(read[["x", "n", "text"]], table, check_exact=True)


def test_text_like_na_stays_text_and_an_empty_cell_is_missing(store: Store) -> None:
    table = pd.DataFrame({"token": ["NA", "null", "nan", "None"], "value": [1.0, None, 2.0, float("inf")]})
    write_table(store.folder(kind_of(table), "toy"), 0, table, tokens=0)
    read = store.folder(kind_of(table), "toy").read_table(0)
    assert list(read["token"]) == ["NA", "null", "nan", "None"]
    assert list(read["value"].isna()) == [False, True, False, False]
    assert read["value"][3] == float("inf")


def test_float32_values_are_read_back_as_the_same_float32(store: Store) -> None:
    table = pd.DataFrame({"value": torch.rand(100, generator=torch.Generator().manual_seed(0)).numpy()})
    write_table(store.folder(kind_of(table), "toy"), 0, table, tokens=0)
    read = store.folder(kind_of(table), "toy").read_table(0)["value"].astype("float32")
    pd.testing.assert_series_equal(read, table["value"], check_exact=True)


def test_a_summary_has_the_columns_that_its_kind_documents(store: Store) -> None:
    kind = ResultSchema("trial", {}, "get_model_cspa.py", summaries={"peaks": {"head": "number", "value": "score"}})
    folder = store.folder(kind, "toy")
    folder.write_summary("peaks", TABLE)
    pd.testing.assert_frame_equal(
        read_csv(folder.path / "peaks.csv"), TABLE.assign(model="toy")[["model", "head", "value"]]
    )
    for name, table in (("peaks", TABLE[["value"]]), ("lows", TABLE)):
        with pytest.raises(ValueError, match=f"trial has no summary '{name}' with the columns"):
            folder.write_summary(name, table)


def test_read_tables_joins_models_tasks_and_steps(store: Store) -> None:
    for model in ("toy", "other"):
        for task in ("sva", "ioi"):
            for step in (20, 3):
                write_table(store.folder(SCORES, model, task), step, TABLE, tokens=step)
    everything = store.read_tables(SCORES)
    assert list(everything.columns) == ["model", "task", "step", "tokens", "head", "value"]
    keys = everything[["model", "task", "step"]].drop_duplicates()
    assert [tuple(row) for row in keys.to_numpy()] == [
        (model, task, step) for model in ("other", "toy") for task in ("ioi", "sva") for step in (3, 20)
    ]
    assert set(store.read_tables(SCORES, task="ioi")["task"]) == {"ioi"}
    assert set(store.read_tables(SCORES, "toy")["model"]) == {"toy"}
    assert store.models(SCORES) == ["other", "toy"]
    assert store.tasks(SCORES, "toy") == ["ioi", "sva"]
    assert store.folder(SCORES, "toy", "ioi").steps() == [3, 20]


def test_a_kind_without_tasks_has_no_task_column(store: Store) -> None:
    write_table(store.folder(SCORES, "toy"), 3, TABLE, tokens=3)
    assert "task" not in store.read_tables(SCORES).columns
    assert store.tasks(SCORES, "toy") == []
    assert store.models(SCORES) == ["toy"]
    assert store.folder(SCORES, "toy").has(3)
    assert not store.folder(SCORES, "toy").has(4)


def test_an_empty_store_has_nothing(store: Store) -> None:
    assert store.models("graphs") == []
    assert store.tasks("graphs", "toy") == []
    assert store.folder("graphs", "toy", "ioi").steps() == []


def test_a_missing_result_names_the_command_that_makes_it(store: Store) -> None:
    Path("configs").mkdir()
    Path("configs/cspa_160m.yml").touch()
    with pytest.raises(UserError) as caught:
        store.folder("cspa", "pythia-160m").read_table(1000)
    assert str(caught.value) == (
        "results/cspa/pythia-160m/step001000.csv is missing; run: python get_model_cspa.py -c configs/cspa_160m.yml"
    )
    with pytest.raises(UserError) as caught:
        store.read_tables("cspa", "pythia-410m")
    assert str(caught.value) == (
        "results/cspa/pythia-410m holds no results; "
        "run: python get_model_cspa.py -c configs/cspa_160m.yml model=pythia-410m"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_a_script_and_a_config(kind: str) -> None:
    assert how_to_make(Path("results"), kind, "pythia-160m", "sva").startswith(
        f"python {KINDS[kind].script} -c configs/"
    )


def test_tensors_and_names_survive_and_give_the_same_bytes(store: Store) -> None:
    graph = {"scores": torch.arange(6.0).reshape(2, 3), "in_circuit": torch.eye(2).bool(), "forward_nodes": ["input"]}
    first = write_tensors(store.folder("graphs", "toy", "ioi"), 0, graph).read_bytes()
    read = store.folder("graphs", "toy", "ioi").read_tensors(0)
    assert torch.equal(read["scores"], graph["scores"])
    assert torch.equal(read["in_circuit"], graph["in_circuit"])
    assert read["forward_nodes"] == ["input"]
    assert write_tensors(store.folder("graphs", "toy", "ioi"), 1, graph).read_bytes() == first


def test_json_survives_and_refuses_what_json_has_not(store: Store) -> None:
    value: dict[str, Any] = {"edges": {"a0.h1->m2": {"score": 0.1, "in_graph": True}}}
    write_json(store.folder("graphs", "toy", "ioi"), 0, value)
    assert store.folder("graphs", "toy", "ioi").read_json(0) == value
    with pytest.raises(ValueError, match="JSON"):
        write_json(store.folder("graphs", "toy", "ioi"), 0, {"score": float("nan")})
    assert store.folder("graphs", "toy", "ioi").read_json(0) == value


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.csv"
    atomic_write(path, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        atomic_write(path, b"new")
    told = f"{path}: cannot be written (No space left on device); free space or name another folder"
    assert str(caught.value) == told
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(path := tmp_path / "pipe")
    with pytest.raises(UserError, match="is not a regular file"):
        atomic_write(path, b"new")
    assert path.is_fifo()


def test_a_file_is_whole_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        assert synced
        assert source.parent == target.parent
        assert source.read_bytes() == b"data"
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced.append)
    monkeypatch.setattr(os, "replace", watched)
    atomic_write(tmp_path / "file", b"data")
    assert (tmp_path / "file").read_bytes() == b"data"


def test_only_leftovers_of_dead_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    host = socket.gethostname()
    names = {
        f".step000001.csv.{host}.{ended.pid}.tmp": False,
        f".step000001.csv.{host}.{os.getpid()}.tmp": True,
        ".step000001.csv.elsewhere.5.tmp": True,
        "step000001.csv": True,
    }
    for name in [*names, ".old.elsewhere.5.tmp"]:
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / ".old.elsewhere.5.tmp", (0, 0))
    remove_stale_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


def test_equal_hashes_are_grouped() -> None:
    hashes = {"0": "a", "1000": "b", "2000": "a", "10": "c", "20": "b", "30": "a"}
    assert equal_weights({step: {"sha256": h} for step, h in hashes.items()}) == [[0, 30, 2000], [20, 1000]]
    assert equal_weights({"0": {"sha256": "a"}}) == []


def test_a_missing_run_json_names_the_command(store: Store) -> None:
    with pytest.raises(UserError, match=r"^results/graphs/toy/ioi/run.json is missing; run: python get_circuits"):
        store.folder("graphs", "toy", "ioi").read_run()
    atomic_write(store.folder("graphs", "toy", "ioi").path / "run.json", json.dumps({"seed": 1}).encode())
    assert store.folder("graphs", "toy", "ioi").read_run() == {"seed": 1}
