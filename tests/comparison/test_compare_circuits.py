"""compare_circuits.py from stored results of two made-up seeds: tables, resuming, errors, and what it imports."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from circuits_over_time.plotting import plot_comparison
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.comparison import changes
from circuits_over_time.utils.comparison.inputs import read_trajectory
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.comparison.run import compare
from circuits_over_time.utils.results.edges import named_targets
from circuits_over_time.utils.results.store import Store
from tests.support.drawings import drawings
from tests.support.seed_circuits import STEPS, write_seed
from tests.support.stored import write_tensors

MODELS = ("m-seed1", "m-seed2")
Compared = tuple[Path, dict[str, pd.DataFrame]]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the two seeds. Do not change them."""
    store = Store(tmp_path_factory.mktemp("seeds") / "results")
    for seed, model in enumerate(MODELS):
        write_seed(store, model, seed)
    return store.root


@pytest.fixture
def store(written: Path, tmp_path: Path) -> Store:
    return Store(shutil.copytree(written, tmp_path / "results"))


@pytest.fixture(scope="module")
def compared(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """The comparison of the two seeds: its folder, not to be changed, and the tables."""
    store = Store(shutil.copytree(written, tmp_path_factory.mktemp("compared") / "results"))
    return store.root / "comparison", compare(config(store))


def config(store: Store, **keys: object) -> ComparisonConfig:
    return ComparisonConfig.model_validate(
        {"results_dir": store.root, "pairs": 100, "permutations": 99, "resamples": 100} | keys
    )


def test_seeds_are_compared_with_each_other_and_over_training(compared: Compared) -> None:
    _, tables = compared
    rows = tables["similarity"]
    edges = rows[(rows["measure"] == "edge_jaccard") & (rows["at"] == "size")]
    previous = edges[edges["against"] == "previous"].set_index(["model", "step"])["changed"]
    for model in MODELS:
        assert previous[model, 10]
        assert not previous[model, 20]
    between = edges[edges["against"] == "model"]
    assert between["step"].tolist() == list(STEPS)
    assert set(between["model"]) | set(between["other_model"]) == set(MODELS)
    assert between["changed"].all()
    # A checkpoint with itself: similarity 1, and no test.
    itself = edges[(edges["against"] == "reference") & (edges["step"] == 20)]
    assert itself["value"].tolist() == [1.0, 1.0]
    assert itself["p_value"].isna().all()
    assert set(tables["seeds"]["group"]) == {"m"}
    assert tables["seed_emergence"]["shape"].isna().all()


def test_raw_weights_change_the_weighted_rows_alone_and_are_settings(store: Store) -> None:
    rows = compare(config(store, model=MODELS[0]))["similarity"]
    run = store.root / "comparison" / "run.json"
    held = json.loads(run.read_text())
    del held["config"]["weighted_jaccard"]  # As versions before the key wrote it.
    run.write_text(json.dumps(held))
    compare(config(store, model=MODELS[0]))
    with pytest.raises(UserError, match=r'weighted_jaccard: .* with "shares", this run asks for "raw"'):
        compare(config(store, model=MODELS[0], weighted_jaccard="raw"))
    raw = compare(config(store, model=MODELS[0], weighted_jaccard="raw", overwrite=True))["similarity"]
    weighted = rows["measure"] == "weighted_jaccard"
    pd.testing.assert_frame_equal(rows[~weighted], raw[~weighted])
    tested = weighted & rows["p_value"].notna()
    for column in ("value", "chance_floor", "noise_floor"):
        assert (rows.loc[tested, column] != raw.loc[tested, column]).any(), column


def test_methods_are_compared_at_every_step_of_a_model(tmp_path: Path) -> None:
    """Also at one checkpoint alone. Their fixed size is one, and values are those of the lists of edges."""
    store = Store(tmp_path / "results")
    for seed, task in enumerate(("ioi", "ioi@eap", "ioi@relp")):
        write_seed(store, "m", seed, task)
        for step in STEPS[:-1]:
            for kind in ("graphs", "baselines", "faithfulness"):
                store.folder(kind, "m", task).delete(step)
    with pytest.raises(UserError, match=r"pass emergence\.sustained=1"):
        compare(config(store))
    few = {"pairs": 100, "permutations": 99, "resamples": 100}
    rows = compare(config(store, emergence={"sustained": 1}, **few))["similarity"]
    rows = rows[(rows["against"] == "method") & (rows["measure"] == "edge_jaccard")]
    pairs = [("ioi@eap", "eap_ig"), ("ioi@relp", "eap_ig"), ("ioi@relp", "eap")]
    assert rows["size"].nunique() == 1
    edges = {}
    for task, method in {"ioi": "eap_ig", "ioi@eap": "eap", "ioi@relp": "relp"}.items():
        table = store.folder("graphs", "m", task).read_table(STEPS[-1])
        edges[method] = set(named_targets(table).str.cat(table["source"]))
    found = rows[rows["at"] == "faithfulness"].set_index(["task", "other_model"])["value"].to_dict()
    assert list(found) == pairs
    for (task, other), value in found.items():
        one, two = edges[task.partition("@")[2]], edges[other]
        assert value == pytest.approx(len(one & two) / len(one | two))
    drawn = drawings(plot_comparison, store)
    assert set(drawn) == {"comparison_m", "comparison_methods_m"}
    told = drawn["comparison_methods_m"].figure.to_json()
    assert all(f"{other} and {task.partition('@')[2]}" in told for task, other in pairs)


def test_a_stopped_run_goes_on_at_the_next_pair(
    store: Store, compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, seen = changes.Comparer.rows, list[changes.CircuitPair]()

    def stop_at_the_third(comparer: changes.Comparer, pair: changes.CircuitPair) -> list[dict[str, object]]:
        seen.append(pair)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return rows(comparer, pair)

    monkeypatch.setattr(changes.Comparer, "rows", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        compare(config(store))
    again = compare(config(store))["similarity"]
    # Two over training and three with the reference for each model, and three between them; the third twice.
    assert len(seen) == 2 * 5 + 3 + 1
    pd.testing.assert_frame_equal(again, compared[1]["similarity"], check_dtype=False)


def tables_in(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store.root / "comparison").glob("*.csv")}


def test_what_was_compared_before_stays_beside_what_comes_later(store: Store) -> None:
    write_seed(store, MODELS[0], 5, "sva")
    compare(config(store, task="ioi", model=MODELS[0]))
    compare(config(store, task="sva"))
    similarity = compare(config(store, model=MODELS[1]))["similarity"]
    units = {(MODELS[0], "ioi"), (MODELS[0], "sva"), (MODELS[1], "ioi")}
    assert set(similarity[["model", "task"]].itertuples(index=False, name=None)) == units
    one_by_one = tables_in(store)
    shutil.rmtree(store.root / "comparison")
    compare(config(store))
    assert tables_in(store) == one_by_one


def test_other_settings_are_refused_and_overwritten_only_if_asked(store: Store, compared: Compared) -> None:
    shutil.copytree(compared[0], store.root / "comparison")
    before = tables_in(store)
    with pytest.raises(
        UserError, match=r"^pairs: .*comparison holds comparisons with 100, this run asks for 110; pass"
    ):
        compare(config(store, pairs=110))
    assert tables_in(store) == before
    similarity = compare(config(store, pairs=110, model=MODELS[0], overwrite=True))["similarity"]
    assert set(similarity["model"]) == {MODELS[0]}


def test_models_and_tasks_may_be_paths(store: Store, tmp_path: Path) -> None:
    similarity = compare(config(store, model=f"{tmp_path}/{MODELS[0]}/", task="own/ioi.csv"))["similarity"]
    assert set(similarity["model"]) == {MODELS[0]}
    assert set(similarity["task"]) == {"ioi"}


def test_a_dry_run_counts_the_pairs_and_writes_nothing(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    compare(config(store, model=MODELS[0]))
    before = tables_in(store)
    assert compare(config(store), dry_run=True) == {}
    told = capsys.readouterr().out
    assert "m-seed1 ioi: 3 checkpoints\nm-seed2 ioi: 3 checkpoints\n" in told
    assert "pairs of circuits: 5 compared, 8 missing\ntime: " in told
    assert tables_in(store) == before


def test_circuits_are_grown_by_the_keys_of_their_run(store: Store) -> None:
    rule = read_trajectory(store, MODELS[0], "ioi").rule
    assert (rule.order, rule.selection, rule.positive_share, rule.seed) == ("top_n", "signed", 0.6, 7)


def test_circuits_grown_by_different_rules_are_not_held_against_each_other(store: Store) -> None:
    run = store.folder("graphs", MODELS[1], "ioi").path / "run.json"
    settings = json.loads(run.read_text())["settings"] | {"search.selection": "absolute"}
    run.write_text(json.dumps({"settings": settings}))
    rules = r"m-seed1 \(.*selection=signed, positive_share=0\.6\) and m-seed2 \(.*selection=absolute\).*between=none"
    with pytest.raises(UserError, match=rules):
        compare(config(store))
    rows = compare(config(store, between="none"))["similarity"]
    assert set(rows["model"]) == set(MODELS)
    assert "model" not in set(rows["against"])


def test_missing_results_name_the_command_that_makes_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no circuits; run: python get_circuits_over_time\.py"):
        compare(config(Store(tmp_path)))


def test_results_without_fold_scores_name_the_way_out(store: Store) -> None:
    graphs = store.folder("graphs", MODELS[0], "ioi")
    stored = graphs.read_tensors(10)
    write_tensors(graphs, 10, {name: value for name, value in stored.items() if not name.startswith("fold_")})
    with pytest.raises(UserError, match=r"no fold scores; measure again: python get_circuits_over_time\.py"):
        compare(config(store))


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"model": "m-seed3"}, "has no circuits of 'm-seed3'"),
        ({"task": "iou"}, "has no circuits of 'iou'"),
        ({"reference": 15}, "has no results of step 15"),
        ({"size": 10**6}, "size: 1000000 is more than"),
        ({"seeds": {"m": ["m-seed1", "m-sed2"]}}, r"seeds\.m: 'm-sed2' is not compared"),
        ({"match_heads": True}, "match_heads: .*signatures has none of m-seed1; run: python get_head_signatures.py"),
        ({"emergence": {"sustained": 4}}, r"there are only 3; pass emergence\.sustained=3$"),
    ],
)
def test_errors_name_the_key_and_the_value_before_anything_is_compared(
    store: Store, keys: dict[str, object], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes.Comparer, "rows", None)
    with pytest.raises(UserError, match=line):
        compare(config(store, **keys))


@pytest.mark.slow
def test_no_model_library_is_imported() -> None:
    code = (
        "import sys, circuits_over_time.compare_circuits; "
        "print([name for name in ('transformers', 'datasets') if name in sys.modules])"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
