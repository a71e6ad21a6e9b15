"""Circuits of nodes and of neurons: against hooks on Hugging Face models, against circuits of edges, by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuits_over_time.edge_attribution_patching.choices import Ablation, Method
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.controls import random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import circuit_sizes, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.reference import Reference
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.edge_attribution_patching.units import Units, graph_of
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.random_models import random_model, random_pairs

ARCHITECTURES = ("neox-parallel", "neox-sequential", "gpt2", "llama-grouped")
ABLATIONS = get_args(Ablation)
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


def writing_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """What gives what the heads of every layer, and then its MLP, write: the same modules, or the norms behind them."""
    modules = dict(model.named_modules())
    post_norms = [module for name, module in modules.items() if name.endswith("post_feedforward_layernorm")]
    ends = ("post_attention_layernorm", "post_feedforward_layernorm")
    named = [module for name, module in modules.items() if name.endswith(ends)]
    return named if post_norms else list(unit_modules(model))


@contextmanager
def holding(model: PreTrainedModel, hold: Hold, write: Hold = lambda place, x: x) -> Iterator[None]:
    """The model with other units, and writing other things: (module by its place, what is there) -> what is to be."""

    def before(place: int, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (hold(place, given[0]),)

    hooks = [
        module.register_forward_pre_hook(lambda _, given, place=place: before(place, given))
        for place, module in enumerate(unit_modules(model))
    ]
    hooks += [
        module.register_forward_hook(lambda _, given, out, place=place: write(place, out))
        for place, module in enumerate(writing_modules(model))
    ]
    yield
    for hook in hooks:
        hook.remove()


@dataclass
class Observed:
    """What is there in a run of one prompt, by place; [1, token, size]."""

    embedded: Tensor
    units: dict[int, Tensor] = field(default_factory=dict)
    written: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Tensor) -> Observed:
        seen = cls(model.get_input_embeddings()(ids[None]).detach() + positions(model, len(ids)))

        def keep(of: dict[int, Tensor]) -> Hold:
            return lambda place, x: of.setdefault(place, x.detach())

        with holding(model, keep(seen.units), keep(seen.written)):
            model(ids[None])
        return seen

    @classmethod
    def absent(cls, model: PreTrainedModel, pairs: TokenPairs, row: int, ablation: Ablation) -> Observed:
        """What units hold that are not there, what is written without any in a place, and where the path begins."""
        n = int(pairs.lengths[row])
        if ablation == "patching":
            return cls.of(model, pairs.corrupted[row, :n])
        runs = [cls.of(model, clean) for _, clean, _ in prompts(pairs)]

        def mean(of_runs: list[Tensor]) -> Tensor:
            if ablation == "zero":
                return torch.zeros_like(of_runs[row])
            if ablation == "mean":
                return torch.cat(of_runs, dim=1).mean(1, keepdim=True).expand(-1, n, -1)
            by_position = [[x[:, p] for x in of_runs if x.shape[1] > p] for p in range(n)]
            return torch.stack([torch.stack(some).mean(0) for some in by_position], dim=1)

        units, written = (
            {place: mean([run[place] for run in of_runs]) for place in of_runs[0]}
            for of_runs in ([run.units for run in runs], [run.written for run in runs])
        )
        return cls(mean([run.embedded for run in runs]), units, written)


def positions(model: PreTrainedModel, n: int) -> Tensor:
    """What the model adds to embedded tokens."""
    return model.transformer.wpe.weight[:n].detach() if model.config.model_type == "gpt2" else torch.zeros(())


def prompts(pairs: TokenPairs) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    for row, n in enumerate(pairs.lengths.tolist()):
        yield torch.tensor([row]), pairs.clean[row, :n], pairs.corrupted[row, :n]


def reference_of(weights: ModelWeights, pairs: TokenPairs, ablation: Ablation) -> Reference | None:
    return Reference.of(weights, ablation, pairs.clean, pairs.lengths, batch_size=2, neurons=True)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_of_neurons_are_those_of_autograd_on_the_model_itself(architecture: str, ablation: Ablation) -> None:
    """Difference times the gradient at the unit, at three points between two embeddings."""
    model, pairs = in_float64(random_model(architecture)), TokenPairs(*random_pairs(2))
    weights, metric = read_weights(model), eap_reference.logit_diff_metric(97, 2)
    reference = reference_of(weights, pairs, ablation)
    found = edge_scores(weights, pairs, metric, level="neuron", steps=3, reference=reference)
    expected = torch.zeros(len(found.scores), dtype=torch.float64)
    with Float64():
        for row, ids, _ in prompts(pairs):
            clean, absent = Observed.of(model, ids), Observed.absent(model, pairs, int(row), ablation)
            for alpha in (0, 1 / 3, 2 / 3):
                held: dict[int, Tensor] = {}
                with holding(model, lambda place, x, held=held: held.setdefault(place, x)):  # type: ignore[misc]
                    x = absent.embedded + alpha * (clean.embedded - absent.embedded) - positions(model, len(ids))
                    logits = model(inputs_embeds=x.requires_grad_(True)).logits[:, -1]
                gradients = torch.autograd.grad(metric(logits, row)[0], list(held.values()))
                products = [g * (clean.units[p] - absent.units[p]) for p, g in zip(held, gradients, strict=True)]
                expected += torch.cat([product.sum((0, 1)) for product in products]) / (3 * len(pairs))
    assert relative(found.scores[:, 0], expected) < 3e-6


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["llama-grouped", "olmo2-grouped"])
def test_a_nodes_score_is_that_of_its_edges_and_of_its_neurons(
    architecture: str, method: Method, ablation: Ablation
) -> None:
    """All readers of a node read the same, and there is no output bias. What is patched together adds up nowhere."""
    weights, pairs = read_weights(in_float64(random_model(architecture, n_layers=2))), TokenPairs(*random_pairs(3))
    folds: dict[str, Any] = {"fold_of": torch.tensor([0, 1, 0]), "steps": 2, "method": method, "n_exact": 3}
    metric = eap_reference.logit_diff_metric(97, 3)
    folds["reference"] = reference_of(weights, pairs, ablation)
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


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "olmo2-grouped", "gemma2"])
def test_circuits_of_neurons_are_those_of_hooks_that_hold_the_others_back(
    architecture: str, ablation: Ablation
) -> None:
    """Sets drawn at random, one node alone, all units but those of a node, and none of a layer's heads and its MLP."""
    model, pairs = in_float64(random_model(architecture, n_layers=2)), TokenPairs(*random_pairs(3))
    weights, metric = read_weights(model), eap_reference.logit_diff_metric(97, 3)
    neurons, nodes = graph_of(weights, "neuron"), graph_of(weights, "node")
    assert isinstance(neurons, Units)
    masks = torch.rand(6, neurons.n_forward, generator=torch.Generator().manual_seed(0)) < 0.6
    masks[2:4] = neurons.node_of == 2
    masks[3] = ~masks[3]
    masks[4] = neurons.node_of != neurons.model.mlp(1)
    masks[5, : neurons.per_layer] = False
    reference = reference_of(weights, pairs, ablation)
    evaluator = CircuitEvaluator(weights, pairs, metric, graph=neurons, memory_budget_gb=1e-4, reference=reference)
    found = evaluator(masks[:, :, None])
    sizes = [weights.n_heads * weights.d_head, weights.d_mlp] * 2
    with Float64(), torch.no_grad():
        for row, clean, _ in prompts(pairs):
            absent = Observed.absent(model, pairs, int(row), ablation)
            for mask, value in zip(masks, found, strict=True):
                parts = mask.split(sizes)

                def hold(place: int, x: Tensor, absent=absent, parts=parts) -> Tensor:  # type: ignore[no-untyped-def]
                    return torch.where(parts[place], x, absent.units[place])

                def write(place: int, out: Tensor, absent=absent, parts=parts) -> Tensor:  # type: ignore[no-untyped-def]
                    is_mlp = place % 2 == 1
                    if bool(parts[place].any()) or (ablation == "zero" and not is_mlp):
                        return out  # Of heads, zeros leave the output's bias.
                    return absent.written[place]

                with holding(model, hold, write):
                    logits = model(clean[None]).logits[:, -1]
                assert float(value[row]) == pytest.approx(float(metric(logits, row)[0]), abs=2e-6)
    if architecture not in ARCHITECTURES:  # A norm ties heads together, and not all of them read what it makes of them.
        return
    # A node without any of its neurons is a node that is patched or ablated.
    without = nodes.edge_mask.repeat(2, 1, 1)
    without[0, 2 - 1] = without[1, neurons.model.mlp(1) - 1] = False
    by_nodes = CircuitEvaluator(weights, pairs, metric, graph=nodes, reference=reference)(without)
    torch.testing.assert_close(by_nodes, found[3:5], rtol=0, atol=2e-6)
    exact = edge_scores(weights, pairs, metric, method="exact", level="node", reference=reference).scores[:, 0]
    lost = (evaluator.full - by_nodes).mean(1)
    torch.testing.assert_close(exact[[1, neurons.model.mlp(1) - 1]], lost, rtol=0, atol=2e-6)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "olmo2-grouped", "gemma2"])
