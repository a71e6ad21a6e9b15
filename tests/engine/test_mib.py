"""CPR and CMD against the benchmark's own sums, by brute force and by hand."""

from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.circuit_size import SizeRule
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator, FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.mib import MIB_SHARES, MibAreas, mib_areas, mib_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from tests.support import eap_reference
from tests.support.random_models import HOOKED, random_model, random_pairs


def benchmark_areas(faithfulness: list[float]) -> tuple[float, float]:
    """Area under the curve and from 1, summed as the benchmark sums them: trapezoids between its ten shares."""
    under = from_one = 0.0
    for i in range(len(MIB_SHARES) - 1):
        width = MIB_SHARES[i + 1] - MIB_SHARES[i]
        under += width * (faithfulness[i] + faithfulness[i + 1]) / 2
        from_one += width * (abs(1 - faithfulness[i]) + abs(1 - faithfulness[i + 1])) / 2
    return under, from_one


@given(st.lists(st.floats(-2, 3), min_size=len(MIB_SHARES), max_size=len(MIB_SHARES)))
def test_areas_are_the_benchmarks_sums(values: list[float]) -> None:
    under, from_one = benchmark_areas(values)
    areas = MibAreas(tuple(values), tuple(values))
    assert areas.cpr == pytest.approx(under)
    assert areas.cmd == pytest.approx(from_one)


def test_a_perfect_method_has_the_whole_width() -> None:
    areas = MibAreas((1.0,) * 10, (1.0,) * 10)
    assert areas.cpr == pytest.approx(0.999)  # from .001 to 1
    assert areas.cmd == 0


@pytest.mark.parametrize("architecture", HOOKED)
def test_areas_equal_brute_force_on_random_models(architecture: str) -> None:
    """Edges sorted by hand, every circuit run node by node, nothing pruned: edges without a path change nothing."""
    model = random_model(architecture, n_layers=2, n_heads=2, d_model=16)
    weights = read_weights(model)
    graph = Graph.of(weights)
    clean, corrupted, lengths = random_pairs(3, lengths=(4, 6))
    metric = eap_reference.logit_diff_metric(97, 3)
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(0))
    edges = list(map(tuple, graph.edge_mask.nonzero().tolist()))

    def mean_metric(chosen: list[tuple[int, ...]]) -> float:
        mask = torch.zeros_like(graph.edge_mask)
        for edge in chosen:
            mask[edge] = True
        values = []
        for prompt, length in enumerate(lengths.tolist()):
            tokens = clean[prompt, :length], corrupted[prompt, :length]
            logits = eap_reference.patched_logits(model, *tokens, mask)
            values.append(float(metric(logits[None], torch.tensor([prompt]))[0]))
        return sum(values) / len(values)

    empty, full = mean_metric([]), mean_metric(edges)

    def curve(ranking: list[tuple[int, ...]]) -> list[float]:
        circuits = [ranking[: int(share * len(edges))] for share in MIB_SHARES]
        return [(mean_metric(circuit) - empty) / (full - empty) for circuit in circuits]

    by_score = curve(sorted(edges, key=lambda edge: -float(scores[edge])))
    by_strength = curve(sorted(edges, key=lambda edge: -abs(float(scores[edge]))))
    evaluator = CircuitEvaluator(weights, TokenPairs(clean, corrupted, lengths), metric, batch_size=2)
    areas = mib_areas(evaluator, scores)
    assert areas.by_score == pytest.approx(by_score, abs=1e-4)
    assert areas.by_strength == pytest.approx(by_strength, abs=1e-4)
    assert areas.cpr == pytest.approx(benchmark_areas(by_score)[0], abs=1e-4)
    assert areas.cmd == pytest.approx(benchmark_areas(by_strength)[1], abs=1e-4)


class Additive:
    """Stands in for an evaluator: every edge of a circuit adds a known amount to the metric."""

    def __init__(self, graph: Graph, amounts: dict[str, float], corrupted: float) -> None:
        self.graph = graph
        self.amounts = torch.zeros(graph.n_forward, graph.n_backward)
        for name, amount in amounts.items():
            self.amounts[graph.edge_index(name)] = amount
        self.corrupted = torch.tensor([corrupted, corrupted])
        self.full = self.corrupted + sum(amounts.values())

    def __call__(self, masks: Tensor) -> Tensor:
        return (masks * self.amounts).sum(dim=(1, 2))[:, None] + self.corrupted


