"""The criteria of each level on made-up scores and effects."""

from __future__ import annotations

from dataclasses import replace

import torch

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.ioi.effects import Exchange
from circuits_over_time.utils.ioi.keys import Thresholds
from circuits_over_time.utils.ioi.roles import (
    CLEAN,
    OPPOSITE_ORDER,
    holders,
    inhibition_roles,
    reading_roles,
    writing_roles,
)
from tests.support.ioi_setup import facts_of, without

ONE_LAYER = Graph(1, 6, parallel=True)
HEADS = [(0, head) for head in range(6)]


def test_name_movers_need_a_copy_score_and_an_effect_below_0() -> None:
    facts = facts_of(ONE_LAYER, copy=dict.fromkeys(HEADS[:3], 50.0) | {(0, 3): 10.0})
    effects = torch.tensor([-0.5, 0.00006, 0.0, -0.5, -0.5, -0.5])
    roles = writing_roles(HEADS, effects, facts, Thresholds(), negative_name_movers=True)
    assert holders(roles) == ((0, 0),)  # exactly on the threshold is not above it
    assert {head: role.name for head, role in roles.items()} == dict.fromkeys(HEADS[:3], "name_mover")


def test_copy_suppression_and_negative_name_movers_count_whatever_the_sign_of_their_effect() -> None:
    facts = facts_of(ONE_LAYER, cspa={(0, 0): 0.2, (0, 1): 0.2, (0, 2): 0.1}, negative_copy={(0, 3): 11, (0, 4): 11})
    effects = torch.tensor([0.5, -0.5, -0.5, 0.5, -0.5, -0.5])
    roles = writing_roles(HEADS, effects, facts, Thresholds(), negative_name_movers=True)
    assert holders(roles, "copy_suppression") == ((0, 0), (0, 1))
    assert holders(roles, "negative_name_mover") == ((0, 3), (0, 4))
    without_them = writing_roles(HEADS, effects, facts, Thresholds(), negative_name_movers=False)
    assert holders(without_them) == ((0, 0), (0, 1))


def test_a_head_of_several_roles_has_the_first_it_holds() -> None:
    everything = dict.fromkeys(HEADS, 90.0)
    facts = facts_of(ONE_LAYER, copy=everything, negative_copy=everything, cspa={(0, 0): 0.9, (0, 1): 0.9})
    facts.cspa[0, 2:] = torch.nan  # no score is no copy suppression
    effects = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    roles = writing_roles(HEADS, effects, facts, Thresholds(), negative_name_movers=True)
    assert [roles[head].name for head in HEADS[:4]] == [
        "name_mover",
        "copy_suppression",
        "name_mover",
        "negative_name_mover",
    ]


def test_an_s_inhibition_head_lowers_the_logit_difference_and_turns_the_name_movers_to_s1() -> None:
    #               all three            logit difference up   attends more to IO   attends less to S1
    changes = [(-1.0, -0.1, 0.1), (0.1, -0.1, 0.1), (-1.0, 0.1, 0.1), (-1.0, -0.1, -0.1)]
    reads = torch.tensor([[True, False]]).expand(4, -1)
    clean = Exchange(torch.full((4, 3), 2.0), torch.full((4, 2, 3), 0.3), reads)
    attention = clean.attention.clone()
    attention[:, 0, :2] += torch.tensor([change[1:] for change in changes])
    attention[:, 1] = 7.0  # of a name mover that does not read the candidate
    turned = Exchange(clean.logit_difference + torch.tensor([[change[0]] for change in changes]), attention, reads)
    roles = inhibition_roles(HEADS[:4], {CLEAN: clean, OPPOSITE_ORDER: turned}, Thresholds())
    assert holders(roles) == ((0, 0),)
    assert {role.name for role in roles.values()} == {"s_inhibition"}
    assert inhibition_roles([], {}, Thresholds()) == {}


def test_induction_and_duplicate_token_heads_need_the_score_and_the_effect() -> None:
    graph = Graph(1, 4, parallel=True)
    facts = facts_of(graph, induction={(0, 0): 0.9, (0, 2): 0.5}, duplicate_token={(0, 1): 0.8, (0, 2): 0.6})
    effects = torch.tensor([-0.0009, -0.5, -0.5, -0.5])
    roles = reading_roles([(0, head) for head in range(4)], effects, facts, Thresholds())
    assert {head: (role.name, role.passes) for (_, head), role in roles.items()} == {
        0: ("induction", False),
        1: ("duplicate_token", True),
        2: ("duplicate_token", True),  # 0.6 is 1.7 times its mean, 0.5 is 1.4 times its own
    }


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
