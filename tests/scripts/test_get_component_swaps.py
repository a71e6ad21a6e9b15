"""get_component_swaps.py on the kept checkpoints: identities, one row by hand, random sets, and what is refused."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from circuits_over_time.edge_attribution_patching.model.swap import swapped
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.circuits import swap_keys
from circuits_over_time.utils.circuits.find import split_prompts
from circuits_over_time.utils.circuits.measured import read_circuit
from circuits_over_time.utils.circuits.swap_keys import SwapConfig, family_named, tasks_of_swaps
from circuits_over_time.utils.circuits.swaps import random_sets
from circuits_over_time.utils.models.family import LocalFamily, resolve_family
from circuits_over_time.utils.results.commands import folder_named
from circuits_over_time.utils.results.record import input_hashes
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import TASKS
from circuits_over_time.utils.tasks.performance import task_performance
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_component_swaps import ANALYSIS
from tests.support.paths import TOY, TOY_STEPS
from tests.support.random_models import random_model

LAST = TOY_STEPS[-1]
OF_BOTH = [f"model={TOY}", "task=sva", "n_prompts=20", "device=cpu"]
COARSE = ["n_random=0", "eap.ig_steps=4", "search.mib=false", "attention=null"]
OF_SWAPS = ["components=[circuit, all, [a1.h2, m0]]", "n_random=2", "n_sequences=4", "seq_len=20"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("swaps")
    shared = [*OF_BOTH, f"results_dir={root}"]
    assert main(CIRCUITS, [*shared, *COARSE]) == 0
    assert main(ANALYSIS, [*shared, *OF_SWAPS]) == 0
    return Store(root)


def test_a_checkpoints_own_components_change_nothing(store: Store) -> None:
    for step in TOY_STEPS:
        table = store.folder("swaps", TOY.name, "sva").read_table(step)
        own = table[table["from_step"] == step]
        assert set(own["components"]) >= {"all", "a1.h2+m0"}
        assert (own["metric"] == own["own_metric"]).all()
        heads = store.folder("swap_heads", TOY.name, "sva").read_table(step)
        of_own = heads[heads["from_step"] == step]
        assert len(of_own)
        assert (of_own["value"] == of_own["own"]).all()


def test_all_components_are_the_other_checkpoint(store: Store) -> None:
    for step in TOY_STEPS:
        table = store.folder("swaps", TOY.name, "sva").read_table(step)
        whole = table[table["components"] == "all"]
        assert whole["from_step"].tolist() == list(TOY_STEPS)
        assert (whole["metric"] == whole["source_metric"]).all()
        assert whole["source_metric"].nunique() == len(TOY_STEPS)
        heads = store.folder("swap_heads", TOY.name, "sva").read_table(step)
        assert (heads[heads["components"] == "all"]["value"] == heads[heads["components"] == "all"]["source"]).all()


def test_its_own_circuit_has_the_faithfulness_that_was_found(store: Store) -> None:
    table = store.folder("swaps", TOY.name, "sva").read_table(LAST)
    curve = store.folder("faithfulness", TOY.name, "sva").read_table(LAST)
    selected = curve[curve["selected"].astype(bool)].iloc[0]
    own = table[(table["from_step"] == LAST) & (table["control"] == "swap")]
    for column in ("faithfulness", "faithfulness_low", "faithfulness_high"):
        assert own[column].tolist() == pytest.approx([selected[column]] * len(own), rel=1e-4)


def test_prompts_that_are_not_those_of_the_circuit_are_said(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    for n_prompts, said in ((20, []), (15, ["n_prompts=15 (there 20)"])):
        caplog.clear()
        config = SwapConfig(
            model=str(TOY), task="sva", n_prompts=n_prompts, sources=[LAST], results_dir=str(store.root)
        )
        swap_keys.check_sources(config, store, TOY.name, TOY_STEPS)
        assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == said


def test_a_row_by_hand(store: Store) -> None:
    family = resolve_family(str(TOY), Path("model_cache"))
    into, source = (family.load(step, "float32", "cpu") for step in (LAST, TOY_STEPS[0]))
    config = SwapConfig(model=str(TOY), task="sva", n_prompts=20)
    prompts = split_prompts(config, TASKS["sva"], into.tokenizer, into.weights).evaluation
    table = store.folder("swaps", TOY.name, "sva").read_table(LAST)
    rows = table[(table["from_step"] == TOY_STEPS[0]) & (table["components"] == "a1.h2+m0")]
    for row in rows.itertuples():
        weights = swapped(into.weights, source.weights, row.nodes.split())
        expected = task_performance(weights, prompts, ["prob_diff", "accuracy"], 64)
        assert row.metric == pytest.approx(expected["value"][0], rel=1e-5)
        assert row.metric_se == pytest.approx(expected["se"][0], rel=1e-4)
        if row.control == "swap":
            assert (row.nodes, row.n_nodes) == ("m0 a1.h2", 2)
            assert row.accuracy == expected["value"][1]
    assert rows["control"].tolist() == ["swap", "random", "random"]
    assert rows["metric"].nunique() == 3


def test_swaps_are_measured_again_when_the_circuit_is_another(tmp_path: Path) -> None:
    shared = [*OF_BOTH, f"results_dir={tmp_path}", f"checkpoints=[{LAST}]"]
    swaps = [*shared, "components=[circuit]", f"sources=[{LAST}]", "n_random=0", "n_sequences=0"]
    assert main(CIRCUITS, [*shared, *COARSE]) == 0
    assert main(ANALYSIS, swaps) == 0
    file = Store(tmp_path).folder("swaps", TOY.name, "sva").file(LAST)
    before, stamp = file.read_bytes(), file.stat().st_mtime_ns
    assert main(ANALYSIS, swaps) == 0
    assert file.stat().st_mtime_ns == stamp
    assert main(CIRCUITS, [*shared, *COARSE, "search.sizes=[60]", "overwrite=true"]) == 0
    assert main(ANALYSIS, swaps) == 0
    assert file.read_bytes() != before


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("neuron", ["level=neuron", "search.sizes=[90]"]),
        ("positions", ["positions=true", "search.sizes=[12]"]),
        ("eap+mean_positional+node", ["eap.method=eap", "ablation=mean_positional", "level=node", "search.sizes=[12]"]),
    ],
)
def test_the_circuit_by_any_method_ablation_and_level_is_swapped_under_its_name(
    name: str, keys: list[str], tmp_path: Path
) -> None:
    shared = [f"model={TOY}", f"checkpoints=[{LAST}]", f"results_dir={tmp_path}", "n_prompts=6", "device=cpu"]
    sizes = ["eap.ig_steps=2", "search.threshold=0.01", "n_random=0"]
    assert main(CIRCUITS, [*shared, "task=ioi", *keys, *sizes, "attention=null"]) == 0
    swaps = ["components=[circuit]", f"sources=[{LAST}]", "n_random=0", "n_sequences=0"]
    assert main(ANALYSIS, [*shared, f"task=[ioi@{name}]", *swaps]) == 0
    results = Store(tmp_path)
    (row,) = results.folder("swaps", TOY.name, f"ioi@{name}").read_table(LAST).to_dict("records")
    (found,) = results.folder("faithfulness", TOY.name, f"ioi@{name}").read_table(LAST).to_dict("records")
    for column in ("metric", "faithfulness", "faithfulness_low", "faithfulness_high"):
        whole = found if column != "metric" else {"metric": row["own_metric"]}
        assert row[column] == pytest.approx(whole[column], rel=1e-4, nan_ok=True)
    assert found["faithfulness"] not in (0, 1)
    nodes = read_circuit(results.folder("graphs", TOY.name, f"ioi@{name}").file(LAST, ".pt")).nodes["node"]
    assert sorted(row["nodes"].split()) == sorted(set(nodes) - {"input", "logits"})


def test_a_circuit_of_neurons_that_a_file_gave_is_swapped_and_nothing_else_asked_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = [f"model={TOY}", f"checkpoints=[{LAST}]", "n_prompts=6", "device=cpu", "n_random=0"]
    first, second = tmp_path / "first", tmp_path / "second"
    search = ["task=ioi", "level=neuron", "ablation=mean", "eap.ig_steps=2", "search.sizes=[900]"]
    search += ["search.threshold=0.01", "attention=null"]
    assert main(CIRCUITS, [*shared, *search, f"results_dir={first}"]) == 0
    circuit = Store(first).folder("graphs", TOY.name, "ioi@mean+neuron").file(LAST, ".pt")
    given = [*shared, "task=ioi", "ablation=mean", f"circuit={circuit}", "attention=null", f"results_dir={second}"]
    for more, told in (
        ("export=[eap_ig_json]", "export: files of other programs have no neurons"),
        ("matched_transfer=true", "matched_transfer: "),
    ):
        assert main(CIRCUITS, [*given, more]) == 2
        assert told in capsys.readouterr().err
    assert main(CIRCUITS, given) == 0
    swaps = ["components=[circuit]", f"sources=[{LAST}]", "n_sequences=0", f"results_dir={second}"]
    assert main(ANALYSIS, [*shared, "task=ioi@mean", *swaps]) == 0
    (row,) = Store(second).folder("swaps", TOY.name, "ioi@mean").read_table(LAST).to_dict("records")
    (found,) = Store(second).folder("faithfulness", TOY.name, "ioi@mean").read_table(LAST).to_dict("records")
    assert row["faithfulness"] == pytest.approx(found["faithfulness"], rel=1e-4)


def test_a_table_of_prompts_is_named_with_the_method_of_its_circuit(tmp_path: Path) -> None:
    prompts = tmp_path / "own.csv"
    prompts.write_text("clean,corrupted,answers,wrong_answers\n" + '"I met Mary, and","I met James, and", she, he\n')
    config = SwapConfig(model=str(TOY), task=["ioi@mean", f"{prompts}@eap", str(prompts)])
    assert config.task_names == ["ioi", str(prompts)]
    assert [task.name for task in tasks_of_swaps(config)] == ["ioi@mean", "own@eap", "own"]
    assert set(input_hashes(config, "own@eap")) == {"task"}
    assert input_hashes(config, "own@eap") == input_hashes(config, "own")
    assert input_hashes(config, "ioi@mean") == {}
    assert config.of_task("own@eap").metric == "logit_diff"
    assert config.of_task("ioi@mean").metric is None
    assert folder_named(f"{prompts}@eap") == "own@eap"


def test_random_sets_have_as_many_heads_in_each_layer() -> None:
    shape = read_weights(random_model("neox-parallel"))
    nodes = ["a0.h1", "a0.h2", "m1", "a2.h0"]
    config = SwapConfig(model="x", task="ioi", n_random=1000)
    drawn = list(random_sets(nodes, shape, config))
    assert len(drawn) == math.comb(4, 2) * 4 - 1 == len(set(map(tuple, drawn)))
    assert nodes not in drawn
    for one in drawn:
        assert Counter(name.partition(".")[0] for name in one) == {"a0": 2, "m1": 1, "a2": 1}
    assert list(random_sets(["m0", *(f"a1.h{head}" for head in range(4))], shape, config)) == []


def test_heads_that_share_keys_are_drawn_together() -> None:
    shape = read_weights(random_model("llama-grouped"))
    config = SwapConfig(model="x", task="ioi")
    assert list(random_sets(["a1.h0", "a1.h1"], shape, config)) == [["a1.h2", "a1.h3"]]
    queries = config.model_copy(update={"parts": ["q"]})
    assert len(list(random_sets(["a1.h0"], shape, queries))) == 3


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("task=sva@eapp", "task: 'sva@eapp' is unknown"),
        ("task=[sva, sva@node, sva@node]", "listed twice"),
        ("components=[a9.h9]", "components: 'a9.h9' is neither a node of the model nor a set or role"),
        ("components=[name_movers]", "did you mean 'name_mover'?"),
        ("components=name_movers", "did you mean 'name_mover'?"),
        ("components=[a0.h1, a0.h1]", "'a0.h1' is listed twice"),
        ("sources=[7]", "sources: step 7 is not in "),
        ("sources=latest", "'latest' is not a schedule"),
        ("parts=[w]", "parts"),
        ("seq_len=5000", "seq_len: two blocks of 5000 tokens"),
    ],
)
def test_what_there_is_none_of_is_refused_before_anything_is_loaded(
    override: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFamily, "load", None)
    for run in ([], ["--dry-run"]):
        assert main(ANALYSIS, [*OF_BOTH, f"results_dir={tmp_path}", override, *run]) == 2
        assert line in capsys.readouterr().err


def test_a_metric_that_is_0_in_every_whole_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFamily, "load", None)
    prompts = tmp_path / "own.csv"
    prompts.write_text("clean,corrupted,answers,wrong_answers\n" + '"I met Mary, and","I met James, and", she, he\n')
    overrides = [*OF_BOTH[:1], f"task={prompts}", "metric=kl", "evaluate_on=same", f"results_dir={tmp_path}"]
    assert main(ANALYSIS, overrides) == 2
    assert "metric: kl compares with the whole model" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["circuit", "name_mover"])
def test_results_that_are_not_there_are_named_with_the_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(ANALYSIS, [*OF_BOTH, f"results_dir={tmp_path}", f"components=[{name}]"]) == 2
    said = capsys.readouterr().err
    assert f"components: {name}: " in said
    assert "is not there; run: python get_" in said
    assert not list(tmp_path.rglob("step*.csv"))


def test_of_many_models_only_the_one_that_is_asked_for_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()

    def look_up(_: SwapConfig, given: str) -> SimpleNamespace:
        asked.append(given)
        return SimpleNamespace(name=given.rpartition("/")[2].lower())

    monkeypatch.setattr(swap_keys, "family_of", look_up)
    models = ["pythia-70m", "pythia-160m", "pythia-160m-seed1", "some/OLMo"]
    config = SwapConfig(model=models, task="ioi", checkpoints=[1], sources=[1])
    for name in ("pythia-160m-seed1", "pythia-160m"):
        assert family_named(config, name).name == name
    assert asked == ["pythia-160m-seed1", "pythia-160m"]
    assert family_named(config, "olmo").name == "olmo"  # A name in the results may be another than the one given.


def test_the_command_of_circuits_that_are_not_there_finds_those_and_no_others(tmp_path: Path) -> None:
    given = [f"model={TOY}", f"checkpoints=[{LAST}]", f"results_dir={tmp_path}", "n_prompts=4", "device=cpu"]
    few = ["task=ioi", "search.sizes=[5]", "n_random=0", "attention=null"]
    assert main(CIRCUITS, [*given, *few, "eap.method=eap_ig_activations", "eap.ig_steps=2", "ablation=zero"]) == 0
    results = Store(tmp_path)
    for name in ("ioi", "ioi@node", "ioi@ceap"):
        _, _, *again = shlex.split(results.folder("graphs", TOY.name, name).how_to_make())
        assert not {"eap.ig_steps=2", "ablation=zero", "eap.method=eap_ig_activations"} & set(again)
        assert main(CIRCUITS, again) == 0
        assert results.folder("graphs", TOY.name, name).steps() == [LAST]