def test_areas_of_a_hand_worked_graph() -> None:
    graph = Graph(1, 1, parallel=True)
    ranked = {"input->logits": 5.0, "a0.h0->logits": -4.0, "input->a0.h0<v>": 3.0, "input->m0": 2.0}
    ranked |= {"m0->logits": 1.0, "input->a0.h0<q>": 0.5, "input->a0.h0<k>": -0.25}
    scores = torch.zeros(graph.n_forward, graph.n_backward)
    for name, score in ranked.items():
        scores[graph.edge_index(name)] = score
    amounts = {"input->logits": 1.2, "a0.h0->logits": 0.5, "input->a0.h0<v>": 0.5, "input->m0": -0.2}
    evaluator = Additive(graph, amounts, corrupted=-1.0)
    areas = mib_areas(cast(CircuitEvaluator, evaluator), scores)
    # Of 7 edges the shares .2, .5, 1 are 1, 3, 7; smaller shares are none. By score the three best are input -> logits,
    # and two edges into nodes that lead nowhere; by strength input -> logits and the path through the head.
    assert areas.by_score == pytest.approx([0] * 7 + [0.6, 0.6, 1.0])
    assert areas.by_strength == pytest.approx([0] * 7 + [0.6, 1.1, 1.0])
    assert areas.cpr == pytest.approx(0.1 * 0.3 + 0.3 * 0.6 + 0.5 * 0.8)
    assert areas.cmd == pytest.approx(0.099 + 0.1 * 0.7 + 0.3 * 0.25 + 0.5 * 0.05)


def test_a_dip_that_no_searched_size_sees_is_in_the_areas() -> None:
    """A circuit of 20 edges keeps 90%, circuits of 1% to 50% of the edges 71%; the search stops before it sees them."""
    n_edges = Graph(12, 12, parallel=True).n_edges

    def faithfulness(size: int) -> float:
        if size == n_edges:
            return 1.0
        return 0.0 if size < 20 else 0.905 if size < 0.01 * n_edges - 1 else 0.71

    curve = FaithfulnessCurve(torch.ones(2), torch.zeros(2))

    def evaluate(sizes: list[int]) -> Tensor:
        return torch.tensor([[faithfulness(size)] * 2 for size in sizes])

    assert SizeRule(0.8).search(curve, evaluate, range(1, n_edges + 1)) == 20
    shares = np.array([0, *curve.sizes, n_edges]) / n_edges
    searched = np.array([0, *(curve.faithfulness(size) for size in curve.sizes), 1])
    assert np.trapezoid(np.abs(1 - searched), shares) == pytest.approx(0.048, abs=5e-4)
    of_shares = tuple(faithfulness(int(share * n_edges)) for share in MIB_SHARES)
    assert MibAreas(of_shares, of_shares).cmd == pytest.approx(0.216, abs=5e-4)


def test_circuits_hold_the_best_edges_wherever_they_stand() -> None:
    graph = Graph(2, 2, parallel=False)
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(1))
    by_score, by_strength = mib_masks(scores, graph, 1.0)
    assert torch.equal(by_score, graph.edge_mask)
    assert torch.equal(by_strength, graph.edge_mask)
    assert not mib_masks(scores, graph, 0.001).any()  # 47 edges: none
    positive = mib_masks(scores.abs(), graph, 0.5)
    assert torch.equal(positive[0], positive[1])
    by_score, by_strength = mib_masks(scores, graph, 0.2)
    assert (scores[by_score] > 0).all()
    assert (scores[by_strength] < 0).any()


def test_faithfulness_without_a_gap_is_refused() -> None:
    evaluator = Additive(Graph(1, 1, True), {}, corrupted=2.0)
    with pytest.raises(ValueError, match="the metric is 2 in the full and in the corrupted run"):
        mib_areas(cast(CircuitEvaluator, evaluator), torch.zeros(3, 5))
