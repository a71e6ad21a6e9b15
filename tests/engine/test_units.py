"""Circuits of nodes and of neurons: against hooks on Hugging Face models, against circuits of edges, by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuits_over_time.edge_attribution_patching.choices import Method
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.controls import random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import circuit_sizes, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.edge_attribution_patching.units import Units, graph_of
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.random_models import random_model, random_pairs

ARCHITECTURES = ("neox-parallel", "neox-sequential", "gpt2", "llama-grouped")
METHODS = [method for method in get_args(Method) if method != "information_flow_routes"]
Hold = Callable[[int, Tensor], Tensor]


def relative(scores: Tensor, reference: Tensor) -> float:
    return float((scores - reference).abs().max() / reference.abs().max())


def unit_modules(model: PreTrainedModel) -> Iterator[torch.nn.Module]:
    """What multiplies z with W_O in every layer, and then what multiplies hidden units with W_out."""
    ends = ("attention.dense", "attn.c_proj", "self_attn.o_proj", "dense_4h_to_h", "mlp.c_proj", "mlp.down_proj")
    named = [module for name, module in model.named_modules() if name.endswith(ends)]
    assert len(named) == 2 * model.config.num_hidden_layers
    yield from named


@contextmanager
def holding(model: PreTrainedModel, hold: Hold) -> Iterator[None]:
    """The model with other units: (module by its place, what its input holds) -> what it is to hold."""

    def before(place: int, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (hold(place, given[0]),)

    hooks = [
        module.register_forward_pre_hook(lambda _, given, place=place: before(place, given))
        for place, module in enumerate(unit_modules(model))
    ]
    yield
    for hook in hooks:
        hook.remove()


def units_of(model: PreTrainedModel, ids: Tensor) -> dict[int, Tensor]:
    """What all units hold on one prompt."""
    held: dict[int, Tensor] = {}
    with holding(model, lambda place, x: held.setdefault(place, x.detach())):
        model(ids[None])
    return held


def prompts(pairs: TokenPairs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for row, n in enumerate(pairs.lengths.tolist()):
        yield torch.tensor([row]), pairs.clean[row, :n], pairs.corrupted[row, :n]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_of_neurons_are_those_of_autograd_on_the_model_itself(architecture: str) -> None:
    """Difference times the gradient at the unit, at three points between the prompts' embeddings."""
    model, pairs = in_float64(random_model(architecture)), TokenPairs(*random_pairs(2))
    weights, metric = read_weights(model), eap_reference.logit_diff_metric(97, 2)
    found = edge_scores(weights, pairs, metric, level="neuron", steps=3)
    reference = torch.zeros(len(found.scores), dtype=torch.float64)
    with Float64():
        for row, *ends in prompts(pairs):
            clean, corrupted = (units_of(model, ids) for ids in ends)
            embedded = [model.get_input_embeddings()(ids).detach() for ids in ends]
            for alpha in (0, 1 / 3, 2 / 3):
                held: dict[int, Tensor] = {}
                with holding(model, lambda place, x, held=held: held.setdefault(place, x)):  # type: ignore[misc]
                    x = (embedded[1] + alpha * (embedded[0] - embedded[1])).requires_grad_(True)
                    logits = model(inputs_embeds=x[None]).logits[:, -1]
                gradients = torch.autograd.grad(metric(logits, row)[0], list(held.values()))
                products = [g * (clean[p] - corrupted[p]) for p, g in zip(held, gradients, strict=True)]
                reference += torch.cat([product.sum((0, 1)) for product in products]) / (3 * len(pairs))
    assert relative(found.scores[:, 0], reference) < 3e-6


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama-grouped", "olmo2-grouped"])
def test_a_nodes_score_is_that_of_its_edges_and_of_its_neurons(architecture: str, method: Method) -> None:
    """All readers of a node read the same. The score of a set that is patched together adds up nowhere."""
    weights, pairs = read_weights(in_float64(random_model(architecture, n_layers=2))), TokenPairs(*random_pairs(3))
    folds: dict[str, Any] = {"fold_of": torch.tensor([0, 1, 0]), "steps": 2, "method": method, "n_exact": 3}
    metric = eap_reference.logit_diff_metric(97, 3)
    of_edges, of_nodes, of_neurons = (
        edge_scores(weights, pairs, metric, level=level, **folds)
        for level in ("edge", "node", "neuron")  # type: ignore[arg-type]
    )
    neurons = of_neurons.graph
    assert isinstance(neurons, Units)
    if method == "exact":
        assert [(folds.scores != 0).sum() for folds in (of_edges, of_nodes, of_neurons)] == [3, 3, 3]
        return
    for fold in (0, 1):
        assert relative(of_nodes.sums[fold, :, 0], of_edges.sums[fold, 1:].sum(1)) < 1e-6
        assert relative(neurons.by_node(of_neurons.sums[fold])[1:], of_nodes.sums[fold, :, 0]) < 3e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_circuits_of_neurons_are_those_of_hooks_that_hold_the_others_back(architecture: str) -> None:
    """Sets drawn at random, one node alone, and all units but those of a node: patching this node by itself."""
    model, pairs = in_float64(random_model(architecture, n_layers=2)), TokenPairs(*random_pairs(3))
    weights, metric = read_weights(model), eap_reference.logit_diff_metric(97, 3)
    neurons, nodes = graph_of(weights, "neuron"), graph_of(weights, "node")
    assert isinstance(neurons, Units)
    masks = torch.rand(5, neurons.n_forward, generator=torch.Generator().manual_seed(0)) < 0.6
    masks[2:4] = neurons.node_of == 2
    masks[3] = ~masks[3]
    masks[4] = neurons.node_of != neurons.model.mlp(1)
    evaluator = CircuitEvaluator(weights, pairs, metric, graph=neurons, memory_budget_gb=1e-4)
    found = evaluator(masks[:, :, None])
    sizes = [weights.n_heads * weights.d_head, weights.d_mlp] * 2
    with Float64(), torch.no_grad():
        for row, clean, corrupted in prompts(pairs):
            held = units_of(model, corrupted)
            for mask, value in zip(masks, found, strict=True):
                parts = mask.split(sizes)

                def hold(place: int, x: Tensor, held=held, parts=parts) -> Tensor:  # type: ignore[no-untyped-def]
                    return torch.where(parts[place], x, held[place])

                with holding(model, hold):
                    logits = model(clean[None]).logits[:, -1]
                assert float(value[row]) == pytest.approx(float(metric(logits, row)[0]), abs=2e-6)
    # A node without any of its neurons is a node that carries the corrupted prompt.
    without = nodes.edge_mask.repeat(2, 1, 1)
    without[0, 2 - 1] = without[1, neurons.model.mlp(1) - 1] = False
    by_nodes = CircuitEvaluator(weights, pairs, metric, graph=nodes)(without)
    torch.testing.assert_close(by_nodes, found[3:], rtol=0, atol=2e-6)
    exact = edge_scores(weights, pairs, metric, method="exact", level="node").scores[:, 0]
    lost = (evaluator.full - by_nodes).mean(1)
    torch.testing.assert_close(exact[[1, neurons.model.mlp(1) - 1]], lost, rtol=0, atol=2e-6)


