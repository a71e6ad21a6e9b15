"""Heads are matched by signatures of real models, and circuits carried to other models under these names."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.report.advice import also_possible
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.comparison.matched import transfer_rows
from circuits_over_time.utils.comparison.matching import SIGNATURES, Matcher, Signature, common_signatures
from circuits_over_time.utils.results.comparison import ComparisonFolder, heads_of
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from compare_circuits import main as compare
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_head_signatures import ANALYSIS as SIGNATURES_OF_HEADS
from tests.support.commands import run_command
from tests.support.paths import DATA, TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

STEP, DEEP = 1350, DATA / "toy_ioi" / "step1700"
Place = tuple[int, int]


def permuted(model: PreTrainedModel, seed: int, n_moved: int) -> dict[Place, Place]:
    """Deal the first heads of each layer anew, in place; heads that share keys and values stay together.

    Returns:
        Head of the permuted model -> head as it was.
    """
    n_heads, rng, was = model.config.num_attention_heads, np.random.default_rng(seed), dict[Place, Place]()
    grouped = getattr(model.config, "num_key_value_heads", n_heads)
    with torch.no_grad():
        for layer, block in enumerate(model.base_model.layers):
            groups = np.array([*rng.permutation(n_moved), *range(n_moved, grouped)])
            heads = np.arange(n_heads).reshape(grouped, -1)[groups]
            if grouped < n_heads:
                attention = block.self_attn
                heads = rng.permuted(heads, axis=1)
                rows = {"q_proj": heads.flatten(), "k_proj": groups, "v_proj": groups}
                projections = [(getattr(attention, name), order) for name, order in rows.items()]
                output = attention.o_proj
            else:
                projections = [(block.attention.query_key_value, heads.flatten())]
                output = block.attention.dense
            for projection, order in projections:
                for tensor in (projection.weight, projection.bias):
                    if tensor is not None:
                        parts = tensor.unflatten(0, (len(order), -1))
                        tensor.copy_(parts[torch.from_numpy(order)].flatten(0, 1))
            parts = output.weight.unflatten(1, (n_heads, -1))
            output.weight.copy_(parts[:, torch.from_numpy(heads.flatten())].flatten(1))
            was |= {(layer, new): (layer, int(old)) for new, old in enumerate(heads.flatten())}
    return was


def family(folder: Path, model: PreTrainedModel, tokenizer_of: Path) -> str:
    """A local family of one checkpoint."""
    copytree(tokenizer_of, folder / f"step{STEP}")
    model.save_pretrained(folder / f"step{STEP}")
    (folder / "family.json").write_text('{"tokens_per_step": 10}')
    return str(folder)


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy, the toy with its heads in other places, and a model of six layers, carried to each other."""
    root = tmp_path_factory.mktemp("matched")
    models = {}
    for name, folder in (("toy", TOY / f"step{STEP}"), ("toy-seed1", TOY / f"step{STEP}"), ("deep", DEEP)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        if name == "toy-seed1":
            permuted(model, 3, 4)
        models[name] = family(root / name, model, folder)
    given = [f"model=[{', '.join(models.values())}]", "task=[ioi, sva]", "n_prompts=20", "device=cpu"]
    given += [f"results_dir={root}"]
    circuits = [*given, "n_random=3", "eap.ig_steps=3", "attention=null", "search.mib=false"]
    assert main(CIRCUITS, circuits) == 0
    # Circuits of nodes come first, by their name; heads are matched in the model's graph all the same.
    assert main(CIRCUITS, [*circuits, "task=gendered_pronoun", "level=node", "n_prompts=8"]) == 0
    assert main(SIGNATURES_OF_HEADS, given) == 0
    few = ["resamples=100", "pairs=100", "permutations=99", "emergence.sustained=1"]
    assert compare([f"results_dir={root}", "match_heads=true", "between=none", *few]) == 0
    # The report says how to go on.
    suggested = [advice.command for advice in also_possible(Results(Store(root), in_report=True))]
    (command,) = [command for command in suggested if "matched_transfer=true" in command]
    assert run_command(command) == 0
    return root


def test_a_circuit_in_a_model_whose_heads_changed_places_does_there_what_it_does_at_home(carried: Path) -> None:
    store = Store(carried)
    for model, other in (("toy", "toy-seed1"), ("toy-seed1", "toy")):
        for task in ("ioi", "sva"):
            rows = store.folder("matched_transfer", model, task).read_table(STEP)
            at_home = store.folder("matched_transfer", other, task).read_table(STEP).set_index("names").loc["own"]
            rows = rows[rows["from_model"] == other].set_index("names")
            assert at_home["faithfulness"] > 0.5
            for names in SIGNATURES:
                assert rows.loc[names, "faithfulness"] == pytest.approx(at_home["faithfulness"], abs=1e-5)
                assert rows.loc[names, "n_dropped"] == 0
            assert rows.loc["given", "faithfulness"] < 0.1
            assert abs(rows.loc["function", "random_floor"]) < 0.1


def test_overlap_is_one_after_matching_and_transfer_stands_beside_it(carried: Path) -> None:
    matched = ComparisonFolder(carried).read("matched")
    assert set(matched.query("measure == 'edge_jaccard'")["task"]) == {"ioi", "sva"}
    rows = matched[(matched["model"] == "toy") & (matched["other_model"] == "toy-seed1")].dropna(subset="value")
    assert set(rows["measure"]) >= {"edge_jaccard", "node_jaccard", "head_jaccard", "weighted_jaccard", "lifetimes"}
    assert rows.loc[rows["names"].isin(SIGNATURES), "value"].to_numpy() == pytest.approx(1, abs=1e-5)
    assert (rows.loc[(rows["names"] == "given") & (rows["measure"] == "edge_jaccard"), "value"] < 0.5).all()
    store, pair = Store(carried), ("toy", "toy-seed1")
    for task in ("ioi", "sva"):
        tables = [store.folder("matched_transfer", model, task).read_table(STEP) for model in pair]
        own = [table[table["names"] == "own"].iloc[0] for table in tables]
        rows = list(transfer_rows(store, pair, task))
        assert sorted(row["names"] for row in rows) == ["attention", "function", "given"]
        for row in rows:
            there = [t[(t["names"] == row["names"]) & t["from_model"].isin(pair)].iloc[0] for t in tables]
            columns = {"value": "faithfulness", "chance_floor": "random_floor", "shuffled_floor": "shuffled_floor"}
            for name, column in columns.items():
                assert row[name] == pytest.approx(np.mean([one[column] for one in there]))
            assert row["noise_floor"] == pytest.approx(np.mean([one["faithfulness"] for one in own]))


def test_a_model_of_other_depth_leaves_heads_and_edges_without_a_place(carried: Path) -> None:
    rows = Store(carried).folder("matched_transfer", "toy", "ioi").read_table(STEP)
    deep = rows[rows["from_model"] == "deep"].set_index("names")
    assert sorted(deep.index) == sorted(SIGNATURES)
    circuit = Store(carried).folder("graphs", "deep", "ioi").read_circuit(STEP)[0]
    assert (deep["n_edges"] + deep["n_dropped"] == circuit.n_edges).all()
    assert (deep["n_dropped"] > 0).all()


def test_what_was_carried_is_measured_again_when_the_matches_change(
    carried: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"model={carried / 'toy'}", "task=ioi", "n_prompts=20", "device=cpu", f"results_dir={carried}"]
    given += ["n_random=3", "eap.ig_steps=3", "attention=null", "matched_transfer=true"]
    folder, compared = Store(carried).folder("matched_transfer", "toy", "ioi"), ComparisonFolder(carried)
    before, run = folder.read_table(STEP), compared.read_run()
    matches = compared.read("matches")
    compared.write_all({"matches": matches.assign(matched=matches["signature"] == "function")}, run)
    assert main(CIRCUITS, given) == 0
    rows = folder.read_table(STEP).set_index(["from_model", "names"])
    assert rows.loc[("toy-seed1", "attention"), "n_edges"] < rows.loc[("toy-seed1", "function"), "n_edges"]
    compared.write_all({"matches": matches}, run)
    assert main(CIRCUITS, given) == 0
    assert folder.read_table(STEP).equals(before)
    capsys.readouterr()
    assert main(CIRCUITS, [*given, "level=node"]) == 2
    assert "matched_transfer: carries circuits of edges alone; leave out level=node" in capsys.readouterr().err
    compared.write_all({"matches": matches[:0]}, run)
    assert main(CIRCUITS, given) == 2
    assert "has no matches of toy; run: python compare_circuits.py " in capsys.readouterr().err


def test_a_model_without_others_is_told_that_it_takes_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"model={TOY}", "task=ioi", "device=cpu", f"results_dir={tmp_path}", "matched_transfer=true"]
    assert main(CIRCUITS, given) == 2
    assert "has no model but toy to take circuits from; measure circuits" in capsys.readouterr().err