def test_neurons_of_whole_nodes_are_circuits_of_these_nodes(architecture: str, ablation: Ablation) -> None:
    """Where a norm ties the heads of a layer together, of all of them or none."""
    weights, pairs = read_weights(in_float64(random_model(architecture))), TokenPairs(*random_pairs(3))
    nodes, neurons = graph_of(weights, "node"), graph_of(weights, "neuron")
    assert isinstance(neurons, Units)
    chosen = torch.rand(8, nodes.n_forward, generator=torch.Generator().manual_seed(0)) < 0.6
    if architecture not in ARCHITECTURES:
        for layer in range(weights.n_layers):
            heads = slice(neurons.model.head(layer) - 1, neurons.model.mlp(layer) - 1)
            chosen[:, heads] = chosen[:, heads.start, None]
    by_level = [
        CircuitEvaluator(
            weights,
            pairs,
            eap_reference.logit_diff_metric(97, 3),
            graph=graph,
            reference=reference_of(weights, pairs, ablation),
        )(masks[:, :, None])
        for graph, masks in ((nodes, chosen), (neurons, chosen[:, neurons.node_of - 1]))
    ]
    torch.testing.assert_close(*by_level, rtol=0, atol=1e-6)
    assert by_level[0].std(0).min() > 1e-3


