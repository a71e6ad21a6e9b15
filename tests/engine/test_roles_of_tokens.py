"""Edges told apart by the role of the token where they are read: against brute force, and edges of all tokens."""

from __future__ import annotations

import pytest
import torch

from circuits_over_time.edge_attribution_patching.choices import Ablation, Method
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.controls import random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.connected import prune
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs, TokenRoles
from circuits_over_time.edge_attribution_patching.model.reference import Reference
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs
from circuits_over_time.edge_attribution_patching.scores.attribution import points_of
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from tests.engine.test_linear_model import linear_weights, logit_difference
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.masked_logits import masked_logits
from tests.support.random_models import HOOKED, random_model, random_pairs

SMALL = {"n_layers": 2, "n_heads": 2, "d_model": 16}
NAMES = ("name", "verb", "rest", "end")


def with_roles(pairs: TokenPairs, seed: int = 0) -> TokenPairs:
    """Tokens of three roles at random, and the last token of every prompt `end`."""
    generator = torch.Generator().manual_seed(seed)
    of_token = torch.randint(0, 3, pairs.clean.shape, generator=generator)
    of_token[torch.arange(len(pairs)), pairs.lengths - 1] = 3
    return TokenPairs(pairs.clean, pairs.corrupted, pairs.lengths, TokenRoles.of(NAMES, of_token, pairs.lengths))


def test_roles_are_in_the_order_of_the_prompts_and_know_which_attend_to_which() -> None:
    of_token = torch.tensor([[0, 1, 0, 3, 0], [2, 1, 1, 0, 3]])
    roles = TokenRoles.of(("rest", "subject", "name", "end"), of_token, torch.tensor([4, 5]))
    assert roles.names == ("name", "subject", "rest", "end")
    attends = {
        reader: [name for name, there in zip(roles.names, row, strict=True) if there]
        for reader, row in zip(roles.names, roles.attends, strict=True)
    }
    assert attends == {
        "name": ["name"],
        "subject": ["name", "subject", "rest"],
        "rest": ["name", "subject", "rest"],
        "end": ["name", "subject", "rest", "end"],
    }
    assert roles.of_token[0, :4].tolist() == [2, 1, 2, 3]
    assert roles.select(torch.tensor([1])).of_token.tolist() == [[0, 1, 1, 2, 3]]
    assert TokenRoles.of(("rest", "none", "end"), torch.tensor([[0, 2]]), torch.tensor([2])).names == ("rest", "end")


@pytest.mark.parametrize("architecture", [*HOOKED, "llama-grouped"])
def test_scores_by_role_are_those_of_autograd_at_the_tokens_of_the_role(architecture: str) -> None:
    model = in_float64(random_model(architecture))
    pairs = with_roles(TokenPairs(*random_pairs(3)))
    metric, roles = eap_reference.logit_diff_metric(97, 3), pairs.roles
    assert roles is not None
    found = edge_scores(read_weights(model), pairs, metric, torch.tensor([0, 1, 0]), steps=2)
    with Float64():
        reference = eap_reference.attribute(
            model,
            pairs.clean,
            pairs.corrupted,
            pairs.lengths,
            metric,
            *points_of("eap_ig", "left", 2),
            role_of=roles.of_token,
        ).flatten(0, 1)
    assert float((found.scores - reference).abs().max() / reference.abs().max()) < 3e-6
    assert not reference[~found.graph.edge_mask].any()


@pytest.mark.parametrize("method", ["eap_ig", "eap", "ceap", "relp", "eap_ig_activations"])
def test_the_sum_over_roles_is_the_score_of_the_edge(method: Method) -> None:
    weights = read_weights(random_model("gpt2", **SMALL))
    plain = TokenPairs(*random_pairs(5))
    fold_of = torch.tensor([0, 0, 1, 1, 1])
    found, expected = (
        edge_scores(weights, pairs, logit_difference, fold_of, method=method, steps=2)
        for pairs in (with_roles(plain), plain)
    )
    summed = found.sums.unflatten(1, (4, -1)).sum(1)
    torch.testing.assert_close(summed, expected.sums, rtol=1e-5, atol=1e-6 * float(expected.sums.abs().max()))
    assert found.standard_error.shape == found.scores.shape == (4 * expected.graph.n_forward, expected.graph.n_backward)


