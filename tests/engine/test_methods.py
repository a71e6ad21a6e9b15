"""Every way to score edges: against slow references in float64, the published EAP-IG, and where all are exact."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.choices import Method
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs, run_metric
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute, points_of
from circuits_over_time.edge_attribution_patching.scores.exact import exact_scores
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from tests.engine.test_linear_model import linear_weights, logit_difference
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.paths import PEER_FILES
from tests.support.peers import peers_scores, peers_setting, without_one_by_one
from tests.support.random_models import HOOKED, random_model, random_pairs

METHODS: tuple[Method, ...] = ("eap_ig", "eap", "clean_corrupted", "ceap", "relp")
"""Those whose gradients are taken on the path from the corrupted embeddings to the clean ones."""
RELEVANCE = (*HOOKED, "llama", "llama-grouped")


def relative(scores: Tensor, reference: Tensor) -> float:
    return float((scores - reference).abs().max() / reference.abs().max())


@pytest.mark.parametrize("architecture", [*RELEVANCE, "olmo2-grouped", "gemma2"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_scores_are_those_of_autograd_with_expanded_inputs(architecture: str, method: Method) -> None:
    if method == "relp" and architecture not in RELEVANCE:
        pytest.skip("the reference has RelP's rules for GPT-2, GPT-NeoX and Llama")
    model = in_float64(random_model(architecture))
    clean, corrupted, lengths = random_pairs(2)
    metric = eap_reference.logit_diff_metric(97, 2)
    found = attribute(read_weights(model), TokenPairs(clean, corrupted, lengths), metric, method=method, steps=3)
    points = ([0, 1 / 3, 2 / 3], [1, 1, 1]) if method == "ceap" else points_of(method, "left", 3)
    expand = eap_reference.RelevanceModel if method == "relp" else eap_reference.ExpandedModel
    with Float64():
        reference = eap_reference.attribute(
            model,
            clean,
            corrupted,
            lengths,
            metric,
            *points,
            conductance=method == "ceap",
            expand=expand,
        )
    assert relative(found.scores, reference) < 3e-6
    of_patterns = [Graph.of(read_weights(model)).head_input(layer, 0, "q") for layer in range(3)]
    assert bool((reference[:, of_patterns] == 0).all()) == (method == "relp")


@pytest.mark.parametrize("architecture", [*HOOKED, "llama", "llama-grouped", "olmo2-grouped", "gemma2"])
def test_scores_of_activations_are_those_of_autograd_with_one_layer_moved(architecture: str) -> None:
    model = in_float64(random_model(architecture))
    pairs = TokenPairs(*random_pairs(2))
    metric = eap_reference.logit_diff_metric(97, 2)
    found = edge_scores(read_weights(model), pairs, metric, method="eap_ig_activations", steps=2)
    with Float64():
        reference = eap_reference.attribute_activations(
            model, pairs.clean, pairs.corrupted, pairs.lengths, metric, steps=2
        )
    assert relative(found.scores, reference) < 3e-6


@pytest.mark.parametrize("architecture", ["neox-parallel", "llama-grouped", "olmo2-grouped", "gemma2"])
@pytest.mark.parametrize("method", get_args(Method))
def test_scores_in_bfloat16_are_near_those_in_float32(architecture: str, method: Method) -> None:
    pairs = TokenPairs(*random_pairs(4, seed=1))

    def scores(dtype: torch.dtype) -> Tensor:
        weights = read_weights(random_model(architecture, n_layers=2, seed=2).to(dtype))
        return edge_scores(weights, pairs, logit_difference, method=method, steps=2).scores.flatten()

    exact, rounded = scores(torch.float32), scores(torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert torch.corrcoef(torch.stack([exact, rounded]))[0, 1] > 0.95


@pytest.mark.parametrize("architecture", [*HOOKED, "llama", "llama-grouped", "olmo2-grouped", "gemma2"])
def test_information_flow_is_the_share_of_every_node_in_what_is_read(architecture: str) -> None:
    model = in_float64(random_model(architecture))
    clean, corrupted, lengths = random_pairs(4)
    found = edge_scores(
        read_weights(model), TokenPairs(clean, corrupted, lengths), lambda *_: 1 / 0, method="information_flow_routes"
    )
    expanded = eap_reference.ExpandedModel(model)
    reference = torch.zeros_like(found.scores, dtype=torch.float64)

    def read(index: int, outputs: list[Tensor], biases: Tensor) -> Tensor:
        x = eap_reference.plain(index, outputs, biases)
        near = [(x.abs().sum(1) - (x - out).abs().sum(1)).clamp(min=0) for out in outputs]
        for u, proximity in enumerate(near):
            reference[u, index] += (proximity / sum(near)).nan_to_num().mean() / len(lengths)
        return x

    with Float64(), torch.no_grad():
        for prompt, n in enumerate(lengths.tolist()):
            expanded.run(expanded.embed(clean[prompt, :n]), read)
    assert relative(found.scores, reference * found.graph.edge_mask) < 3e-6
    # Behind the norms of OLMo-2 and Gemma there are places to which no node comes near.
    total = found.scores.sum(0)
    assert bool((total < 1 + 1e-5).all())
    assert architecture in ("olmo2-grouped", "gemma2") or bool((total > 1 - 1e-5).all())


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped", "olmo2-grouped"])
def test_exact_scores_are_runs_with_one_edge_patched(architecture: str) -> None:
    model = in_float64(random_model(architecture, n_layers=2))
    clean, corrupted, lengths = random_pairs(2)
    metric = eap_reference.logit_diff_metric(97, 2)
    found = exact_scores(read_weights(model), TokenPairs(clean, corrupted, lengths), metric)
    graph, reference = found.graph, torch.zeros_like(found.scores, dtype=torch.float64)
    some = graph.flat_edges[torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(0))[:15]]
    with Float64(), torch.no_grad():
        for prompt, n in enumerate(lengths.tolist()):
            index = torch.tensor([prompt])
            ends = clean[prompt, :n], corrupted[prompt, :n]
            whole = metric(eap_reference.patched_logits(model, *ends, graph.edge_mask)[None], index)
            for edge in some.tolist():
                mask = graph.edge_mask.clone()
                mask.view(-1)[edge] = False
                without = metric(eap_reference.patched_logits(model, *ends, mask)[None], index)
                reference.view(-1)[edge] += (whole - without)[0] / len(lengths)
    only = exact_scores(read_weights(model), TokenPairs(clean, corrupted, lengths), metric, edges=some)
    assert relative(only.scores, reference) < 3e-6
    torch.testing.assert_close(only.scores.flatten()[some], found.scores.flatten()[some], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", HOOKED)
def test_on_a_linear_model_all_methods_give_the_exact_scores(architecture: str) -> None:
    weights, pairs = linear_weights(architecture), TokenPairs(*random_pairs(3))
    exact = exact_scores(weights, pairs, logit_difference).scores
    assert exact.abs().max() > 0.01
    for method in METHODS:
        scores = attribute(weights, pairs, logit_difference, method=method, steps=3).scores
        assert relative(scores, exact) < 1e-4, method
    # No gradient flows through the layer that is moved. To the logits there is no node between.
    moved = edge_scores(weights, pairs, logit_difference, method="eap_ig_activations").scores
    assert relative(moved[:, -1], exact[:, -1]) < 1e-4
    assert relative(moved, exact) > 0.01


def test_exact_scores_of_some_edges_are_of_those_that_are_strongest_by_eap_ig() -> None:
    weights, pairs = read_weights(random_model("neox-parallel")), TokenPairs(*random_pairs(3))
    metric = eap_reference.logit_diff_metric(97, 3)
    exact, some, first = (
        edge_scores(weights, pairs, metric, method=method, n_exact=n)  # type: ignore[arg-type]
        for method, n in (("exact", None), ("exact", 30), ("eap_ig", None))
    )
    strongest = first.scores.flatten().abs().topk(30).indices
    assert (some.scores != 0).flatten().nonzero()[:, 0].tolist() == sorted(strongest.tolist())
    torch.testing.assert_close(some.scores.flatten()[strongest], exact.scores.flatten()[strongest])


@pytest.mark.parametrize("method", ["exact", "information_flow_routes"])
def test_a_method_without_gradients_is_no_method_of_attribute(method: Method) -> None:
    with pytest.raises(ValueError, match="takes no gradients"):
        attribute(read_weights(random_model()), TokenPairs(*random_pairs(2)), logit_difference, method=method)


def test_conductance_is_complete() -> None:
    """Its scores of all edges into a node's readers add up, in the limit of many steps, to what the metric gains."""
    model = in_float64(random_model("neox-parallel"))
    pairs = TokenPairs(*random_pairs(3))
    metric = eap_reference.logit_diff_metric(97, 3)
    scores = attribute(read_weights(model), pairs, metric, method="ceap", steps=400).scores.double()
    ends = [
        attribute_gain(read_weights(model), TokenPairs(one, one, pairs.lengths), metric)
        for one in (pairs.clean, pairs.corrupted)
    ]
    # All that `logits` reads carries all of the change; the error of 400 steps is a fourth of that of 100.
    gain, size = ends[0] - ends[1], float(scores[:, -1].abs().sum())
    coarse = attribute(read_weights(model), pairs, metric, method="ceap", steps=100).scores.double()
    errors = [abs(float(of_steps[:, -1].sum()) - gain) for of_steps in (coarse, scores)]
    assert errors[1] < 2e-3 * size
    assert errors[1] == pytest.approx(errors[0] / 4, rel=0.1)