@pytest.mark.parametrize("level", ["node", "neuron"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "olmo2-grouped", "gemma2"])
def test_all_units_are_the_model_and_none_is_the_corrupted_run(architecture: str, level: Any) -> None:
    weights, pairs = read_weights(random_model(architecture, n_layers=2)), TokenPairs(*random_pairs(3))
    graph = graph_of(weights, level)
    evaluator = CircuitEvaluator(weights, pairs, eap_reference.logit_diff_metric(97, 3), graph=graph)
    values = evaluator(torch.stack((graph.edge_mask, ~graph.edge_mask)))
    torch.testing.assert_close(values, torch.stack((evaluator.full, evaluator.corrupted)), rtol=0, atol=1e-5)


def test_a_circuit_of_nodes_has_all_edges_between_them() -> None:
    """Of n nodes the n of largest score; nothing is pruned, and their edges are counted by hand."""
    weights = read_weights(random_model("gpt2", n_layers=2))
    graph = graph_of(weights, "node")
    assert isinstance(graph, Units)
    scores = torch.zeros(graph.n_forward, 1)
    chosen = ["a0.h1", "m0", "a1.h0"]
    scores[[graph.forward_nodes.index(name) for name in chosen], 0] = torch.tensor([3.0, -2.0, 1.0])
    order = edge_order(scores, graph)
    assert circuit_sizes(order, graph) == list(range(1, graph.n_forward + 1))
    masks = top_n_masks(order, graph, [0, 1, 3])
    assert masks.sum((1, 2)).tolist() == [0, 1, 3]
    model = graph.model
    names = [{model.edge_name(*edge) for edge in edges.nonzero().tolist()} for edges in graph.edges(masks)]
    one = {"input->logits", "a0.h1->logits", *(f"input->a0.h1<{letter}>" for letter in "qkv")}
    assert names[:2] == [set(), one]
    more = {f"{source}->a1.h0<{letter}>" for source in ("input", "a0.h1", "m0") for letter in "qkv"}
    assert names[2] == one | more | {"input->m0", "a0.h1->m0", "m0->logits", "a1.h0->logits"}
    circuit = Circuit(graph, scores, masks[2])
    assert circuit.n_nodes == 5
    again = Circuit.from_tensors(circuit.to_tensors())
    assert again.graph == graph
    assert torch.equal(again.as_edges.in_circuit, graph.edges(masks)[2])
    assert set(circuit.as_edges.to_table().set_index("source")["score"].to_dict().items()) == {
        *zip(["input", *chosen], [0.0, 3.0, -2.0, 1.0], strict=True)
    }


@pytest.mark.parametrize("level", ["node", "neuron"])
def test_random_circuits_have_as_many_units_in_every_layer(level: Any) -> None:
    """Of heads, and of an MLP's neurons. A layer has one MLP: so random ones are of any layer."""
    weights = read_weights(random_model("neox-parallel", n_layers=3))
    graph = graph_of(weights, level)
    assert isinstance(graph, Units)
    scores = torch.randn(graph.n_forward, 1, generator=torch.Generator().manual_seed(0))
    size = graph.n_forward // 3
    mask = top_n_masks(edge_order(scores, graph), graph, [size])[0]
    masks = random_circuits(Circuit(graph, scores, mask), 4, seed=0)

    def counts(of: Tensor) -> list[int]:
        by_layer = of[:, 0].view(3, -1).split([weights.n_heads * graph.d_head, graph.d_mlp], dim=1)
        mlps = by_layer[1].sum(1) if level == "neuron" else by_layer[1].sum()[None]
        return [*by_layer[0].sum(1).tolist(), *mlps.tolist()]

    assert [counts(one) for one in masks] == [counts(mask)] * 4
    assert len({tuple(one.flatten().tolist()) for one in (mask, *masks)}) == 5