@pytest.mark.parametrize("level", ["node", "neuron"])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "olmo2-grouped", "gemma2"])
def test_all_units_are_the_model_and_none_is_the_corrupted_run(architecture: str, level: Any) -> None:
    """Or, ablated, that of every node at its reference; in two bytes, too, as exactly as these tell."""
    metric = eap_reference.logit_diff_metric(97, 3)
    for ablation, bits in itertools.product(ABLATIONS, (32, 16)):
        model = random_model(architecture, n_layers=2)
        weights = read_weights(model if bits == 32 else model.to(torch.bfloat16))
        pairs, graph = TokenPairs(*random_pairs(3)), graph_of(weights, level)
        reference = reference_of(weights, pairs, ablation)
        evaluator = CircuitEvaluator(weights, pairs, metric, graph=graph, reference=reference)
        values = evaluator(torch.stack((graph.edge_mask, ~graph.edge_mask)))
        whole = torch.stack((evaluator.full, evaluator.corrupted))
        torch.testing.assert_close(values, whole, rtol=0, atol=1e-5 if bits == 32 else 0.05)
        if bits == 16:
            scores = edge_scores(weights, pairs, metric, level=level, steps=2, reference=reference).scores
            assert scores.isfinite().all()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "olmo2-grouped", "gemma2"])
def test_neurons_at_the_mean_of_one_prompt_are_patched_with_it(architecture: str) -> None:
    weights, (clean, corrupted, _) = read_weights(in_float64(random_model(architecture))), random_pairs(2)
    metric, graph = eap_reference.logit_diff_metric(97, 2), graph_of(weights, "neuron")
    masks = torch.rand(4, graph.n_forward, 1, generator=torch.Generator().manual_seed(0)) < 0.5
    for ablation, width in (("mean_positional", clean.shape[1]), ("mean", 1)):
        other = corrupted[:1, :width].expand(len(clean), -1)
        pairs = TokenPairs(clean[:, :width], other, torch.full((len(clean),), width))
        mean = Reference.of(weights, ablation, other[:1], pairs.lengths[:1], neurons=True)  # type: ignore[arg-type]
        for method in METHODS:
            how: dict[str, Any] = {"level": "neuron", "method": method, "steps": 2, "n_exact": 20}
            patched, ablated = (
                edge_scores(weights, pairs, metric, reference=held, **how).scores for held in (None, mean)
            )
            assert relative(ablated, patched) < 1e-5, (ablation, method)
        patched, ablated = (
            CircuitEvaluator(weights, pairs, metric, graph=graph, reference=held)(masks) for held in (None, mean)
        )
        torch.testing.assert_close(ablated, patched, rtol=0, atol=2e-6)


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
