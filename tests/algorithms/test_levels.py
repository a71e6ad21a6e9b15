"""Levels: percentages, intervals and reasons, and the hand-built transformer explained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.algorithms.keys import Thresholds
from circuits_over_time.utils.algorithms.levels import LEVELS
from circuits_over_time.utils.results.kinds import IOI_CONSISTENCY, IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS
from tests.support import ioi_transformer
from tests.support.ioi_setup import HEADS, facts_of, hand_built, random_setup, turned_around, without

DEFINITIONS = ["study", "frozen"]
GRAPH = Graph(3, 4, parallel=True)
VARIANTS = ["same_token_same_order", "same_token_opposite_order", "other_token_same_order"]
VARIANTS += ["other_token_opposite_order"]


def level_1(heads: pd.DataFrame) -> pd.DataFrame:
    return heads[heads["level"] == "name_movers"].set_index(["layer", "head"])


# --- percentages


def test_frozen_percentages_are_shares_of_the_circuits_effect() -> None:
    setup = random_setup("neox-parallel", definitions="frozen")
    facts = facts_of(GRAPH, copy={(2, 0): 11.0, (1, 1): 10.0}, cspa={(0, 2): 0.2, (1, 3): 0.1})
    found = setup.measure(without(facts, (2, 3)))
    assert list(found.levels) == list(IOI_CONSISTENCY.columns)
    assert list(found.heads) == list(IOI_CONSISTENCY_HEADS.columns)
    heads = level_1(found.heads)
    assert len(heads) == 11
    assert heads["in_circuit"].all()
    assert (2, 3) not in heads.index
    level = found.levels.set_index("level").loc["name_movers"]
    sizes = heads["effect"].abs()
    assert level["definitions"] == "frozen"
    assert level["circuit_effect"] == pytest.approx(sizes.sum())
    assert level["identified_effect"] == pytest.approx(sizes[heads["passes"]].sum())
    assert level["percent"] == pytest.approx(100 * level["identified_effect"] / level["circuit_effect"])
    assert level["percent_in_circuit"] == level["percent"]
    assert level["percent_low"] <= level["percent"] <= level["percent_high"]
    assert level["n_measured"] == 11


def test_the_study_looks_for_heads_in_the_whole_model_and_divides_by_the_circuits() -> None:
    setup = random_setup("neox-parallel")
    facts = facts_of(GRAPH, negative_copy={(2, 0): 11.0, (2, 3): 11.0})
    found = setup.measure(without(facts, (2, 3), (0, 1)))
    heads = level_1(found.heads)
    assert list(heads.index) == HEADS
    assert set(heads.index[~heads["in_circuit"]]) == {(2, 3), (0, 1)}
    level = found.levels.set_index("level").loc["name_movers"]
    sizes = heads["effect"].abs()
    circuit = sizes[heads["in_circuit"]].sum()
    assert level["circuit_effect"] == pytest.approx(circuit)
    assert level["identified_effect"] == pytest.approx(sizes[2, 0] + sizes[2, 3])
    assert level["percent"] == pytest.approx(100 * (sizes[2, 0] + sizes[2, 3]) / circuit)
    assert level["percent_in_circuit"] == pytest.approx(100 * sizes[2, 0] / circuit)
    assert (level["n_heads"], level["n_heads_in_circuit"], level["n_measured"]) == (2, 1, 12)


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_intervals_resample_the_prompts(definitions: str) -> None:
    setup = random_setup("neox-parallel", n_prompts=8, definitions=definitions)
    facts = facts_of(GRAPH, cspa={(2, 0): 0.9, (1, 1): 0.9})
    levels = setup.levels(facts)
    level = levels.run()[0].levels.iloc[0]
    patched = levels.definition.on_logits(levels.runs, HEADS).double().numpy()
    change = patched - levels.clean.double().numpy()
    rng = np.random.default_rng(0)
    resampled = [np.abs(change[:, rng.integers(0, 8, 8)].mean(axis=1)) for _ in range(4000)]
    shares = [100 * (sizes[HEADS.index((2, 0))] + sizes[HEADS.index((1, 1))]) / sizes.sum() for sizes in resampled]
    low, high = np.percentile(shares, [2.5, 97.5])
    assert level["percent_low"] == pytest.approx(low, abs=0.1 * (high - low))
    assert level["percent_high"] == pytest.approx(high, abs=0.1 * (high - low))


def test_a_single_prompt_has_no_interval() -> None:
    setup = random_setup("neox-parallel", n_prompts=1, definitions="study")
    found = setup.measure(facts_of(GRAPH, cspa={(2, 0): 0.9}))
    level = found.levels.iloc[0]
    assert level["percent"] > 0
    assert level[["percent_low", "percent_high", "logit_diff_se"]].isna().all()
    assert level_1(found.heads)[["effect_se", "p_value", "q_value"]].isna().all(axis=None)


def test_standard_errors_are_those_of_the_mean_where_the_effect_is_a_mean() -> None:
    setup = random_setup("neox-parallel", n_prompts=40)
    found = setup.measure(facts_of(GRAPH))
    clean = setup.runs().both()[0].double()
    assert found.levels["logit_diff"][0] == pytest.approx(float(clean.mean()), rel=1e-5)
    assert found.levels["logit_diff_se"][0] == pytest.approx(float(clean.std() / 40**0.5), rel=1e-5)


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_batches_and_memory_change_nothing(definitions: str) -> None:
    setup = random_setup("neox-parallel", definitions=definitions, thresholds=Thresholds(s_inhibition_effect=1.0))
    facts = facts_of(GRAPH, copy=dict.fromkeys(HEADS[4:], 50.0), induction={(0, 1): 0.5})
    found = setup.measure(facts)
    again = setup.measure(facts, batch_size=2, memory_budget_gb=1e-6)
    assert not found.signals.empty
    for name in ("levels", "heads", "signals"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(again, name), rtol=1e-3, atol=1e-4)


# --- reasons


@pytest.mark.parametrize("definitions", DEFINITIONS)
@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"status": "task not learned"}, ["no circuit: task not learned"] * 3),
        ({"edges": torch.zeros_like(GRAPH.edge_mask)}, ["no circuit: it holds no heads"] * 3),
        (
            {},
            [
                None,
                "no name movers: no head has a copy score above 10% and an effect below 0",
                "no S-inhibition heads: there are no name movers to inhibit",
            ],
        ),
    ],
)
def test_levels_without_receivers_are_empty_and_say_why(change: dict, reasons: list, definitions: str) -> None:
    setup = random_setup("neox-parallel", definitions=definitions)
    found = setup.measure(replace(facts_of(GRAPH), **change))
    assert list(found.levels["level"]) == list(LEVELS)
    limit, beyond = ("0", "") if definitions == "study" else ("-0.001", ", beyond their errors")
    expected = [reason and reason.replace("effect below 0", f"effect below {limit}{beyond}") for reason in reasons]
    assert [None if pd.isna(reason) else reason for reason in found.levels["reason"]] == expected
    empty = found.levels["reason"].notna()
    values = ["percent", "percent_in_circuit", "n_heads", "circuit_effect", "identified_effect"]
    assert found.levels.loc[empty, values].isna().all(axis=None)
    assert found.levels.loc[~empty, values].notna().all(axis=None)
    assert set(found.heads["level"]) == set(found.levels.loc[~empty, "level"])


@pytest.mark.parametrize(
    ("definitions", "reason"),
    [
        ("study", r"the logit difference is \S+, and \S+ in corrupted prompts: nothing can be lost"),
        ("frozen", r"the logit difference is -\S+, not above 0: nothing can be lost"),
    ],
)
def test_nothing_can_be_lost_where_the_unit_is_not_positive(definitions: str, reason: str) -> None:
    setup = turned_around(random_setup("neox-parallel", definitions=definitions))
    found = setup.measure(facts_of(GRAPH))
    assert found.levels["reason"].str.fullmatch(reason).all()
    assert found.levels["percent"].isna().all()


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_without_s_inhibition_heads_the_third_level_says_why(definitions: str) -> None:
    setup = random_setup("neox-parallel", definitions=definitions)
    facts = facts_of(GRAPH, copy=dict.fromkeys(HEADS[8:], 90.0))
    found = setup.measure(facts, thresholds=Thresholds(s_inhibition_effect=-9.0)).levels
    assert found["reason"][2] == "no S-inhibition heads: no effect on name movers' queries is below -9"
    assert found["percent"][1] == 0  # measured: heads do reach the name movers
    none_passes = Thresholds(s_inhibition_effect=9.0, attention_s1_change=1.0)
    found = setup.measure(facts, thresholds=none_passes).levels
    candidates = 12 if definitions == "frozen" else 8  # those with an edge into a name mover's query
    beyond = ", beyond their errors" if definitions == "frozen" else ""
    assert (
        found["reason"][2] == f"no S-inhibition heads: none of {candidates} candidates passes the signal test{beyond}"
    )


# --- the hand-built transformer


@pytest.mark.parametrize("keys", [{}, {"definitions": "frozen"}, {"definitions": "frozen", "through_mlps": True}])
def test_the_hand_built_algorithm_is_recovered_wholly(keys: dict) -> None:
    setup, facts = hand_built(**keys)
    found = setup.measure(facts)
    assert found.levels["percent"].to_list() == pytest.approx([100, 100, 100], abs=1e-3)
    assert found.levels["n_heads"].to_list() == [2, 1, 2]
    assert found.levels["reason"].isna().all()
    passing = found.heads[found.heads["passes"]]
    roles = {role: set(zip(group["layer"], group["head"], strict=True)) for role, group in passing.groupby("role")}
    assert roles == ioi_transformer.ROLES
    effects = passing.set_index("role")["effect"]
    # The corrupted prompt turns the answer around: all that can be lost in the study's unit, twice the clean one.
    everything = -1 if not keys else -2
    assert effects["name_mover"] + effects["copy_suppression"] == pytest.approx(everything, rel=1e-4)
    assert effects["copy_suppression"] > 0.5  # it lowers the name it attends to, and now that is S
    assert effects["s_inhibition"] == pytest.approx(effects["name_mover"], rel=1e-4)  # its queries do it all
    # Each of the two gives half of the position: half of everything, where the copy-suppression head follows too.
    half = -0.5 if not keys else -2
    assert effects[["induction", "duplicate_token"]].to_list() == pytest.approx([half, half], rel=1e-3)
    attention = passing.set_index("role")
    assert attention.loc["name_mover", "attention_io"] > 0.99
    assert attention.loc["s_inhibition", "attention_s2"] > 0.99
    assert attention.loc["duplicate_token", "attention_s1"] > 0.99


@pytest.mark.parametrize("definitions", DEFINITIONS)
def test_the_hand_built_head_inhibits_by_position_and_not_by_token(definitions: str) -> None:
    setup, facts = hand_built(definitions=definitions)
    signals = setup.measure(facts).signals
    assert list(signals) == list(IOI_CONSISTENCY_SIGNALS.columns)
    assert set(zip(signals["layer"], signals["head"], strict=True)) == {(2, 0)}
    by_variant = signals.set_index("variant")
    assert list(by_variant.index) == VARIANTS
    clean = by_variant.loc["same_token_same_order"]
    for name in VARIANTS:
        values = by_variant.loc[name, ["logit_diff", "attention_io", "attention_s1", "attention_s2"]].to_numpy(float)
        flipped = name.endswith("opposite_order")
        turned = -clean["logit_diff"]
        if definitions == "study":  # The name mover's query reads the exchange, the copy-suppression head's does not.
            turned = by_variant.loc["same_token_opposite_order", "logit_diff"]
            assert turned < -2 * clean["logit_diff"]
        expected = [turned, 0, 1, 0] if flipped else [clean["logit_diff"], 1, 0, 0]
        assert values == pytest.approx(expected, abs=1e-4), name


def test_a_head_that_does_not_move_the_name_movers_attention_fails() -> None:
    setup, facts = hand_built()
    unmoved = dict.fromkeys(setup.variants, setup.prompts.clean)  # every variant is the prompt itself
    found = replace(setup, variants=unmoved).measure(facts)
    row = found.heads.set_index(["level", "layer", "head"]).loc[("s_inhibition", 2, 0)]
    assert (row["role"], row["passes"]) == ("s_inhibition", False)
    assert found.levels["percent"].to_list()[1] == 0
