"""Random circuits, knock-outs and the tests of a circuit against brute force and known answers."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.controls import DEALS, Controls, random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.hypothesis_tests import (
    LEVEL,
    N_REFERENCES,
    binomial_tail,
    equivalence,
    hsic,
    independence,
    inflated_circuits,
    minimality,
    necessity,
    run_tests,
    sufficiency,
)
from circuits_over_time.edge_attribution_patching.circuits.search import Signed, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.connected import prune
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from tests.support import eap_reference
from tests.support.random_models import random_model, random_pairs

graphs = st.builds(Graph, st.integers(1, 3), st.integers(1, 3), st.booleans())


def exact_tail(n: int, at_least: int, probability: float) -> float:
    """P(X >= at_least) of a binomial, by adding one trial after the other in exact fractions."""
    p = Fraction(probability)
    shares = [Fraction(1)]
    for _ in range(n):
        shares = [
            (shares[k] * (1 - p) if k < len(shares) else 0) + (shares[k - 1] * p if k else 0)
            for k in range(len(shares) + 1)
        ]
    return float(sum(shares[at_least:]))


def circuit_of(graph: Graph, seed: int, size: int) -> Circuit:
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(seed))
    scores = scores * graph.edge_mask
    return Circuit(graph, scores, top_n_masks(edge_order(scores, graph), graph, [min(size, graph.n_edges)])[0])


@settings(max_examples=30)
@given(graphs, st.integers(0, 50), st.integers(1, 40), st.booleans())
def test_random_circuits_have_the_size_and_are_the_first_of_their_deal_without_surplus_edges(
    graph: Graph, seed: int, size: int, signed: bool
) -> None:
    circuit = circuit_of(graph, seed, size)
    stable = torch.rand(circuit.scores.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    selection = Signed(stable, 0.5) if signed else None
    masks = random_circuits(circuit, 3, seed, signed=selection)
    assert torch.equal(masks, random_circuits(circuit, 3, seed, signed=selection))
    assert torch.equal(masks, prune(masks, graph))
    generator = np.random.default_rng(seed)
    for mask in masks:
        for _ in range(DEALS):
            deal = generator.permutation(graph.n_edges)
            dealt, dealt_stable = torch.zeros_like(circuit.scores), torch.zeros_like(stable)
            dealt[graph.edge_mask] = circuit.scores[graph.edge_mask][deal]
            dealt_stable[graph.edge_mask] = stable[graph.edge_mask][deal]
            order = edge_order(dealt, graph, signed=Signed(dealt_stable, 0.5) if signed else None)
            prefixes = top_n_masks(order, graph, range(len(order) + 1))
            left = next(prefix for prefix in prefixes if int(prefix.sum()) >= circuit.n_edges)
            # Edge by edge from the end of the order, as long as enough are left.
            again = int(left.sum()) > circuit.n_edges
            while again:
                again = False
                for u, v in reversed(order.tolist()):
                    shorter = left.clone()
                    shorter[u, v] = False
                    shorter = prune(shorter[None], graph)[0]
                    if left[u, v] and int(shorter.sum()) >= circuit.n_edges:
                        left, again = shorter, int(shorter.sum()) > circuit.n_edges
                        break
            if int(left.sum()) == circuit.n_edges:
                break
        assert torch.equal(mask, left)


def test_random_circuits_of_a_real_graph_have_the_circuits_size() -> None:
    graph = Graph(4, 4, parallel=True)
    for seed, size in enumerate((5, 9, 20, 50, 100)):
        circuit = circuit_of(graph, seed, size)
        assert (random_circuits(circuit, 20, seed).flatten(1).sum(1) == circuit.n_edges).all()


@pytest.fixture(scope="module")
def evaluator() -> CircuitEvaluator:
    pairs = TokenPairs(*random_pairs(12))
    return CircuitEvaluator(read_weights(random_model()), pairs, eap_reference.logit_diff_metric(97, 12))


def test_without_nothing_the_model_is_whole_and_without_everything_it_is_corrupted(
    evaluator: CircuitEvaluator,
) -> None:
    graph = evaluator.graph
    nothing, everything = torch.zeros_like(graph.edge_mask), graph.edge_mask.clone()
    scores = torch.zeros(graph.n_forward, graph.n_backward)
    controls = Controls.of(evaluator, Circuit(graph, scores, nothing), everything[None])
    torch.testing.assert_close(controls.without, evaluator.full, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(controls.random[0], evaluator.full, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(controls.without_random[0], evaluator.corrupted, rtol=1e-4, atol=1e-5)


@settings(max_examples=20)
@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 10))
def test_binomial_tails_are_exact(n: int, at_least: int, tenths: int) -> None:
    assert binomial_tail(n, at_least, tenths / 10) == pytest.approx(exact_tail(n, at_least, tenths / 10), rel=1e-9)


def test_a_circuit_that_wins_half_the_prompts_is_equivalent_and_one_that_always_loses_is_not() -> None:
    full = torch.arange(100.0)
    alternating = full + torch.tensor([1.0, -1.0]).repeat(50)
    assert equivalence(full, full).passes
    assert equivalence(alternating, full).statistic == 0.5
    assert equivalence(alternating, full).passes
    lower = equivalence(full - 1, full)
    assert lower.statistic == 0
    assert not lower.passes
    # 71 of 100 at a true share of at most .6: P(X >= 71) is below 5%, P(X >= 68) above.
    for wins, passes in ((71, False), (68, True)):
        outcome = equivalence(full + torch.where(torch.arange(100) < wins, 1.0, -1.0), full)
        assert outcome.p_value == pytest.approx(exact_tail(100, wins, 0.6))
        assert outcome.passes == passes


def test_hsic_is_the_trace_of_centred_kernels() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(9, generator=generator), torch.randn(9, generator=generator)
    _, _, statistic = hsic(x, y)
    kernels = []
    for values in (x.double().numpy(), y.double().numpy()):
        distance = np.abs(values[:, None] - values[None, :])
        width = torch.tensor(distance[distance > 0]).median().item()
        kernels.append(np.exp(-(distance**2) / (2 * width**2)))
    centre = np.eye(9) - 1 / 9
    assert statistic == pytest.approx(np.trace(kernels[0] @ centre @ kernels[1] @ centre) / 81)


def test_independence_is_rejected_for_what_depends_and_rarely_for_what_does_not() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(60, generator=generator)
    curved = independence(x**2 + 0.1 * torch.randn(60, generator=generator), x, seed=0)
    assert not curved.passes
    rejected = sum(
        not independence(torch.randn(25, generator=generator), torch.randn(25, generator=generator), seed).passes
        for seed in range(40)
    )
    assert rejected <= 6  # 2 of 40 expected; more than 6 has probability 1.4%


def test_minimality_counts_edges_that_matter_more_than_added_ones() -> None:
    references = torch.linspace(0, 1, 50)
    needed = minimality(torch.tensor([2.0, 0.99, 3.0]), references)
    assert needed.statistic == 1.0
    assert needed.passes
    idle = minimality(torch.tensor([2.0, 0.5, 3.0]), references)
    assert idle.statistic == pytest.approx(2 / 3)
    assert not idle.passes
    assert idle.p_value == pytest.approx(3 * exact_tail(50, 25, 0.1))


def test_sufficiency_and_necessity_count_the_random_circuits_beaten() -> None:
    full = torch.full((10,), 5.0)
    random = torch.zeros(50, 10)
    random[:2] = 5.0
    assert sufficiency(full - 0.1, full, random).statistic == pytest.approx(48 / 50)
    assert not sufficiency(full - 0.1, full, random).passes
    without_random = torch.full((50, 10), 4.0)
    outcome = necessity(torch.zeros(10), full, without_random)
    assert outcome.statistic == 1.0
    assert outcome.p_value == pytest.approx(0.9**50)
    assert outcome.passes


@given(graphs, st.integers(0, 20))
def test_inflated_circuits_add_a_path_and_lose_one_edge_of_it(graph: Graph, seed: int) -> None:
    circuit = circuit_of(graph, seed, 3)
    if circuit.n_edges == graph.n_edges:
        return
    inflated, reduced = inflated_circuits(circuit, 4, seed)
    for whole, without in zip(inflated, reduced, strict=True):
        assert bool((whole | ~circuit.in_circuit).all())
        assert bool((whole <= graph.edge_mask).all())
        added, lost = whole & ~circuit.in_circuit, whole & ~without
        assert int(lost.sum()) == 1
        assert bool((lost <= added).all())
        # The path is one: every node that an added edge leaves is on a path from `input` once it is joined with it.
        assert bool((added <= prune((whole | circuit.in_circuit)[None], graph)[0]).all())


def test_all_tests_of_a_circuit_are_reported(evaluator: CircuitEvaluator) -> None:
    circuit = circuit_of(evaluator.graph, 0, 6)
    controls = Controls.of(evaluator, circuit, random_circuits(circuit, N_REFERENCES, 0))
    own = evaluator(circuit.in_circuit[None])[0]
    outcomes = run_tests(evaluator, circuit, own, controls, seed=0)
    assert [outcome.test for outcome in outcomes] == [
        "equivalence", "independence", "minimality", "sufficiency", "necessity",
    ]  # fmt: skip
    for outcome in outcomes:
        assert 0 <= outcome.p_value <= 1
    minimal = outcomes[2]
    # By hand, edge by edge.
    changes = []
    for u, v in circuit.in_circuit.nonzero().tolist():
        less = circuit.in_circuit.clone()
        less[u, v] = False
        changes.append((evaluator(less[None])[0] - own).double().abs().mean())
    inflated, reduced = inflated_circuits(circuit, N_REFERENCES, 0)
    references = torch.stack(
        [
            (evaluator(one[None])[0] - evaluator(two[None])[0]).double().abs().mean()
            for one, two in zip(inflated, reduced, strict=True)
        ]
    )
    share = np.mean([float((change > references).double().mean()) > 0.9 for change in changes])
    assert minimal.statistic == pytest.approx(share)
    assert (minimal.p_value >= LEVEL) == minimal.passes
