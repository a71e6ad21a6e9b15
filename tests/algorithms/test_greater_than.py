"""The greater-than levels: a hand-built transformer with known roles, closed forms, and passes done by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor
from transformers import GPT2LMHeadModel

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.paths import INPUT, Receivers
from circuits_over_time.utils.algorithms.greater_than import LEVELS, NODES, Levels, prepare, year_order
from circuits_over_time.utils.algorithms.inputs import FoundEdges
from circuits_over_time.utils.algorithms.keys import GreaterThanConsistencyConfig
from circuits_over_time.utils.algorithms.shares import Effects, random_percentages
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from get_greater_than_consistency import ANALYSIS
from tests.support import greater_than_transformer
from tests.support.paths import TOY, TOY_STEPS
from tests.support.random_models import ARCHITECTURES, random_model
from tests.support.task_tokenizers import words


def levels_of(
    model: GPT2LMHeadModel | None = None, architecture: str = "gpt2", status: str = "found", **keys: bool
) -> Levels:
    tokenizer = greater_than_transformer.tokenizer() if model is not None else words()
    weights = read_weights(model or random_model(architecture, n_layers=3, n_heads=2, d_model=16, vocab=len(words())))
    config = GreaterThanConsistencyConfig(model="any", n_prompts=30, require_stored=True, batch_size=16, **keys)
    graph = Graph.of(weights)
    inputs = prepare(config, tokenizer, weights)
    return Levels(weights, inputs, FoundEdges(graph, graph.edge_mask, status), config)


@pytest.fixture(scope="module")
def hand_built() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Levels and nodes of the hand-built transformer."""
    levels = levels_of(greater_than_transformer.greater_than_transformer())
    levels.run()
    return levels.table().set_index("level"), pd.DataFrame(levels.nodes).set_index(["level", "node"])


def test_every_role_of_the_hand_built_transformer_is_found(hand_built: tuple[pd.DataFrame, pd.DataFrame]) -> None:
    table, nodes = hand_built
    held = nodes[nodes["passes"]]
    assert held["role"].to_dict() == {
        ("mlps", "m2"): "year_mlp",
        ("heads", "a1.h0"): "year_head",
        ("inputs", "input"): "year_input",
        ("inputs", "m0"): "year_input",
    }
    assert table["percent"].to_list() == pytest.approx([100] * 3, abs=1e-3)
    assert held["effect"].loc[["mlps", "heads"]].to_list() == pytest.approx([-1, -1], abs=1e-5)
    assert held["effect"]["inputs", "input"] == pytest.approx(held["effect"]["inputs", "m0"], rel=1e-4)
    assert (held["q_value"] < 1e-6).all()


def test_scores_of_the_hand_built_transformer_are_those_of_its_parts(
    hand_built: tuple[pd.DataFrame, pd.DataFrame],
) -> None:
    _, nodes = hand_built
    raised = nodes.loc["mlps", ["above_diagonal", "above_diagonal_chance"]]
    assert raised.loc["m2", "above_diagonal"] == pytest.approx(1)
    # m1 raises 50 to 99 whatever YY is: what of these is above the YYs of its prompts.
    assert raised.loc["m1", "above_diagonal"] == pytest.approx(raised.loc["m1", "above_diagonal_chance"])
    starts = levels_of(greater_than_transformer.greater_than_transformer()).inputs.starts.numpy()
    assert raised.loc["m1", "above_diagonal"] == pytest.approx(np.minimum((99 - starts) / 50, 1).mean())
    assert raised.loc[["a1.h0"]].isna().all(axis=None)
    heads = nodes.loc["heads"]
    assert heads.loc[["a1.h0", "a1.h1"], "attention_yy"].to_list() == pytest.approx([1, 1])
    assert heads.loc["a0.h0", "attention_yy"] == pytest.approx(1 / 12)
    assert heads.loc["a1.h0", "year_order"] > 0.99
    assert heads.loc["a1.h1", "year_order"] == 0  # it tells the years apart, without order


def test_the_studys_fault_looks_for_yy_where_year_stands_and_so_finds_no_year_head() -> None:
    levels = levels_of(greater_than_transformer.greater_than_transformer(), study_faults=True)
    prompts = levels.prompts
    yy = int((prompts.clean[0] != prompts.corrupted[0]).int().argmax())
    assert greater_than_transformer.tokenizer().decode(prompts.clean[0, prompts.lengths[0] - 7]) == "year"
    assert yy == greater_than_transformer.YY != prompts.lengths[0] - 7
    levels.run()
    heads = pd.DataFrame(levels.nodes).set_index(["level", "node"]).loc["heads"]
    assert heads["attention_yy"].loc[["a1.h0", "a1.h1"]].to_list() == pytest.approx([0, 0], abs=1e-6)
    assert heads["attention_yy"]["a0.h0"] == pytest.approx(1 / 12)
    assert not heads["passes"].any()


