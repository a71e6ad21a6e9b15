"""The criteria of each level on made-up scores and effects, by the study's rule and beyond their errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.algorithms.effects import Exchange
from circuits_over_time.utils.algorithms.keys import Thresholds
from circuits_over_time.utils.algorithms.roles import (
    CLEAN,
    OPPOSITE_ORDER,
    Evidence,
    Role,
    give_roles,
    holders,
    inhibition_roles,
    reading_roles,
    writing_roles,
)
from tests.support.ioi_setup import effects_of, facts_of, without

ONE_LAYER = Graph(1, 6, parallel=True)
HEADS = [(0, head) for head in range(6)]
STUDY, RATE = None, 0.05


def first_level(facts, effects, rate=STUDY, negative=True) -> dict[tuple[int, int], Role]:
    given = HEADS, effects, facts, Thresholds()
    return give_roles(HEADS, writing_roles(*given, negative_name_movers=negative, study=rate is None), rate)


def test_name_movers_need_a_copy_score_and_an_effect_below_0() -> None:
    facts = facts_of(ONE_LAYER, copy=dict.fromkeys(HEADS[:3], 50.0) | {(0, 3): 10.0})
    roles = first_level(facts, effects_of(-0.5, 0.00006, 0.0, -0.5, -0.5, -0.5))
    assert holders(roles) == ((0, 0),)  # exactly on the threshold is not above it
    assert {head: role.name for head, role in roles.items() if role.name} == dict.fromkeys(HEADS[:3], "name_mover")


def test_copy_suppression_and_negative_name_movers_count_whatever_the_sign_of_their_effect() -> None:
    facts = facts_of(ONE_LAYER, cspa={(0, 0): 0.2, (0, 1): 0.2, (0, 2): 0.1}, negative_copy={(0, 3): 11, (0, 4): 11})
    effects = effects_of(0.5, -0.5, -0.5, 0.5, -0.5, -0.5)
    for rate in (STUDY, RATE):
        roles = first_level(facts, effects, rate)
        assert holders(roles, "copy_suppression") == ((0, 0), (0, 1))
        assert holders(roles, "negative_name_mover") == ((0, 3), (0, 4))
    assert holders(first_level(facts, effects, negative=False)) == ((0, 0), (0, 1))


def test_a_head_of_several_roles_has_the_first_it_holds() -> None:
    everything = dict.fromkeys(HEADS, 90.0)
    facts = facts_of(ONE_LAYER, copy=everything, negative_copy=everything, cspa={(0, 0): 0.9, (0, 1): 0.9})
    facts.cspa[0, 2:] = torch.nan  # no score is no copy suppression
    roles = first_level(facts, effects_of(-1.0, 1.0, -1.0, 1.0, 1.0, 1.0))
    assert [roles[head].name for head in HEADS[:4]] == [
        "name_mover",
        "copy_suppression",
        "name_mover",
        "negative_name_mover",
    ]


def test_by_default_an_effect_within_its_error_makes_no_name_mover() -> None:
    facts = facts_of(ONE_LAYER, copy=dict.fromkeys(HEADS[:2], 50.0))
    effects = effects_of(-0.02, -0.006, 0, 0, 0, 0, errors=0.0025)  # 8 and 2.4 standard errors
    assert holders(first_level(facts, effects)) == ((0, 0), (0, 1))
    roles = first_level(facts, effects, RATE)
    assert holders(roles) == ((0, 0),)
    assert roles[0, 1].name == "name_mover"  # a candidate
    # 18 tests: 6 heads in 3 roles. 2 standard errors below -0.001 are enough for one head alone.
    p_value = stats.t.sf(2, 19)
    assert roles[0, 1].p_value == pytest.approx(p_value)
    assert roles[0, 1].q_value == pytest.approx(p_value * 18 / 2)
    assert p_value < RATE < roles[0, 1].q_value


def test_by_default_an_effect_that_is_sure_but_tiny_makes_no_role() -> None:
    """Effects of less than a thousandth mostly rest on few prompts, which others may lack."""
    facts = facts_of(ONE_LAYER, copy=dict.fromkeys(HEADS[:2], 50.0), negative_copy=dict.fromkeys(HEADS[2:4], 50.0))
    effects = effects_of(-0.0009, -0.0011, 0.0009, 0.0011, 0.0, 0.0)
    assert holders(first_level(facts, effects)) == tuple(HEADS[:4])
    assert holders(first_level(facts, effects, RATE)) == ((0, 1), (0, 3))


def test_by_default_a_score_within_its_error_is_none() -> None:
    facts = facts_of(ONE_LAYER, cspa={(0, 0): 0.2, (0, 1): 0.2}, copy={(0, 2): 30.0, (0, 3): 30.0})
    facts.errors["cspa"][0, 1], facts.errors["copy"][0, 3] = 0.1, 15.0
    effects = effects_of(*[-0.5] * 6)
    assert holders(first_level(facts, effects)) == tuple(HEADS[:4])
    roles = first_level(facts, effects, RATE)
    assert holders(roles) == ((0, 0), (0, 2))
    assert roles[0, 1].p_value == pytest.approx(stats.t.sf(1, 19))
    assert roles[0, 3].p_value == pytest.approx(stats.t.sf(20 / 15, 19))


def test_without_a_unit_beyond_its_error_no_effect_is() -> None:
    facts = facts_of(ONE_LAYER, copy=dict.fromkeys(HEADS, 50.0))
    effects = effects_of(*[-0.5] * 6)
    unsure = replace(effects, divisor=torch.tensor([40.0, -38.0] * 10, dtype=torch.float64))
    assert len(holders(first_level(facts, effects, RATE))) == 6
    assert len(holders(first_level(facts, unsure))) == 6
    assert holders(first_level(facts, unsure, RATE)) == ()


def test_no_p_value_is_no_test_and_no_role() -> None:
    true = np.ones(2, bool)
    roles = give_roles(HEADS[:2], [Evidence("name_mover", true, true, np.array([np.nan, 0.01]))], RATE)
    assert (roles[0, 0].passes, roles[0, 1]) == (False, Role("name_mover", True, 0.01, 0.01))


def exchanged(changes: list[tuple[float, float, float]], noise: float = 0.0) -> dict[str, Exchange]:
    """Two variants of the prompt that differ by these changes of LD and of attention to IO and S1, with some noise."""
    n = len(changes)
    reads = torch.tensor([[True, False]]).expand(n, -1)
    clean = Exchange(torch.full((n, 4), 2.0), torch.full((n, 2, 4, 3), 0.3), reads)
    errors = noise * torch.tensor([-1.0, 1.0, -1.0, 1.0])
    attention = clean.attention.clone()
    attention[:, 0, :, :2] += torch.tensor([change[1:] for change in changes])[:, None] + errors[:, None]
    attention[:, 1] = 7.0  # of a name mover that does not read the candidate
    logit_diff = clean.logit_difference + torch.tensor([[change[0]] for change in changes]) + errors
    return {CLEAN: clean, OPPOSITE_ORDER: Exchange(logit_diff, attention, reads)}


def test_an_s_inhibition_head_lowers_the_logit_difference_and_turns_the_name_movers_to_s1() -> None:
    #               all three            logit difference up   attends more to IO   attends less to S1
    changes = [(-1.0, -0.1, 0.1), (0.1, -0.1, 0.1), (-1.0, 0.1, 0.1), (-1.0, -0.1, -0.1)]
    certain = np.zeros(6)
    for rate in (STUDY, RATE):
        level = inhibition_roles(HEADS, HEADS[:4], certain, exchanged(changes), Thresholds())
        roles = give_roles(HEADS, level, rate)
        assert holders(roles) == ((0, 0),)
        assert [roles[head].name for head in HEADS] == ["s_inhibition"] * 4 + [""] * 2
    assert holders(give_roles(HEADS, inhibition_roles(HEADS, [], certain, {}, Thresholds()), STUDY)) == ()


def test_by_default_the_signal_of_an_s_inhibition_head_is_beyond_its_error() -> None:
    changes, certain = [(-1.0, -0.1, 0.1), (-1.0, -0.3, 0.3)], np.zeros(6)
    for noise, expected in ((0.0, ((0, 0), (0, 1))), (0.1, ((0, 1),))):  # 1.7 and 5.2 standard errors
        level = inhibition_roles(HEADS, HEADS[:2], certain, exchanged(changes, noise), Thresholds())
        assert holders(give_roles(HEADS[:6], level, STUDY)) == ((0, 0), (0, 1))
        assert holders(give_roles(HEADS, level, 0.07)) == expected
    assert level[0].p_values[0] == pytest.approx(stats.t.sf(0.1 / (0.1 / 3**0.5), 3), rel=1e-4)


def test_induction_and_duplicate_token_heads_need_the_score_and_the_effect() -> None:
    graph = Graph(1, 4, parallel=True)
    facts = facts_of(graph, induction={(0, 0): 0.9, (0, 2): 0.5}, duplicate_token={(0, 1): 0.8, (0, 2): 0.6})
    effects = effects_of(-0.0009, -0.5, -0.5, -0.5)
    heads = [(0, head) for head in range(4)]
    roles = give_roles(heads, reading_roles(heads, effects, facts, Thresholds(), over_chance=False), STUDY)
    assert {head: (role.name, role.passes) for (_, head), role in roles.items() if role.name} == {
        0: ("induction", False),
        1: ("duplicate_token", True),
        2: ("duplicate_token", True),  # 0.6 is 1.7 times its mean, 0.5 is 1.4 times its own
    }


def test_by_default_a_score_above_the_mean_must_be_above_chance_and_beyond_its_error() -> None:
    """Half of an untrained model's heads are above the mean, some beyond their errors; all are near chance."""
    scores = {(0, 0): 0.05, (0, 1): 0.052, (0, 2): 0.0505, (0, 3): 0.2, (0, 4): 0.2}
    facts = replace(facts_of(ONE_LAYER, induction=scores), chance={"induction": 0.05, "duplicate_token": 0.05})
    effects = effects_of(*[-0.5] * 6)
    facts.errors["induction"][0, 4] = 0.1

    def found(over_chance: bool, rate: float | None) -> tuple:
        level = reading_roles(HEADS, effects, facts, Thresholds(score_over_mean=0.5), over_chance=over_chance)
        return holders(give_roles(HEADS, level, rate))

    assert found(False, STUDY) == tuple(HEADS[:5])
    assert found(True, STUDY) == ((0, 3), (0, 4))
    assert found(True, RATE) == ((0, 3),)


def test_the_circuits_heads_and_its_edges_into_queries() -> None:
    graph = Graph(2, 3, parallel=True)
    facts = without(facts_of(graph), (1, 2))
    assert facts.circuit_heads == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    edges = torch.zeros_like(facts.edges)
    for name in ("input->a0.h1<v>", "a0.h1->a1.h0<q>", "a0.h2->a1.h1<k>", "a1.h0->logits"):
        edges[graph.edge_index(name)] = True
    facts = replace(facts, edges=edges)
    assert facts.circuit_heads == [(0, 1), (0, 2), (1, 0), (1, 1)]
    assert facts.writes_to_queries((0, 1), [(1, 1), (1, 0)])
    assert not facts.writes_to_queries((0, 1), [(1, 1)])
    assert not facts.writes_to_queries((0, 2), [(1, 0), (1, 1)])
