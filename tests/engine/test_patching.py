"""The patched forward against its identities and against brute force, node by node."""

from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_metric
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs, run_metric
from tests.support import eap_reference
from tests.support.float64 import Float64, in_float64
from tests.support.masked_logits import masked_logits
from tests.support.random_models import ARCHITECTURES, GROUPED, HOOKED, random_model, random_pairs

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
EXACT = {"rtol": 1e-9, "atol": 1e-10}
TIED = ("olmo2", "olmo2-grouped", "olmo3", "gemma2", "gemma3")
"""Those whose heads of a layer a norm ties together."""


def hugging_face_logits(model, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    with Float64():
        return model(tokens).logits[torch.arange(len(lengths)), lengths - 1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_full_mask_reproduces_the_model(architecture: str) -> None:
    model = in_float64(random_model(architecture))
    weights = read_weights(model)
    graph = Graph.of(weights)
    clean, corrupted, lengths = random_pairs(5)
    logits = [hugging_face_logits(model, tokens, lengths) for tokens in (clean, corrupted)]
    masks = torch.stack([graph.edge_mask, torch.zeros_like(graph.edge_mask)])
    for share_prefix, base in product((True, False), ("corrupted", "clean")):
        (batch,) = TokenPairs(clean, corrupted, lengths).batches(8, share_prefix=share_prefix)
        runs = prepare_runs(weights, batch, base)
        expected = [of_tokens[batch.index] for of_tokens in (logits if base == "corrupted" else logits[::-1])]
        for shortcuts in (True, False):
            found = masked_logits(weights, runs, masks, shortcuts=shortcuts)
            torch.testing.assert_close(found, torch.stack(expected), **EXACT)


@st.composite
def masks_of(draw, graph: Graph) -> torch.Tensor:
    """Random masks of every density, among them nearly full and nearly empty ones, and ones full up to some layer."""
    seed = draw(st.integers(0, 2**20))
    density = draw(st.sampled_from([0.02, 0.1, 0.5, 0.9, 0.99]))
    mask = torch.rand(graph.n_forward, graph.n_backward, generator=torch.Generator().manual_seed(seed)) < density
    full_below = draw(st.integers(0, graph.n_layers))
    mask[:, : full_below * (3 * graph.n_heads + 1)] = True
    return mask & graph.edge_mask


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_patched_forward_equals_brute_force_on_random_masks(architecture: str, data: st.DataObject) -> None:
    model = in_float64(random_model(architecture, n_layers=2, n_heads=4 if architecture in GROUPED else 2, d_model=16))
    weights = read_weights(model)
    graph = Graph.of(weights)
    clean, corrupted, lengths = random_pairs(2, lengths=(4, 6), shared=data.draw(st.integers(0, 3)))
    masks = torch.stack([data.draw(masks_of(graph)) for _ in range(3)])
    swapped = data.draw(st.booleans())
    (batch,) = TokenPairs(clean, corrupted, lengths).batches(8)
    runs = prepare_runs(weights, batch, "clean" if swapped else "corrupted")
    budget = data.draw(st.sampled_from([1.0, 1e-9]))
    logits = masked_logits(weights, runs, masks, memory_budget_gb=budget)
    source, base = (corrupted, clean) if swapped else (clean, corrupted)
    for mask, result in zip(masks, logits, strict=True):
        for row, prompt in enumerate(batch.index):
            n = lengths[prompt]
            with Float64():
                expected = eap_reference.patched_logits(model, source[prompt, :n], base[prompt, :n], mask)
            torch.testing.assert_close(result[row], expected, **EXACT)


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in TIED])
def test_shortcuts_change_nothing(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    graph = Graph.of(weights)
    (batch,) = TokenPairs(*random_pairs(4)).batches(8)
    runs = prepare_runs(weights, batch)
    mask = graph.edge_mask.clone()
    mask[graph.head(1, 2), graph.head_input(2, 1, "q")] = False
    single = torch.stack([mask, graph.edge_mask & (torch.rand(mask.shape) < 0.5)])
    torch.testing.assert_close(
        masked_logits(weights, runs, single), masked_logits(weights, runs, single, shortcuts=False), **CLOSE
    )


@pytest.mark.parametrize("architecture", HOOKED)
def test_edges_that_do_not_reach_the_logits_do_nothing(architecture: str) -> None:
    weights = read_weights(random_model(architecture))
    graph = Graph.of(weights)
    (batch,) = TokenPairs(*random_pairs(4)).batches(8)
    runs = prepare_runs(weights, batch)
    mask = graph.edge_mask.clone()
    mask[:, graph.logits] = False
    metric = eap_reference.logit_diff_metric(97, 4)
    dead = evaluate_metric(weights, runs, mask[None], metric)[0]
    _, base = run_metric(weights, runs, metric)
    assert torch.equal(dead, base)


def test_path_patching_is_an_edge_mask_with_the_runs_swapped() -> None:
    """Corrupting only a0.h1 -> a2.h3<q> -> logits equals replacing that one query by hand."""
    model = random_model("neox-parallel")
    weights = read_weights(model)
    graph = Graph.of(weights)
    clean, corrupted, lengths = random_pairs(1, lengths=(7, 7))
    (batch,) = TokenPairs(clean, corrupted, lengths).batches(1)
    mask = torch.zeros_like(graph.edge_mask)
    mask[0, [graph.head_input(0, 1, letter) for letter in "qkv"]] = True
    mask[graph.head(0, 1), graph.head_input(2, 3, "q")] = True
    mask[graph.head(2, 3), graph.logits] = True
    patched = masked_logits(weights, prepare_runs(weights, batch, "clean"), mask[None])[0, 0]

    expanded = eap_reference.ExpandedModel(model)

    _, outs_clean = expanded.run(expanded.embed(clean[0]), eap_reference.plain)
    _, outs_corrupted = expanded.run(expanded.embed(corrupted[0]), eap_reference.plain)
    change = outs_corrupted[graph.head(0, 1)] - outs_clean[graph.head(0, 1)]
    biases = [block.bias for block in expanded.blocks]
    resid = torch.stack(outs_clean[: graph.head(2)]).sum(0) + biases[0] + biases[1]
    inputs = {"q": [resid + change] * 4, "k": [resid] * 4, "v": [resid] * 4}
    new_head = expanded.heads(2, inputs)[3]
    final = torch.stack(outs_clean).sum(0) + sum(biases)
    expected = expanded.logits(final + new_head - outs_clean[graph.head(2, 3)])[-1]
    torch.testing.assert_close(patched, expected, **CLOSE)
