"""Circuit size against model size, against the published study's numbers; parameter counts against the models' own."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from circuits_over_time.plotting.parts.style import nominal_size
from circuits_over_time.plotting.plot_size_vs_scale import model_parameters, size_against_scale
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.comparison.scale import mean_sizes
from circuits_over_time.utils.results.record import recorded_parameters
from circuits_over_time.utils.results.store import Store
from tests.support.synthetic_results import write

TASKS = ("ioi", "greater_than", "gendered_pronoun", "sva")
# Mean number of nodes over training of Tigges et al. 2024 (arXiv 2407.10827).
PUBLISHED_MEAN_NODES = {
    "pythia-70m": (28.9, 13.2, 17.7, 15.0),
    "pythia-160m": (43.3, 17.3, 23.7, 34.7),
    "pythia-410m": (88.3, 36.7, 39.3, 51.8),
    "pythia-1.4b": (46.6, 35.0, 56.6, 93.9),
    "pythia-2.8b": (135.4, 72.8, 42.3, 97.8),
}
PUBLISHED_R = {"ioi": 0.79, "greater_than": 0.94, "gendered_pronoun": 0.63, "sva": 0.89}


def published() -> pd.DataFrame:
    rows = [
        (model, task, size)
        for model, row in PUBLISHED_MEAN_NODES.items()
        for task, size in zip(TASKS, row, strict=True)
    ]
    return pd.DataFrame(rows, columns=["model", "task", "size"])


def test_published_sizes_give_the_published_correlations() -> None:
    found = size_against_scale(published(), {model: nominal_size(model) for model in PUBLISHED_MEAN_NODES})
    assert dict(zip(found["task"], found["r"].round(2), strict=True)) == PUBLISHED_R
    assert found["n_models"].tolist() == [5] * 4


def test_true_parameter_counts_change_the_published_correlations_by_less_than_a_hundredth() -> None:
    # Of the models' cards: embeddings counted.
    counts = (70_426_624, 162_322_944, 405_334_016, 1_414_647_808, 2_775_208_960)
    found = size_against_scale(published(), dict(zip(PUBLISHED_MEAN_NODES, counts, strict=True)))
    for task, r in zip(found["task"], found["r"], strict=True):
        assert r == pytest.approx(PUBLISHED_R[task], abs=0.01)


def test_two_models_give_no_correlation() -> None:
    two = published()[lambda table: table["model"].isin(["pythia-70m", "pythia-160m"])]
    assert size_against_scale(two, {"pythia-70m": 1.0, "pythia-160m": 2.0})["r"].isna().all()


def test_a_model_without_a_parameter_count_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter count of pythia-70m"):
        size_against_scale(published(), {m: 1.0 for m in PUBLISHED_MEAN_NODES if m != "pythia-70m"})


def test_mean_size_counts_selected_circuits_only() -> None:
    table = pd.DataFrame(
        {
            "model": "m",
            "task": "ioi",
            "step": [1, 1, 2, 2, 3],
            "n_edges": [10, 99, 20, 99, 99],
            "n_nodes": [4, 9, 8, 9, 9],
            "selected": [True, False, True, False, False],
        }
    )
    assert mean_sizes(table, "edges")[["size", "n_steps"]].to_numpy().tolist() == [[15.0, 2.0]]
    assert mean_sizes(table, "nodes")["size"].tolist() == [6.0]


def record(store: Store, model: str, task: str | None, counts: dict[int, int | None]) -> None:
    """A checkpoint's results and their run.json, with the number of parameters or, as older ones, without."""
    kind = "components" if task is None else "faithfulness"
    for step in counts:
        write(store, kind, model, task, step, pd.DataFrame(), step)
    checkpoints = {str(step): {"sha256": "0"} | ({"parameters": n} if n else {}) for step, n in counts.items()}
    (store.folder(kind, model, task).path / "run.json").write_text(json.dumps({"checkpoints": checkpoints}))


def test_parameters_are_those_that_any_run_of_the_model_recorded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    record(store, "mine", "ioi", {1: None, 2: None})
    assert recorded_parameters(store, "mine") is None
    record(store, "mine", None, {2: 463})
    record(store, "other", "sva", {2: 7})
    assert [recorded_parameters(store, model) for model in ("mine", "other", "absent")] == [463, 7, None]
    record(store, "mine", "sva", {8: 464})
    with pytest.raises(UserError, match="mine has 463 and 464 parameters"):
        recorded_parameters(store, "mine")


def test_a_model_of_unknown_size_is_left_out_with_the_command_that_records_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    record(store, "known", "ioi", {1: 10})
    record(store, "unknown", "ioi", {1: None})
    table = pd.DataFrame({"model": ["known", "unknown", "given"], "step": [1, 8, 1]})
    assert model_parameters(store, table, ["given=25e6"]) == {"known": 10, "given": 25e6}
    assert re.search(r"unknown: .* Give --parameters unknown=COUNT, or run: .*checkpoints=\[8\]", caplog.text)
    assert "--parameters known" not in caplog.text


@pytest.mark.parametrize(
    ("model", "size"),
    [("pythia-1.4b", 1.4e9), ("pythia-70m-seed1", 70e6), ("OLMo-1B", 1e9), ("toy", None), ("gpt2", None)],
)
def test_names_state_their_size(model: str, size: float | None) -> None:
    assert nominal_size(model) == (size if size is None else pytest.approx(size))


def test_correlation_is_on_plain_sizes_not_logarithms() -> None:
    sizes = pd.DataFrame({"model": list("abc"), "task": "ioi", "size": [1.0, 2.0, 101.0]})
    r = size_against_scale(sizes, {"a": 1e6, "b": 2e6, "c": 101e6})["r"].iloc[0]
    assert r == pytest.approx(1)
    assert np.corrcoef(np.log([1e6, 2e6, 101e6]), sizes["size"])[0, 1] < 0.999