@pytest.fixture(scope="module")
def signatures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, dict[Place, Place]]]:
    """Those of random models, of some with heads in other places, and of one of another shape."""
    root, was, models = tmp_path_factory.mktemp("signatures"), {}, []
    words().save_pretrained(root / "tokenizer")
    for kind in ("neox-parallel", "llama-grouped"):
        for seed, n_moved in ((0, 0), (0, 4), (0, 2), (1, 0), (2, 0)):
            model = random_model(kind, vocab=len(words()), seed=seed)
            name = f"{kind}-{seed}-{n_moved}"
            if n_moved:
                was[name] = permuted(model, 1, n_moved if kind == "neox-parallel" else 2)
            models.append(family(root / name, model, root / "tokenizer"))
    small = random_model(n_layers=2, n_heads=3, d_model=24, vocab=len(words()))
    models.append(family(root / "small", small, root / "tokenizer"))
    given = [f"model=[{', '.join(models)}]", "task=ioi", "n_prompts=20", "device=cpu", f"results_dir={root}"]
    assert main(SIGNATURES_OF_HEADS, given) == 0
    return Store(root), was


@pytest.mark.parametrize("signature", SIGNATURES)
def test_heads_of_real_models_find_themselves_and_unrelated_ones_find_nobody(
    signatures: tuple[Store, dict[str, dict[Place, Place]]], signature: Signature
) -> None:
    store, was = signatures
    config = ComparisonConfig(results_dir=store.root, permutations=99, resamples=100)

    def table(first: str, second: str) -> pd.DataFrame:
        pair = common_signatures(store, config, first, second)
        assert pair is not None
        return Matcher(*pair, signature, config.match).table(config)

    for name, heads in was.items():
        found = table(f"{name[:-1]}0", name)
        assert heads_of(found) == heads, name
        assert found["q_value"].max() <= 0.05, name
        # Of two groups of heads in three layers, every third deal keeps all twins apart.
        assert found["models_p_value"].max() <= (0.05 if name.startswith("neox") else 0.4), name
    unrelated = []
    for kind in ("neox-parallel", "llama-grouped"):
        unrelated += [table(*pair) for pair in combinations((f"{kind}-0-0", f"{kind}-1-0", f"{kind}-2-0"), 2)]
    heads = pd.concat(unrelated)
    assert heads["q_value"].min() > 0.05
    assert (heads["p_value"] <= 0.05).mean() <= 0.05
    assert 0.4 < heads["matched"].mean() < 0.85  # by chance about half of them
    # Of a test that is exact, a twentieth of many pairs would be: with more than one of six it were not.
    assert sum(found["models_p_value"].iloc[0] <= 0.05 for found in unrelated) <= 1
    other = table("neox-parallel-0-0", "small")
    assert 0 < len(other) <= 6
    assert other["models_p_value"].isna().all()