def test_random_nodes_of_the_same_layers_have_the_share_that_counting_gives() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0], dtype=torch.float64)
    effects = Effects(values, values[None], values[:, None], torch.ones(1))
    layers, of = torch.tensor([0, 0, 0, 2, 2]), torch.tensor([True, True, False, False, True])
    drawn = random_percentages(effects, of, torch.ones(5, dtype=torch.bool), layers, 2000, seed=0)
    possible = [100 * (sum(two) + one) / 31 for two in itertools.combinations((1, 2, 4), 2) for one in (8, 16)]
    assert set(drawn.round(decimals=6).tolist()) == {round(share, 6) for share in possible}
    assert float(drawn.mean()) == pytest.approx(np.mean(possible), rel=0.02)


def test_year_order_is_that_of_projections_worked_out_one_by_one() -> None:
    generator = torch.Generator().manual_seed(3)
    starts = torch.tensor([5, 9, 40, 9, 77, 23, 61, 88, 12, 50])
    outputs = torch.randn(10, 3, 4, generator=generator, dtype=torch.float64)
    outputs[:, 2, 1] -= starts * 10.0  # the third head's fall with the year along one direction
    years = sorted(set(starts.tolist()))
    for head, (found, p_value) in enumerate(year_order(outputs, starts)):
        means = {year: outputs[starts == year, head].mean(0).numpy() for year in years}
        projected = []
        for year in years:
            others = [other for other in years if other != year]
            middle = np.mean([means[other] for other in others], axis=0)
            direction = sum((other - np.mean(others)) * means[other] for other in others)
            projected.append((means[year] - middle) @ direction)
        expected = stats.spearmanr(years, projected, alternative="greater")
        assert found == pytest.approx(expected.statistic)
        assert 0.5 <= p_value <= 1 if found < 0 else expected.pvalue <= p_value <= 0.5
    assert year_order(outputs, starts)[2][0] > 0.95
    distinct = torch.eye(12, dtype=torch.float64)[:, None]
    assert year_order(distinct, torch.arange(12) * 7) == [(0.0, 1.0)]


@pytest.mark.parametrize("n_years", [4, 10, 30])
@pytest.mark.parametrize("d_model", [1, 4, 64])
def test_heads_without_order_are_called_ordered_at_most_at_the_nominal_rate(n_years: int, d_model: int) -> None:
    """As of independent pairs, up to 12% of the p-values were at most 5%, and up to 5% at most 1%."""
    generator = torch.Generator().manual_seed(10 * n_years + d_model)
    outputs = torch.randn(n_years, 1000, d_model, generator=generator, dtype=torch.float64)
    p_values = np.array([p_value for _, p_value in year_order(outputs, torch.arange(n_years))])
    assert (p_values <= 0.05).mean() <= 0.063  # 5%, and two standard errors of 1,000 heads
    assert (p_values <= 0.01).mean() <= 0.016


def test_perfect_orders_have_p_values() -> None:
    rising = torch.arange(20, dtype=torch.float64)[:, None, None]
    ((order, p_value),) = year_order(rising, torch.arange(20))
    assert order > 0.99
    assert p_value < 1e-6


def by_hand(levels: Levels, model: GPT2LMHeadModel, row: int) -> tuple[Tensor, Tensor]:
    """PD of one prompt with the embedding, or a0.h1, patched at YY into the value of a1.h0, and so into m1 and m2."""
    prompts, n = levels.prompts, int(levels.prompts.lengths[row])
    yy = int((prompts.clean[row] != prompts.corrupted[row]).int().argmax())
    kept: dict[str, Tensor] = {}
    blocks = model.transformer.h
    for place, block in enumerate(blocks):
        for name in ("ln_1", "ln_2", "mlp"):
            getattr(block, name).register_forward_hook(
                lambda _, given, out, key=f"{name}{place}": kept.update({key: out[0], f"{key}_in": given[0][0]})
            )
        block.attn.c_proj.register_forward_hook(lambda _, given, out, key=f"z{place}": kept.update({key: given[0][0]}))
    found, pd_of = [], prompts.metric("prob_diff")
    with torch.no_grad():
        runs = []
        for tokens in (prompts.clean, prompts.corrupted):
            out = model(tokens[row : row + 1, :n], output_attentions=True, output_hidden_states=True)
            runs.append((dict(kept), out))
        (clean, out), (corrupted, other) = runs
        width = model.config.n_embd // model.config.n_head
        head_0_1, head_1_0 = slice(width, 2 * width), slice(0, width)
        of_embedding = other.hidden_states[0][0, yy] - out.hidden_states[0][0, yy]
        of_head = (corrupted["z0"] - clean["z0"])[yy, head_0_1] @ blocks[0].attn.c_proj.weight[head_0_1]
        W_V = blocks[1].attn.c_attn.weight[:, 2 * model.config.n_embd :][:, head_1_0]
        for change in (of_embedding, of_head):
            read = blocks[1].ln_1(clean["ln_11_in"][yy] + change) - clean["ln_11"][yy]
            z = out.attentions[1][0, 0, -1, yy] * (read @ W_V)
            written = z @ blocks[1].attn.c_proj.weight[head_1_0]
            change = sum(
                blocks[layer].mlp(blocks[layer].ln_2(clean[f"ln_2{layer}_in"][-1:] + written))[0]
                - clean[f"mlp{layer}"][-1]
                for layer in (1, 2)
            )
            final = (blocks[2].mlp(clean["ln_22"])[-1] + clean["ln_22_in"][-1] + change)[None]
            logits = model.lm_head(model.transformer.ln_f(final))
            found.append(pd_of(logits, torch.tensor([row])))
    return found[0], found[1]


