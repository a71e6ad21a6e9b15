"""The parts of the patched forward by themselves: plans, and runs that are kept or prepared again."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import GB, TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.differences import MANY, Differences, Reading
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


def test_masks_that_need_other_nodes_are_stacked_only_where_bytes_are_to_spare() -> None:
    graph = Graph(1, 4, parallel=True)
    paths = [[f"input->a0.h{head}<v>", f"input->a0.h{head}<q>", f"a0.h{head}->logits"] for head in (0, 0, 1, 1)]
    plan = Plan.of(graph, torch.stack([mask_of(graph, *path) for path in paths]))
    # The third mask would make all three compute two heads: three of the six for nobody.
    assert list(plan.stacks(1e9, 10)) == [slice(0, 4)]
    assert list(plan.stacks(1e9, 10, spare=30)) == [slice(0, 4)]
    assert list(plan.stacks(1e9, 10, spare=29)) == [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize("share", [0.05, 0.5, 0.97])
def test_what_inputs_read_is_the_sum_along_their_edges(share: float) -> None:
    n_masks, n_kept, n_inputs, n_tokens, d_model = 3, 3 * MANY, 4, 5, 6
    generator = torch.Generator().manual_seed(0)
    edges = torch.rand(n_masks, 2, n_kept, n_inputs, generator=generator) < share
    edges[:, :, :, 0] = torch.rand(n_masks, 2, n_kept, generator=generator) < 0.03  # Of inputs, some read few nodes,
    edges[1, 0, :, 1] = True  # one all of them.
    base, written = (
        torch.randn(*lead, n_tokens, d_model, generator=generator).double() for lead in ((), (n_masks, n_kept))
    )
    tokens_of_roles = torch.tensor([0, 2]), torch.tensor([1, 3, 4])
    differences = Differences(n_masks, n_kept, base, tokens_of_roles)
    forms = set()
    for n_written in (n_kept // 3, n_kept // 2, n_kept):
        first = differences.n_written
        differences.of_next(n_written - first)[:] = written[:, first:n_written]
        readings = Reading.by_role(edges, n_written, list(range(n_inputs)))
        forms |= {"matrix" if one.edges is not None else "rows" if one.signs is None else "off" for one in readings}
        found = differences.read(readings, base)
        for role, of_role in enumerate(tokens_of_roles):
            along = edges[:, role, :n_written].double()
            expected = base[of_role] + torch.einsum("mni,mntd->imtd", along, written[:, :n_written, of_role])
            torch.testing.assert_close(found[:, :, of_role], expected)
    assert forms == {0.05: {"rows", "off"}, 0.5: {"matrix"}, 0.97: {"off"}}[share]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_large_node_that_an_input_does_not_read_leaves_nothing_there_in_low_precision(dtype: torch.dtype) -> None:
    n_kept, generator = 2 * MANY, torch.Generator().manual_seed(0)
    written = torch.randn(1, n_kept, 5, 6, generator=generator)
    written[:, 7] *= 3000
    written, base = written.to(dtype), torch.zeros(5, 6, dtype=dtype)
    edges = torch.ones(1, 1, n_kept, 3, dtype=torch.bool)
    edges[:, :, 7] = False
    differences = Differences(1, n_kept, base)
    differences.of_next(n_kept)[:] = written
    found = differences.read(Reading.by_role(edges, n_kept, [0, 1, 2], dtype), base)
    expected = written.double().sum(1) - written[:, 7].double()
    torch.testing.assert_close(found, expected.to(dtype).expand(3, 1, 5, 6), rtol=0.03, atol=0.1)


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
