"""The parts of the patched forward by themselves: plans, and runs that are kept or prepared again."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import GB, TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.plan import BASE, COMPUTED, SOURCE, Plan
from circuits_over_time.edge_attribution_patching.patching.runs import PreparedBatches, run_metric
from tests.support.eap_reference import logit_diff_metric
from tests.support.random_models import random_model, random_pairs


def mask_of(graph: Graph, *edges: str) -> torch.Tensor:
    mask = torch.zeros_like(graph.edge_mask)
    for edge in edges:
        mask[graph.edge_index(edge)] = True
    return mask


def test_full_and_empty_masks_leave_nothing_to_compute() -> None:
    graph = Graph(2, 2, parallel=False)
    plan = Plan.of(graph, torch.stack([graph.edge_mask, torch.zeros_like(graph.edge_mask)]))
    assert (plan.inputs[0] == SOURCE).all()
    assert (plan.inputs[1] == BASE).all()
    assert not plan.needed.any()


def test_only_nodes_on_a_path_to_the_logits_are_needed() -> None:
    graph = Graph(2, 2, parallel=True)
    mask = mask_of(graph, "input->a0.h1<v>", "a0.h1->a1.h0<q>", "a1.h0->logits", "input->m0", "m0->a1.h1<k>")
    plan = Plan.of(graph, mask[None])
    needed = {graph.forward_nodes[u] for u in plan.needed[0].nonzero()[:, 0].tolist()}
    assert needed == {"a0.h1", "a1.h0"}
    states = dict(zip(graph.backward_nodes, plan.inputs[0].tolist(), strict=True))
    assert states["a0.h1<v>"] == SOURCE  # it reads the input alone
    assert states["a0.h1<q>"] == BASE
    assert states["a1.h0<q>"] == COMPUTED
    assert states["m0"] == SOURCE
    assert plan.nodes[0, graph.head(0, 1)] == COMPUTED  # its v is the source's, its q and k are not


@given(st.integers(0, 10**6), st.sampled_from([1.0, 1e4, 1e5, 1e9]))
def test_stacks_hold_every_mask_once_within_the_budget(seed: int, budget: float) -> None:
    graph = Graph(2, 2, parallel=True)
    generator = torch.Generator().manual_seed(seed)
    masks = (
        torch.rand(9, graph.n_forward, graph.n_backward, generator=generator)
        < torch.rand(9, generator=generator)[:, None, None]
    )
    plan, token_bytes = Plan.of(graph, masks), 1000
    stacks = list(plan.stacks(budget, token_bytes))
    assert [mask for stack in stacks for mask in range(9)[stack]] == list(range(9))
    for stack in stacks:
        held = len(range(9)[stack]) * (int(plan.needed[stack].any(0).sum()) + 1) * token_bytes
        assert held <= budget or len(range(9)[stack]) == 1


def test_runs_are_kept_up_to_the_budget_and_prepared_again_beyond_it() -> None:
    weights = read_weights(random_model())
    pairs, metric = TokenPairs(*random_pairs(6)), logit_diff_metric(97, 6)
    batches = list(pairs.batches(2))
    sizes = [runs.nbytes for runs in PreparedBatches(weights, batches, "corrupted", 1.0)]
    some = PreparedBatches(weights, batches, "corrupted", (sizes[0] + sizes[1] + 1) / GB)
    first, again = list(some), list(some)
    assert [one is other for one, other in zip(first, again, strict=True)] == [True, True, False]
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.batch.index, other.batch.index)
        for value, expected in zip(run_metric(weights, one, metric), run_metric(weights, other, metric), strict=True):
            assert torch.equal(value, expected)
