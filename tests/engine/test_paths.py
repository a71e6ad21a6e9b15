"""Path patching by edge masks against forward passes with hooks, one sender at a time."""

import pytest
import torch

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import unembed
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.forward import HeadAttention, evaluate_masks_final
from circuits_over_time.edge_attribution_patching.patching.paths import (
    Receivers,
    path_masks,
    recompute_after,
    recompute_mask,
    swap_masks,
)
from circuits_over_time.edge_attribution_patching.patching.plan import ActivationOverrides
from circuits_over_time.edge_attribution_patching.patching.runs import at_answers, prepare_runs
from tests.support.eap_reference import patched_logits
from tests.support.float64 import Float64, in_float64
from tests.support.masked_logits import masked_logits
from tests.support.path_patching_reference import path_patched_logits, recomputed_after, swapped_at_end
from tests.support.random_models import ARCHITECTURES, HOOKED, random_model, random_pairs

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
SENDERS = [(0, 1), (1, 0), (1, 3), (2, 2), (3, 1)]
WITH_MLPS = [*SENDERS, (0, None), (2, None)]
QUERIES = Receivers(((1, 0), (2, 2), (3, 0)), "q")
VALUES = Receivers(((1, 2), (2, 0), (2, 1)), "v")
STAGES = {
    "logits": (),
    "queries": (QUERIES,),
    "one query": (Receivers(((2, 3),), "q"),),
    "keys": (Receivers(((1, 1), (3, 2)), "k"),),
    "values": (VALUES,),
    "values, queries": (VALUES, QUERIES),
}


def setup(architecture: str, n: int = 2):
    model = random_model(architecture, n_layers=4, n_heads=4, d_model=32)
    weights = read_weights(model)
    clean, corrupted, lengths = random_pairs(n)
    (batch,) = TokenPairs(clean, corrupted, lengths).batches(n)
    return model, weights, batch, prepare_runs(weights, batch, "clean")


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("stages", STAGES.values(), ids=list(STAGES))
@pytest.mark.parametrize("architecture", HOOKED)
def test_path_masks_equal_forward_passes_with_hooks(architecture: str, stages: tuple, through_mlps: bool) -> None:
    model, weights, batch, runs = setup(architecture)
    masks = path_masks(Graph.of(weights), WITH_MLPS, stages, through_mlps=through_mlps)
    logits = masked_logits(weights, runs, masks)
    changed = 0.0
    for row, sender in enumerate(WITH_MLPS):
        for prompt, length in enumerate(batch.layout.lengths.tolist()):
            tokens = batch.clean[prompt, :length], batch.corrupted[prompt, :length]
            expected = path_patched_logits(model, *tokens, sender, stages, through_mlps=through_mlps)
            torch.testing.assert_close(logits[row, prompt], expected, **CLOSE)
            changed = max(changed, float((expected - model(tokens[0][None]).logits[0, -1]).abs().max()))
    assert changed > 1e-3  # the paths do something


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("stages", [(), (QUERIES,)], ids=["logits", "queries"])
@pytest.mark.parametrize("architecture", HOOKED)
def test_paths_into_queries_need_the_answers_tokens_alone(architecture: str, stages: tuple, through_mlps: bool) -> None:
    _, weights, _, runs = setup(architecture)
    masks = path_masks(Graph.of(weights), WITH_MLPS, stages, through_mlps=through_mlps)
    whole, cut = (masked_logits(weights, held, masks) for held in (runs, at_answers(runs)))
    torch.testing.assert_close(cut, whole, **CLOSE)


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("architecture", HOOKED)
def test_a_swap_at_the_answer_recomputes_everything_after_it(architecture: str, share_prefix: bool) -> None:
    model = random_model(architecture, n_layers=4, n_heads=4, d_model=32)
    weights = read_weights(model)
    (batch,) = TokenPairs(*random_pairs(3)).batches(3, share_prefix=share_prefix)
    runs = at_answers(prepare_runs(weights, batch, "clean"))
    logits = masked_logits(weights, runs, swap_masks(Graph.of(weights), SENDERS))
    for row, sender in enumerate(SENDERS):
        for prompt, length in enumerate(batch.layout.lengths.tolist()):
            tokens = batch.clean[prompt, :length], batch.corrupted[prompt, :length]
            expected, _ = swapped_at_end(model, *tokens, sender)
            torch.testing.assert_close(logits[row, prompt], expected, **CLOSE)


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param((), id="logits"),
        pytest.param((QUERIES,), id="queries", marks=pytest.mark.endurance),
        pytest.param((VALUES, QUERIES), id="values, queries"),
    ],
)
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in HOOKED])
def test_path_masks_equal_brute_force_on_every_block(architecture: str, stages: tuple) -> None:
    model = in_float64(random_model(architecture, n_layers=4))
    weights = read_weights(model)
    (batch,) = TokenPairs(*random_pairs(1)).batches(1)
    masks = path_masks(Graph.of(weights), SENDERS[:3], stages)
    logits = masked_logits(weights, prepare_runs(weights, batch, "clean"), masks)
    n = int(batch.layout.lengths[0])
    for row, mask in enumerate(masks):
        with Float64():
            expected = patched_logits(model, batch.corrupted[0, :n], batch.clean[0, :n], mask)
        torch.testing.assert_close(logits[row, 0], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("memory_budget_gb", "through_mlps"), [(1.0, True), (1e-6, True), (1.0, False)])