def attribute_gain(weights: ModelWeights, pairs: TokenPairs, metric: object) -> float:
    (batch,) = pairs.batches(len(pairs))
    return float(run_metric(weights, prepare_runs(weights, batch), metric)[0].mean())  # type: ignore[arg-type]


@pytest.mark.parametrize("method", get_args(Method))
@pytest.mark.parametrize("architecture", ["neox-parallel", "llama-grouped"])
def test_a_fold_scores_what_its_prompts_score_alone(architecture: str, method: Method) -> None:
    weights = read_weights(random_model(architecture, n_layers=2))
    pairs = TokenPairs(*random_pairs(7))
    metric = eap_reference.logit_diff_metric(97, 7)

    def scored(pairs: TokenPairs, of: Tensor, folds: Tensor | None = None, **how: object) -> FoldScores:
        def own(logits: Tensor, at: Tensor) -> Tensor:
            return metric(logits, of[at])

        return edge_scores(weights, pairs, own, folds, method=method, steps=3, **how)  # type: ignore[arg-type]

    fold_of = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    folds = scored(pairs, torch.arange(7), fold_of, batch_size=3)
    tiny = scored(pairs, torch.arange(7), fold_of, memory_budget_gb=1e-7)
    for fold, size in enumerate(folds.sizes.tolist()):
        index = (fold_of == fold).nonzero()[:, 0]
        alone = TokenPairs(pairs.clean[index], pairs.corrupted[index], pairs.lengths[index])
        expected = scored(alone, index).scores
        atol = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(folds.sums[fold] / size, expected, rtol=0, atol=atol)
        torch.testing.assert_close(tiny.sums[fold] / size, expected, rtol=0, atol=atol)