def test_information_flow_by_role_is_that_of_its_tokens() -> None:
    weights = read_weights(random_model("gpt2", **SMALL))
    plain = TokenPairs(*random_pairs(5))
    method: Method = "information_flow_routes"
    found, expected = (
        edge_scores(weights, pairs, logit_difference, method=method).scores for pairs in (with_roles(plain), plain)
    )
    early = slice(0, Graph.of(weights).qkv_inputs(1).start)  # What other tokens than the answers' read.
    torch.testing.assert_close(found.unflatten(0, (4, -1)).sum(0)[:, early], expected[:, early])


@pytest.mark.parametrize("architecture", HOOKED)
def test_on_a_linear_model_a_role_of_an_edge_scores_what_patching_it_there_changes(architecture: str) -> None:
    weights, pairs = linear_weights(architecture), with_roles(TokenPairs(*random_pairs(3)))
    scores, exact = (edge_scores(weights, pairs, logit_difference, method=method).scores for method in ("eap", "exact"))
    assert exact.abs().max() > 0.01
    torch.testing.assert_close(scores, exact, rtol=1e-4, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("architecture", [*HOOKED, "llama", "llama-grouped"])
def test_circuits_by_role_are_those_of_brute_force(architecture: str) -> None:
    model = in_float64(random_model(architecture, **SMALL | {"n_heads": 4}))
    weights, pairs = read_weights(model), with_roles(TokenPairs(*random_pairs(3)))
    graph = Graph.of(weights, pairs.roles)
    generator = torch.Generator().manual_seed(1)
    densities = torch.tensor([0.05, 0.5, 0.9, 0.99])[:, None, None]
    masks = torch.rand(4, *graph.edge_mask.shape, generator=generator) < densities
    masks[2, :, : graph.qkv_inputs(1).start] = True  # A layer that is whole below one that is not.
    masks &= graph.edge_mask
    (batch,) = pairs.batches(8)
    logits = masked_logits(weights, prepare_runs(weights, batch), masks)
    assert pairs.roles is not None
    for mask, found in zip(masks.unflatten(1, (4, -1)), logits, strict=True):
        for row, prompt in enumerate(batch.index):
            n = int(pairs.lengths[prompt])
            tokens = pairs.clean[prompt, :n], pairs.corrupted[prompt, :n]
            with Float64():
                expected = eap_reference.logits_by_role(model, *tokens, mask, pairs.roles.of_token[prompt, :n])
            torch.testing.assert_close(found[row], expected, rtol=1e-9, atol=1e-9)


def test_an_edge_in_at_all_roles_is_the_edge_to_the_last_bit() -> None:
    weights = read_weights(random_model("gpt2", **SMALL))
    plain = TokenPairs(*random_pairs(5))
    with_them = with_roles(plain)
    evaluators = [CircuitEvaluator(weights, pairs, logit_difference) for pairs in (plain, with_them)]
    graph = evaluators[1].graph
    masks = torch.rand(6, *graph.plain.edge_mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    masks = torch.cat((masks & graph.plain.edge_mask, graph.plain.edge_mask[None]))
    everywhere = masks.repeat(1, graph.n_roles, 1) & graph.edge_mask
    assert torch.equal(evaluators[0](masks), evaluators[1](everywhere))
    assert torch.equal(evaluators[0](masks), evaluators[1](masks))  # Edges without roles are those of all tokens.


@pytest.mark.parametrize("ablation", ["patching", "zero", "mean"])
def test_what_a_node_reads_at_one_role_changes_nothing_at_another(ablation: Ablation) -> None:
    weights, pairs = read_weights(random_model("gpt2", **SMALL)), with_roles(TokenPairs(*random_pairs(5)))
    reference = Reference.of(weights, ablation, pairs.clean, pairs.lengths)
    evaluate = CircuitEvaluator(weights, pairs, logit_difference, reference=reference)
    path = ["input@end->m0", "m0@end->logits"]
    circuits = [path[1:], ["input@name->m0", *path[1:]], path, ["input@name->m0", *path], [*path, "m0@rest->a1.h0<v>"]]
    masks = torch.zeros(len(circuits), *evaluate.graph.edge_mask.shape, dtype=torch.bool)
    for mask, names in zip(masks, circuits, strict=True):
        mask[tuple(zip(*map(evaluate.graph.edge_index, names), strict=True))] = True
    values = evaluate(masks)
    torch.testing.assert_close(values[:2], evaluate.corrupted.expand(2, -1))
    torch.testing.assert_close(values[3:], values[2].expand(2, -1))
    assert (values[2] - evaluate.corrupted).abs().max() > 1e-3


def naive_circuit(scores: torch.Tensor, graph: Graph, size: int) -> torch.Tensor:
    """The pruned circuit of the first edges, by walking over pairs of a node and a role."""
    edges = graph.edge_mask.nonzero().tolist()

    def ends(u: int, v: int) -> tuple[tuple[int, int], list[tuple[int, int]]]:
        """Where an edge begins, and the nodes that depend on what it reads."""
        role, node = divmod(u, graph.n_nodes)
        name, reader = graph.backward_nodes[v], int(graph.forward_of_backward[v])
        if name == "logits":
            return (role, node), [(role, reader)]
        through_attention = name.endswith(("<k>", "<v>"))
        readers = [r for r in range(graph.n_roles) if (graph.attends[r][role] if through_attention else r == role)]
        return (role, node), [(r, reader) for r in readers]

    answer = (graph.n_roles - 1, graph.n_nodes)
    chosen: list[list[int]] = []
    joined = {answer}
    while len(chosen) < size:
        within_reach = [edge for edge in edges if edge not in chosen and joined & set(ends(*edge)[1])]
        if not within_reach:
            break
        chosen.append(min(within_reach, key=lambda edge: (-abs(float(scores[*edge])), edge)))
        joined.add(ends(*chosen[-1])[0])
    while True:
        into = {node for edge in chosen for node in ends(*edge)[1]}
        out = {ends(*edge)[0] for edge in chosen} | {answer}
        kept = [e for e in chosen if (ends(*e)[0][1] == 0 or ends(*e)[0] in into) and out & set(ends(*e)[1])]
        if kept == chosen:
            break
        chosen = kept
    mask = torch.zeros_like(graph.edge_mask)
    for u, v in chosen:
        mask[u, v] = True
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_circuits_grow_and_are_pruned_along_the_tokens_that_attend_to_each_other(seed: int) -> None:
    attends = ((True, False, False), (seed % 2 == 0, True, False), (True, True, True))
    graph = Graph(2, 2, seed < 2, ("a", "b", "end"), attends)
    scores = torch.randn(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(seed))
    order = edge_order(scores, graph)
    for size in (3, 12, 40):
        assert torch.equal(top_n_masks(order, graph, [size])[0], naive_circuit(scores, graph, size))
    assert graph.n_edges == int(graph.edge_mask.sum())
    circuit = Circuit(graph, scores, top_n_masks(order, graph, [30])[0])
    randoms = random_circuits(circuit, 3, seed=0)
    assert randoms.flatten(1).sum(1).tolist() == [circuit.n_edges] * 3
    assert torch.equal(prune(randoms, graph), randoms)
    read = Circuit.from_tensors(circuit.to_tensors())
    assert read.graph == graph
    assert read.graph.attends == graph.attends
    table = circuit.to_table()
    named = table["source"] + "@" + table["role"] + "->" + table["target"]
    named += table["input"].map(lambda letter: f"<{letter}>" if letter else "")
    assert {graph.edge_index(name) for name in named} == set(map(tuple, circuit.in_circuit.nonzero().tolist()))
