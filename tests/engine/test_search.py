"""Greedy order and pruning against naive versions on random graphs, and the published edge counts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.circuits.search import count_nodes, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.connected import prune
from circuits_over_time.edge_attribution_patching.graph import Graph

graphs = st.builds(Graph, st.integers(1, 3), st.integers(1, 3), st.booleans())


@pytest.mark.parametrize(
    ("layers", "heads", "parallel", "edges"),
    [
        (6, 8, True, 3_580),  # pythia-70m
        (12, 12, True, 32_347),  # pythia-160m
        (24, 16, True, 231_493),  # pythia-410m, pythia-1.4b
        (16, 8, True, 27_545),  # pythia-1b
        (32, 32, True, 1_591_857),  # pythia-2.8b
        (12, 12, False, 32_491),  # gpt2-small
    ],
)
def test_edge_counts_of_known_models(layers: int, heads: int, parallel: bool, edges: int) -> None:
    assert Graph(layers, heads, parallel).n_edges == edges


@given(graphs)
def test_names_and_indices_agree(graph: Graph) -> None:
    assert len(graph.forward_nodes) == graph.n_forward == len(set(graph.forward_nodes))
    assert len(graph.backward_nodes) == graph.n_backward == len(set(graph.backward_nodes))
    for layer in range(graph.n_layers):
        assert graph.forward_nodes[graph.mlp(layer)] == graph.backward_nodes[graph.mlp_input(layer)] == f"m{layer}"
        for head in range(graph.n_heads):
            assert graph.forward_nodes[graph.head(layer, head)] == f"a{layer}.h{head}"
            for letter in "qkv":
                name = graph.backward_nodes[graph.head_input(layer, head, letter)]
                assert name == f"a{layer}.h{head}<{letter}>"
                assert graph.forward_of_backward[graph.head_input(layer, head, letter)] == graph.head(layer, head)
    for u, v in graph.edge_mask.nonzero().tolist():
        assert graph.edge_index(f"{graph.forward_nodes[u]}->{graph.backward_nodes[v]}") == (u, v)


def test_an_edge_joins_a_node_to_a_later_reader_only() -> None:
    parallel, sequential = Graph(2, 1, True), Graph(2, 1, False)
    assert parallel.edge_index("m0->a1.h0<q>") == (2, 4)
    assert sequential.edge_index("a0.h0->m0") == (1, 3)
    with pytest.raises(ValueError, match="m0 does not read a0"):
        parallel.edge_index("a0.h0->m0")
    with pytest.raises(ValueError, match="the graph has no node"):
        parallel.edge_index("a9.h0->m0")


def random_scores(graph: Graph, seed: int, levels: int) -> torch.Tensor:
    """Scores with ties when there are few levels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-levels, levels + 1, (graph.n_forward, graph.n_backward), generator=generator) / 7


def naive_greedy(scores: torch.Tensor, graph: Graph) -> list[tuple[int, int]]:
    chosen: list[tuple[int, int]] = []
    circuit = {graph.n_forward}
    edges = set(map(tuple, graph.edge_mask.nonzero().tolist()))
    while True:
        open_edges = [edge for edge in edges if int(graph.forward_of_backward[edge[1]]) in circuit]
        if not open_edges:
            return chosen
        best = min(open_edges, key=lambda edge: (-abs(float(scores[edge])), edge))
        chosen.append(best)
        circuit.add(best[0])
        edges.remove(best)


@settings(deadline=None, max_examples=40)
@given(graphs, st.integers(0, 10**6), st.sampled_from([1, 5, 10**6]))
def test_greedy_order_equals_the_naive_one(graph: Graph, seed: int, levels: int) -> None:
    scores = random_scores(graph, seed, levels)
    order = edge_order(scores, graph)
    assert list(map(tuple, order.tolist())) == naive_greedy(scores, graph)
    assert torch.equal(edge_order(scores, graph, limit=7), order[:7])


@given(graphs, st.integers(0, 10**6))
def test_top_n_order_is_sorted_and_complete(graph: Graph, seed: int) -> None:
    scores = random_scores(graph, seed, 10**6)
    order = edge_order(scores, graph, "top_n")
    strengths = scores[order[:, 0], order[:, 1]].abs()
    assert (strengths.diff() <= 0).all()
    assert len(set(map(tuple, order.tolist()))) == graph.n_edges
    assert graph.edge_mask[order[:, 0], order[:, 1]].all()


def naive_prune(mask: torch.Tensor, graph: Graph) -> torch.Tensor:
    mask = mask.clone()
    while True:
        edges = mask.nonzero().tolist()
        heads_of = [int(graph.forward_of_backward[v]) for _, v in edges]
        dead = [
            (u, v)
            for (u, v), node in zip(edges, heads_of, strict=True)
            if (u != 0 and u not in heads_of) or (node != graph.n_forward and node not in {e[0] for e in edges})
        ]
        if not dead:
            return mask
        for edge in dead:
            mask[edge] = False


@settings(deadline=None)
@given(graphs, st.integers(0, 10**6), st.sampled_from([0.05, 0.2, 0.6]))
def test_pruning_equals_the_naive_one(graph: Graph, seed: int, density: float) -> None:
    noise = torch.rand(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(seed))
    mask = graph.edge_mask & (noise < density)
    pruned = prune(mask[None], graph)[0]
    assert torch.equal(pruned, naive_prune(mask, graph))
    nodes = {u for u, _ in pruned.nonzero().tolist()}
    nodes |= {int(graph.forward_of_backward[v]) for _, v in pruned.nonzero().tolist()}
    assert int(count_nodes(pruned[None], graph)[0]) == len(nodes)


@given(graphs, st.integers(0, 10**6), st.sampled_from(["greedy", "top_n"]))
def test_circuits_are_pruned_prefixes(graph: Graph, seed: int, order: str) -> None:
    edges = edge_order(random_scores(graph, seed, 10**6), graph, order)
    sizes = [0, 1, graph.n_edges // 2, graph.n_edges]
    masks = top_n_masks(edges, graph, sizes)
    assert not masks[0].any()
    assert torch.equal(masks[-1], graph.edge_mask)
    for size, mask in zip(sizes, masks, strict=True):
        assert set(map(tuple, mask.nonzero().tolist())) <= set(map(tuple, edges[:size].tolist()))


def test_sizes_beyond_the_order_and_unknown_orders_are_refused() -> None:
    graph = Graph(1, 1, True)
    scores = torch.zeros(graph.n_forward, graph.n_backward)
    with pytest.raises(ValueError, match="size 99: the order holds 7 edges"):
        top_n_masks(edge_order(scores, graph), graph, [99])
    with pytest.raises(ValueError, match="order=random: unknown"):
        edge_order(scores, graph, "random")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scores have shape"):
        edge_order(scores[:1], graph)