@pytest.mark.skipif(not PEER_FILES.is_dir(), reason="the numbers of the published EAP-IG are not here")
def test_scores_on_a_trained_model_are_those_of_the_published_eap_ig() -> None:
    expected, weights, pairs, metric = peers_setting()
    assert attribute_gain(weights, pairs, metric) == pytest.approx(expected["baseline"], abs=1e-4)
    graph = Graph.of(weights)
    peers: dict[Method, str] = {
        "eap_ig": "EAP-IG-inputs",
        "eap": "EAP",
        "clean_corrupted": "clean-corrupted",
        "eap_ig_activations": "EAP-IG-activations",
    }
    for method, name in peers.items():
        theirs = peers_scores(expected, f"{name} patching", graph)
        assert relative(edge_scores(weights, pairs, metric, method=method, steps=5).scores, theirs) < 1e-6, method
        # Of nodes, it takes `right` steps. Its numbers for MLPs of parallel blocks contradict its own for their edges:
        # the last one has a single edge, and two scores.
        if by_name := expected["node_scores"].get(f"{name} patching"):
            right_steps: dict[str, Any] = {"level": "node", "steps": 5, "quadrature": "right"}
            of_nodes = edge_scores(weights, pairs, metric, method=method, **right_steps)
            heads = [place for place, node in enumerate(of_nodes.graph.forward_nodes) if node.startswith("a")]
            theirs = expected["n_prompts"] * torch.tensor(
                [by_name[of_nodes.graph.forward_nodes[place]] for place in heads]
            )
            assert relative(of_nodes.scores[heads, 0], theirs) < 3e-6, method
            last = expected["edge_scores"][f"{name} patching"]["m3->logits"]
            assert by_name["m3"] / last < 0.6

    # Its exact scores: the metric without the edge minus that of the model. What pruning cuts off with one edge stays
    # off for those after it there. So the first edges are alone; the others are compared with the same edges cut off.
    exact = expected["edge_scores"]["exact patching"]
    ours = exact_scores(weights, pairs, metric).scores
    first = list(exact)[: list(exact).index("input->m0") + 1]
    for edge in first:
        assert -exact[edge] == pytest.approx(float(ours[graph.edge_index(edge)]), abs=1e-5), edge
    evaluator = CircuitEvaluator(weights, pairs, metric)
    without = evaluator(without_one_by_one(exact, graph)).mean(1) - evaluator.full.mean()
    assert relative(without, torch.tensor(list(exact.values()))) < 1e-5
