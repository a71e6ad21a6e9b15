"""Both definitions of an effect, at all three levels, against forward passes with hooks: one sender, one prompt."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.patching.paths import Head, Receivers
from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig, Thresholds
from circuits_over_time.utils.algorithms.tables import Consistency
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.keys import load_config
from tests.support.float64 import Float64
from tests.support.ioi_setup import HEADS, Setup, facts_of, random_setup
from tests.support.path_patching_reference import Hooked, path_patched_logits, recomputed_after
from tests.support.random_models import HOOKED

# Every head that a name mover reads passes, so that the third level has receivers in two layers.
LAX = Thresholds(
    s_inhibition_effect=9.0,
    logit_diff_change=9.0,
    attention_io_change=1.0,
    attention_s1_change=-1.0,
    induction_effect=9.0,
)
IN_TWO_LAYERS = [(1, 0), (1, 2), (2, 1), (2, 3)]
ON_TOP = [(2, 0), (2, 1), (2, 2), (2, 3)]


def measured(architecture: str, planted: list[Head] = IN_TWO_LAYERS, **keys) -> tuple[Setup, Consistency]:
    setup = random_setup(architecture, float64=True, n_prompts=3, thresholds=LAX, **keys)
    graph = Graph.of(setup.weights)
    scores = {"induction": dict.fromkeys([(0, 1), (1, 3)], 0.9)}
    return setup, setup.measure(facts_of(graph, copy=dict.fromkeys(planted, 90.0), **scores))


def held(found: Consistency, level: str, role: str) -> tuple[Head, ...]:
    rows = found.heads[(found.heads["level"] == level) & found.heads["passes"] & (found.heads["role"] == role)]
    return tuple(zip(rows["layer"], rows["head"], strict=True))


def expected_effects(setup: Setup, patched, unit: float) -> list[float]:
    """The effect of every head, from logits under a patch of one prompt and one sender."""
    clean = mean_logit_diff(setup, lambda clean, _: Hooked(setup.model).run(clean).logits)
    return [(mean_logit_diff(setup, partial(patched, sender=sender)) - clean) / unit for sender in HEADS]


def mean_logit_diff(setup: Setup, logits) -> float:
    pairs = [setup.pair(setup.prompts.corrupted, row) for row in range(3)]
    with Float64():
        return float(np.mean([setup.logit_diff(logits(*pair), row) for row, pair in enumerate(pairs)]))


def check(found: Consistency, level: str, expected: list[float]) -> None:
    """Every head's effect and the level's percentage."""
    heads = found.heads[found.heads["level"] == level]
    assert list(zip(heads["layer"], heads["head"], strict=True)) == HEADS
    np.testing.assert_allclose(heads["effect"], expected, rtol=1e-7, atol=1e-9)
    assert max(np.abs(expected)) > 1e-5  # the path does something
    sizes = np.abs(expected)
    row = found.levels.set_index("level").loc[level]
    assert row["percent"] == pytest.approx(100 * sizes[heads["passes"]].sum() / sizes.sum(), rel=1e-6)
    assert row["circuit_effect"] == pytest.approx(sizes.sum(), rel=1e-6)


@pytest.mark.parametrize("architecture", HOOKED)
def test_the_studys_effects_equal_three_runs_with_hooks(architecture: str) -> None:
    setup, found = measured(architecture)
    model = setup.model
    movers, inhibitors = held(found, "name_movers", "name_mover"), held(found, "s_inhibition", "s_inhibition")
    assert len({layer for layer, _ in movers}) > 1
    assert len({layer for layer, _ in inhibitors}) > 1
    corrupted = mean_logit_diff(setup, lambda _, other: Hooked(model).run(other).logits)
    unit = mean_logit_diff(setup, lambda clean, _: Hooked(model).run(clean).logits) - corrupted
    assert set(found.levels["unit"]) == {"LD_clean - LD_corrupted"}
    np.testing.assert_allclose(found.levels["corrupted_logit_diff"], corrupted, rtol=1e-6)

    def to_receivers(clean, other, sender, receivers):
        return recomputed_after(model, clean, other, sender, receivers).logits

    on_logits = partial(path_patched_logits, model, through_mlps=True)
    check(found, "name_movers", expected_effects(setup, on_logits, unit))
    on_queries = partial(to_receivers, receivers=Receivers(movers, "q"))
    check(found, "s_inhibition", expected_effects(setup, on_queries, unit))
    on_values = partial(to_receivers, receivers=Receivers(inhibitors, "v"))
    check(found, "induction", expected_effects(setup, on_values, unit))


@pytest.mark.parametrize(
    ("architecture", "through_mlps"),
    [("neox-parallel", False), ("neox-parallel", True), ("neox-sequential", True), ("gpt2", False)],
)
def test_frozen_effects_equal_forward_passes_with_hooks(architecture: str, through_mlps: bool) -> None:
    setup, found = measured(architecture, ON_TOP, definitions="frozen", through_mlps=through_mlps)
    model = setup.model
    movers, inhibitors = held(found, "name_movers", "name_mover"), held(found, "s_inhibition", "s_inhibition")
    unit = mean_logit_diff(setup, lambda clean, _: Hooked(model).run(clean).logits)
    assert set(found.levels["unit"]) == {"LD_clean"}
    queries, values = Receivers(movers, "q"), Receivers(inhibitors, "v")
    stages = {"name_movers": (), "s_inhibition": (queries,), "induction": (values, queries)}
    for level, path in stages.items():
        patched = partial(path_patched_logits, model, stages=path, through_mlps=through_mlps)
        check(found, level, expected_effects(setup, patched, unit))


def test_the_study_asks_for_an_edge_of_the_circuit_into_a_name_movers_query() -> None:
    setup, found = measured("neox-parallel")
    mover = held(found, "name_movers", "name_mover")[-1]
    facts = facts_of(Graph.of(setup.weights), copy={mover: 90.0})
    facts.edges[:] = False
    graph = facts.graph
    facts.edges[graph.head(0, 2), graph.head_input(*mover, "q")] = True
    facts.edges[graph.head(0, 3), graph.head_input(*mover, "k")] = True
    facts.edges[graph.head(*mover), graph.logits] = True
    found = setup.measure(facts)
    assert held(found, "s_inhibition", "s_inhibition") == ((0, 2),)
    assert set(zip(found.signals["layer"], found.signals["head"], strict=True)) == {(0, 2)}
    facts.edges[graph.head(0, 2)] = False
    levels = setup.measure(facts).levels
    reason = "no S-inhibition heads: no edge of the circuit joins any of 12 candidates to a name mover's query"
    assert levels["reason"][2] == reason


def test_the_study_leaves_copy_suppression_heads_out_of_the_third_levels_receivers() -> None:
    setup, found = measured("gpt2")
    movers = held(found, "name_movers", "name_mover")
    inhibitors = held(found, "s_inhibition", "s_inhibition")
    suppressing = dict.fromkeys(inhibitors[1:], 0.5)
    facts = facts_of(Graph.of(setup.weights), copy=dict.fromkeys(movers, 90.0), cspa=suppressing)
    counts = setup.measure(facts).levels.set_index("level")["n_receivers"]
    assert counts["induction"] == 1
    facts.cspa[inhibitors[0]] = 0.5
    last = setup.measure(facts).levels.iloc[2]
    assert last["reason"] == "no receivers: every S-inhibition head is a copy-suppression head too"
    assert pd.isna(last["percent"])


@pytest.mark.parametrize("definitions", ["standard", "study"])
def test_the_study_always_counts_paths_through_mlps(definitions: str) -> None:
    with pytest.raises(UserError, match=f"through_mlps: definitions={definitions} counts paths through MLPs anyway"):
        load_config(IoiConsistencyConfig, None, ["model=any", "through_mlps=true", f"definitions={definitions}"])
    load_config(IoiConsistencyConfig, None, ["model=any", "through_mlps=true", "definitions=frozen"])
