"""What ablated nodes write: identities with patching, slow references in float64, and the published EAP-IG."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import Ablation, Method
from circuits_over_time.edge_attribution_patching.circuits.controls import random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, ranked_edges, top_n_masks
from circuits_over_time.edge_attribution_patching.connected import prune
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.reference import Reference
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.utils.base.errors import with_way_out
from circuits_over_time.utils.circuits.handle import with_prompts
from tests.engine.test_linear_model import linear_weights, logit_difference
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.paths import PEER_FILES, TOY
from tests.support.peers import peers_scores, peers_setting, without_one_by_one
from tests.support.random_models import random_model, random_pairs

ABLATIONS: tuple[Ablation, ...] = ("zero", "mean", "mean_positional")
ALL_METHODS = get_args(Method)


def relative(scores: Tensor, reference: Tensor) -> float:
    return float((scores - reference).abs().max() / reference.abs().max())


def some_masks(graph: Graph) -> Tensor:
    """The empty circuit, the whole graph, and random circuits, all pruned."""
    drawn = torch.rand(3, *graph.edge_mask.shape, generator=torch.Generator().manual_seed(1))
    shares = torch.tensor([0.3, 0.7, 0.97])[:, None, None]
    drawn = prune((drawn < shares) & graph.edge_mask, graph)
    return torch.cat((torch.zeros_like(drawn[:1]), graph.edge_mask[None], drawn))


def test_a_gradient_that_overflows_where_the_embeddings_are_zero_says_so_and_what_helps() -> None:
    weights, (clean, corrupted, lengths) = (
        read_weights(random_model("llama-grouped", rms_norm_eps=1e-30)),
        random_pairs(2),
    )
    pairs, metric = TokenPairs(clean, corrupted, lengths), eap_reference.logit_diff_metric(97, 2)
    reference = Reference.of(weights, "zero", clean, lengths)

    def scores(method: Method, **how: Any) -> FoldScores:
        return edge_scores(weights, pairs, metric, method=method, reference=reference, **{"steps": 2} | how)

    told = (
        r"the gradient holds NaN or infinity in float32 where the embeddings are zero .*; use {}, or another ablation"
    )
    others: dict[Method, str] = {"ceap": "method=eap, or", "clean_corrupted": "method=eap, or"}
    for method, way_out in ({"eap_ig": "quadrature=midpoint or right"} | others).items():
        with pytest.raises(FloatingPointError, match=told.format(f"{way_out}.*")) as raised:
            scores(method)
        assert with_way_out(raised.value) == str(raised.value)
    for rule in ("midpoint", "right"):
        assert scores("eap_ig", quadrature=rule).scores.isfinite().all()
    assert scores("eap").scores.isfinite().all()
    assert edge_scores(weights, pairs, metric, method="eap_ig", steps=2).scores.isfinite().all()


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped"])
def test_scores_and_circuits_are_those_of_nodes_held_by_hand_in_float64(architecture: str, ablation: Ablation) -> None:
    model = in_float64(random_model(architecture, n_layers=2))
    weights, (clean, corrupted, lengths) = read_weights(model), random_pairs(2)
    pairs, metric = TokenPairs(clean, corrupted, lengths), eap_reference.logit_diff_metric(97, 2)
    graph = Graph.of(weights)
    reference = Reference.of(weights, ablation, clean, lengths, batch_size=1)
    with Float64(), torch.no_grad():
        held = eap_reference.mean_outputs(model, clean, lengths, positional=ablation == "mean_positional")
    if ablation == "zero":
        held = torch.zeros_like(held)
    for method in ("eap_ig", "ceap"):
        found = edge_scores(weights, pairs, metric, method=method, steps=2, reference=reference)
        with Float64():
            expected = eap_reference.attribute(
                model,
                clean,
                corrupted,
                lengths,
                metric,
                [0, 0.5],
                [1, 1] if method == "ceap" else [0.5, 0.5],
                conductance=method == "ceap",
                ablated=held,
            )
        assert relative(found.scores, expected) < 3e-6, method

    masks = some_masks(graph)
    found_metrics = CircuitEvaluator(weights, pairs, metric, batch_size=1, reference=reference)(masks)
    with Float64(), torch.no_grad():
        for prompt, n in enumerate(lengths.tolist()):
            for number, mask in enumerate(masks):
                logits = eap_reference.ablated_logits(model, clean[prompt, :n], held, mask)
                value = float(metric(logits[None], torch.tensor([prompt])))
                assert float(found_metrics[number, prompt]) == pytest.approx(value, abs=1e-5), number


@pytest.mark.parametrize("architecture", ["neox-parallel", "gpt2", "llama-grouped", "olmo2-grouped", "gemma2"])
def test_the_mean_of_one_prompt_is_patching_with_it(architecture: str) -> None:
    weights, (clean, corrupted, _) = read_weights(random_model(architecture, n_layers=2)), random_pairs(2)
    metric = eap_reference.logit_diff_metric(97, 2)
    masks = some_masks(Graph.of(weights))
    for ablation, width in (("mean_positional", clean.shape[1]), ("mean", 1)):
        other = corrupted[:1, :width].expand(len(clean), -1)
        pairs = TokenPairs(clean[:, :width], other, torch.full((len(clean),), width))
        reference = Reference.of(weights, ablation, other[:1], pairs.lengths[:1])  # type: ignore[arg-type]
        for method in ALL_METHODS:
            patched, ablated = (
                edge_scores(weights, pairs, metric, method=method, steps=2, n_exact=20, reference=held).scores
                for held in (None, reference)
            )
            assert relative(ablated, patched) < 1e-4, (ablation, method)
        patched, ablated = (
            CircuitEvaluator(weights, pairs, metric, reference=held)(masks) for held in (None, reference)
        )
        torch.testing.assert_close(ablated, patched, rtol=0, atol=2e-5)


@pytest.mark.parametrize("level", ["edge", "neuron"])
@pytest.mark.parametrize("ablation", ABLATIONS)
def test_on_a_linear_model_all_methods_give_the_exact_scores(ablation: Ablation, level: Any) -> None:
    weights, pairs = linear_weights("gpt2"), TokenPairs(*random_pairs(3))
    reference = Reference.of(weights, ablation, pairs.clean, pairs.lengths, neurons=True)
    how: dict[str, Any] = {"level": level, "reference": reference}
    exact = edge_scores(weights, pairs, logit_difference, method="exact", **how).scores
    for method in ("eap_ig", "eap", "clean_corrupted", "ceap", "relp"):
        scores = edge_scores(weights, pairs, logit_difference, method=method, steps=3, **how).scores
        assert relative(scores, exact) < 1e-4, method


def test_padding_changes_no_mean_and_a_prompt_longer_than_all_others_has_none() -> None:
    weights, (clean, _, lengths) = read_weights(random_model("neox-parallel")), random_pairs(4)
    wider = torch.nn.functional.pad(clean, (0, 3), value=5)
    for ablation in ("mean", "mean_positional"):
        one, other = (Reference.of(weights, ablation, tokens, lengths) for tokens in (clean, wider))  # type: ignore[arg-type]
        assert one is not None
        assert other is not None
        for mine, theirs in zip(one.totals, other.totals, strict=True):
            assert torch.equal(mine, theirs)
    longest = int(lengths.max())
    pairs = TokenPairs(wider, wider, torch.full_like(lengths, longest + 1))
    with pytest.raises(ValueError, match=f"has {longest + 1} tokens, but no reference prompt more than {longest}"):
        CircuitEvaluator(weights, pairs, eap_reference.logit_diff_metric(97, 4), reference=other)


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_the_search_and_random_circuits_are_evaluated_with_nodes_held_by_hand(ablation: Ablation) -> None:
    model, task = cot.load(str(TOY), step=1350), cot.task("sva")
    n = 8 if ablation == "mean_positional" else 4  # With fewer, means by position leave too small a gap.
    keys = {"n_prompts": n, "ig_steps": 2, "n_random": 1, "ablation": ablation}
    found = cot.find_circuit(model, task, **keys)
    _, prompts = with_prompts(model, task, keys)
    scoring, evaluation = prompts.scoring, prompts.evaluation
    network = AutoModelForCausalLM.from_pretrained(TOY / "step1350", dtype=torch.float32)  # It is stored in float16.
    metric = evaluation.metric(task.primary)
    tokens, lengths = torch.cat([scoring.clean, evaluation.clean]), torch.cat([scoring.lengths, evaluation.lengths])
    with torch.no_grad():
        held = eap_reference.mean_outputs(network, tokens, lengths, positional=ablation == "mean_positional")
    held = torch.zeros_like(held) if ablation == "zero" else held

    def mean_metric(mask: Tensor) -> float:
        with torch.no_grad():
            logits = [
                eap_reference.ablated_logits(network, row[:n], held, mask)
                for row, n in zip(evaluation.clean, evaluation.lengths.tolist(), strict=True)
            ]
        return float(metric(torch.stack(logits), torch.arange(len(logits))).mean())

    graph, scores = found.circuit.graph, found.circuit.scores
    assert found.corrupted == pytest.approx(mean_metric(torch.zeros_like(graph.edge_mask)), abs=1e-5)
    # The chosen size and the one below: the first reaches the threshold, the other does not.
    curve = found.curve.set_index("size")["metric"]
    sizes = [size for size in curve.index if found.size is not None and size <= found.size][-2:]
    masks = top_n_masks(edge_order(scores, graph, "greedy"), graph, sizes)
    by_hand = [mean_metric(mask) for mask in masks]
    assert curve[sizes].tolist() == pytest.approx(by_hand, abs=1e-5)
    below, reached = ((value - found.corrupted) / (found.full - found.corrupted) for value in by_hand)  # type: ignore[operator]
    assert below < 0.8 <= reached

    masks = torch.cat([found.circuit.in_circuit[None], random_circuits(found.circuit, 1, seed=0)])
    # A node that the clean prompt no longer reaches writes what it does ablated: its edges are as good as pruned.
    expected = [mean_metric(mask) for mask in (*masks, *prune(graph.edge_mask & ~masks, graph))]
    assert found.controls["metric"].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.skipif(not PEER_FILES.is_dir(), reason="the numbers of the published EAP-IG are not here")
def test_ablations_of_a_trained_model_are_those_of_the_published_eap_ig() -> None:
    expected, weights, pairs, metric = peers_setting()
    graph = Graph.of(weights)
    references = {
        "patching": None,
        "zero": Reference.of(weights, "zero", pairs.clean, pairs.lengths),
        "mean-positional": padded_means(pairs),
    }
    peers: tuple[tuple[Method, str], ...] = (("eap", "EAP"), ("eap_ig_activations", "EAP-IG-activations"))
    for method, name in peers:
        for ablation, reference in references.items():
            if f"{name} {ablation}" in expected["edge_scores"]:
                ours = edge_scores(weights, pairs, metric, method=method, steps=5, reference=reference).scores
                assert relative(ours, peers_scores(expected, f"{name} {ablation}", graph)) < 1e-4, (method, ablation)
    exact = dict(itertools.islice(expected["edge_scores"]["exact zero"].items(), 80))
    evaluator = CircuitEvaluator(weights, pairs, metric, reference=references["zero"])
    without = evaluator(without_one_by_one(exact, graph)).mean(1) - evaluator.full.mean()
    assert relative(without, torch.tensor(list(exact.values()))) < 1e-5

    # Its `mean` has one vector for all nodes. So scores differ from those of `zero` by one number for each input.
    zero, mean = (peers_scores(expected, f"EAP {ablation}", graph) for ablation in ("zero", "mean"))
    shift = ((zero - mean).sum(0) / graph.n_before) * graph.edge_mask
    assert relative(shift, zero - mean) < 1e-3

    scores = edge_scores(weights, pairs, metric, steps=5).scores
    for ablation, reference in references.items():
        masks, theirs = [], []
        for name, found in expected["evaluation"].items():
            of, order, ranking, size = name.split()
            if of == ablation:
                signed = ranked_edges(scores, graph, limit=int(size))
                how = "greedy" if order == "greedy" else "top_n"
                ranked = signed if ranking == "signed" else edge_order(scores, graph, how, int(size))  # type: ignore[arg-type]
                masks.append(top_n_masks(ranked, graph, [int(size)]))
                theirs.append(found["metric"])
        ours = CircuitEvaluator(weights, pairs, metric, reference=reference)(torch.cat(masks)).mean(1)
        assert len(theirs) == 15
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=0, atol=1e-4)


def padded_means(pairs: TokenPairs) -> Reference:
    """Means by position as the published program has them: padding counts, and has the last token's position."""
    model = AutoModelForCausalLM.from_pretrained(TOY / "step1350", dtype=torch.float32)  # It is stored in float16.
    written: list[Tensor] = []
    z: list[Tensor] = []

    def keep(module: object, arguments: object, output: Tensor) -> None:
        written.append(output.mean(0))

    model.gpt_neox.embed_in.register_forward_hook(keep)
    for block in model.gpt_neox.layers:
        block.attention.dense.register_forward_pre_hook(lambda module, arguments: z.append(arguments[0].mean(0)))
        block.attention.dense.register_forward_hook(keep)
        block.mlp.register_forward_hook(keep)
    mask = (torch.arange(pairs.clean.shape[1]) < pairs.lengths[:, None]).long()
    with torch.no_grad():
        model(input_ids=pairs.clean, attention_mask=mask, position_ids=mask.cumsum(1) - 1)
    heads = [one.unflatten(1, (model.config.num_attention_heads, -1)) for one in z]
    return Reference(True, written, heads, heads)