def test_paths_into_values_at_yy_and_on_through_mlps_are_those_done_by_hand() -> None:
    model = random_model("gpt2", n_layers=3, n_heads=2, d_model=16, vocab=len(words()))
    levels = levels_of()  # of the same model
    stages = (Receivers(((1, 0),), "v"), Receivers(((0, None), (1, None), (2, None))))
    patched = levels.runs.along_paths((INPUT, (0, 1)), stages, only_at_the_difference=True)
    expected = torch.stack([torch.cat(by_hand(levels, model, row)) for row in range(4)], dim=1)
    torch.testing.assert_close(patched[:, :4], expected, rtol=1e-4, atol=1e-7)
    assert float((patched - levels.clean).abs().min(dim=1).values.max()) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_paths_are_defined_on_every_architecture(architecture: str) -> None:
    levels = levels_of(architecture=architecture)
    if not float(levels.clean.mean()) > float(levels.corrupted.mean()):  # Make something that can be lost.
        levels.clean, levels.corrupted = levels.corrupted, levels.clean
    senders = [(layer, head) for layer in range(3) for head in (0, 1, None)]
    into = Receivers(((1, None), (2, None)))
    for stages in ((), (into,), (Receivers(((1, 0), (2, 1)), "v"), into)):
        values = levels.runs.along_paths(senders, stages, only_at_the_difference=len(stages) == 2)
        assert values.isfinite().all()
        assert bool((values != levels.clean).any()) or bool((values != levels.corrupted).any())


def test_too_few_years_to_tell_an_order_are_the_reason_where_there_are_no_year_heads() -> None:
    levels = levels_of(greater_than_transformer.greater_than_transformer())
    starts = levels.inputs.starts
    rows = torch.tensor([int((starts == year).nonzero()[0]) for year in starts.unique()[::7][:4]]).repeat(6)
    some = replace(levels.inputs, prompts=levels.prompts.select(rows), starts=starts[rows])
    levels = Levels(levels.weights, some, levels.circuit, levels.config)  # 2 / 4! is above 0.05 / 6
    levels.run()
    assert levels.table().set_index("level")["reason"]["inputs"] == (
        "no year heads: YY has 4 values here, too few to tell an order from chance among 6 heads"
    )


def test_without_a_circuit_or_without_the_task_the_levels_say_why() -> None:
    untrained = levels_of(status="task not learned")
    untrained.run()
    assert set(untrained.table()["reason"]) == {"no circuit: task not learned"}
    nothing = levels_of()
    nothing.clean = nothing.corrupted
    nothing.run()
    assert nothing.table()["reason"].str.contains("nothing can be lost").all()
    assert nothing.nodes == []


def test_the_script_writes_both_tables_and_goes_on_where_it_stopped(tmp_path) -> None:
    keys = [f"model={TOY}", f"checkpoints=[{TOY_STEPS[-1]}]", "circuit.heads=all", "device=cpu"]
    keys.append(f"results_dir={tmp_path}")
    assert main(ANALYSIS, keys) == 0
    store = Store(tmp_path)
    levels, nodes = (store.folder(kind, TOY.name) for kind in (LEVELS, NODES))
    table = levels.read_table(TOY_STEPS[-1])
    assert list(table)[3:] == list(LEVELS.columns)
    assert list(nodes.read_table(TOY_STEPS[-1]))[3:] == list(NODES.columns)
    assert table["level"].to_list() == ["mlps", "heads", "inputs"]
    assert table["percent"].between(1, 100).all()
    assert levels.read_json(TOY_STEPS[-1]) == {"inputs": {"circuit": "all heads"}}
    written = levels.file(TOY_STEPS[-1]).stat().st_mtime_ns
    assert main(ANALYSIS, keys) == 0
    assert levels.file(TOY_STEPS[-1]).stat().st_mtime_ns == written


@pytest.mark.parametrize("task", ["my.csv", "sva"])
def test_another_task_is_refused_in_a_line_that_says_which_script_takes_it(
    task: str, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(ANALYSIS, [f"model={TOY}", f"task={task}", f"results_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "command line: task: roles are those of greater_than, in prompts of its own; leave it out; "
        "get_circuits_over_time.py takes any task and file"
    ]