@pytest.mark.parametrize("stage", [QUERIES, VALUES, STAGES["keys"][0]], ids=["queries", "values", "keys"])
@pytest.mark.parametrize("architecture", HOOKED)
def test_recomputing_after_receivers_equals_three_runs_with_hooks(
    architecture: str, stage: Receivers, memory_budget_gb: float, through_mlps: bool
) -> None:
    model, weights, batch, runs = setup(architecture)
    how = {"through_mlps": through_mlps}
    finals = recompute_after(weights, runs, WITH_MLPS, stage, **how, memory_budget_gb=memory_budget_gb)
    logits = unembed(weights, finals)
    frozen = masked_logits(weights, runs, path_masks(Graph.of(weights), WITH_MLPS, [stage], **how))
    for row, sender in enumerate(WITH_MLPS):
        for prompt, length in enumerate(batch.layout.lengths.tolist()):
            tokens = batch.clean[prompt, :length], batch.corrupted[prompt, :length]
            expected = recomputed_after(model, *tokens, sender, stage, **how).logits
            torch.testing.assert_close(logits[row, prompt], expected, **CLOSE)
    assert float((logits - frozen).abs().max()) > 1e-3  # what follows the receivers matters


@pytest.mark.parametrize("architecture", HOOKED)
def test_at_the_answers_receivers_change_there_alone_and_are_seen(architecture: str) -> None:
    model, weights, batch, runs = setup(architecture)
    top = (3, 0)  # the highest receiver
    seen: dict[int, torch.Tensor] = {}

    def see(attended: HeadAttention) -> None:
        if attended.layer == top[0]:
            place = attended.heads.index(top[1])
            seen.update(zip(attended.masks.tolist(), attended.pattern[:, :, place, -1], strict=True))  # [prompt, key]

    logits = unembed(weights, recompute_after(weights, at_answers(runs), SENDERS, QUERIES, observe=see))
    for row, sender in enumerate(SENDERS):
        for prompt, length in enumerate(batch.layout.lengths.tolist()):
            tokens = batch.clean[prompt, :length], batch.corrupted[prompt, :length]
            expected = recomputed_after(model, *tokens, sender, QUERIES, at_end=True)
            torch.testing.assert_close(logits[row, prompt], expected.logits, **CLOSE)
            if sender[0] < top[0]:
                own = expected.attention[top[0]][top[1], -1]
                torch.testing.assert_close(seen[row][prompt, :length], own, **CLOSE)
            else:
                assert row not in seen  # it is not read by any receiver


@pytest.mark.parametrize("letter", ["q", "k", "v"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_receivers_of_one_layer_need_no_second_pass(architecture: str, letter: str) -> None:
    model = in_float64(random_model(architecture, n_layers=4))
    weights = read_weights(model)
    graph = Graph.of(weights)
    (batch,) = TokenPairs(*random_pairs(3)).batches(3)
    runs = prepare_runs(weights, batch, "clean")
    senders, receivers = SENDERS[:3], Receivers(((2, 0), (2, 3)), letter)
    masks = path_masks(graph, senders, [receivers], through_mlps=True)
    masks[:, :, graph.mlp_input(2) :] = False  # What comes after reads the receivers, and no MLP below them.
    above = slice(graph.head(2), None)
    masks[:, above] = graph.edge_mask[above]
    found = unembed(weights, recompute_after(weights, runs, senders, receivers))
    torch.testing.assert_close(found, masked_logits(weights, runs, masks), rtol=1e-9, atol=1e-9)
    assert float((found - unembed(weights, runs.base.final)).abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", HOOKED)
def test_given_outputs_equal_a_swap_and_reach_everything_after_them(architecture: str) -> None:
    _, weights, _, runs = setup(architecture)
    graph, runs = Graph.of(weights), at_answers(runs)
    for layer, head in SENDERS:
        given = ActivationOverrides(outputs={graph.head(layer, head): runs.source.layers[layer].written[None, :, head]})
        found = evaluate_masks_final(weights, runs, recompute_mask(graph)[None], overrides=given)
        expected = evaluate_masks_final(weights, runs, swap_masks(graph, [(layer, head)]))
        torch.testing.assert_close(found, expected, **CLOSE)


def test_masks_hold_edges_only_and_no_receiver_below_its_sender() -> None:
    graph = Graph(4, 4, parallel=True)
    masks = path_masks(graph, [(2, 0)], [QUERIES])
    assert not bool((masks & ~graph.edge_mask).any())
    sender = graph.head(2, 0)
    targets = {graph.backward_nodes[v] for v in masks[0, sender].nonzero()[:, 0].tolist()}
    assert targets == {"a3.h0<q>"}
    sources = {graph.forward_nodes[u] for u in masks[0, :, graph.logits].nonzero()[:, 0].tolist()}
    assert sources == {"a3.h0"}
