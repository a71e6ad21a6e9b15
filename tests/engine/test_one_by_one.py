"""Circuits evaluated edge by edge: without rounding as all at once, and in bfloat16 with every sum rounded."""

import pytest
import torch

from circuits_over_time.edge_attribution_patching.choices import Level
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.one_by_one import read
from circuits_over_time.edge_attribution_patching.units import graph_of
from tests.support import eap_reference
from tests.support.float64 import in_float64
from tests.support.random_models import ARCHITECTURES, random_model, random_pairs

TIED = ("olmo2", "olmo2-grouped", "olmo3", "gemma2", "gemma3")
"""Those whose heads of a layer a norm ties together: here every head is normalised with the others of this run."""


@pytest.mark.parametrize("level", ["edge", "node"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_rounding_it_is_the_patched_forward(architecture: str, level: Level) -> None:
    weights = read_weights(in_float64(random_model(architecture, n_layers=2)))
    graph = graph_of(weights, level)
    densities = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0])[:, None, None]
    uniform = torch.rand(len(densities), *graph.edge_mask.shape, generator=torch.Generator().manual_seed(1))
    masks = graph.edge_mask & (uniform < densities)
    how = weights, TokenPairs(*random_pairs(5)), eap_reference.logit_diff_metric(97, 5)
    plain, one_by_one = (
        CircuitEvaluator(*how, graph=graph, batch_size=2, accumulate=accumulate) for accumulate in ("float32", "model")
    )
    found = one_by_one(masks)
    assert torch.equal(found[0], one_by_one.corrupted)
    torch.testing.assert_close(found[-1], one_by_one.full, rtol=1e-6, atol=1e-6)
    if architecture not in TIED:
        torch.testing.assert_close(found, plain(masks), rtol=1e-6, atol=1e-6)


def test_an_input_reads_the_stream_less_what_is_absent_each_sum_rounded_to_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    stream, *written = torch.randn(9, 3, 5, generator=generator).bfloat16()
    here, base = written[:4], written[4:]
    absent = torch.rand(6, 7, generator=generator) < 0.6  # two nodes have written nothing yet
    absent[:, 2] = False
    found = read(stream, here, base, absent)
    for number in range(7):
        expected = stream.clone()
        for node in range(4):
            if absent[node, number]:
                expected -= here[node]
                expected += base[node]
        assert torch.equal(found[number], expected)
    assert torch.equal(found[2], stream)
    terms = zip(here, base, absent[:4, 0].tolist(), strict=True)
    exact = stream.double() - sum(h.double() - b.double() for h, b, gone in terms if gone)
    assert not torch.equal(found[0].double(), exact)


def test_in_bfloat16_the_rounding_shows_and_stays_small() -> None:
    weights = read_weights(random_model("neox-parallel").bfloat16())
    graph = Graph.of(weights)
    masks = (graph.edge_mask & (torch.rand(graph.edge_mask.shape, generator=torch.Generator().manual_seed(2)) < 0.3))[
        None
    ]
    how = weights, TokenPairs(*random_pairs(5)), eap_reference.logit_diff_metric(97, 5)
    plain, one_by_one = (CircuitEvaluator(*how, accumulate=accumulate)(masks) for accumulate in ("float32", "model"))
    assert not torch.equal(plain, one_by_one)
    torch.testing.assert_close(one_by_one, plain, rtol=0, atol=0.15)
