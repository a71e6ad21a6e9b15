"""The engine in every dtype a config may ask for."""

import pytest
import torch

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from tests.support.eap_reference import logit_diff_metric
from tests.support.masked_logits import masked_logits
from tests.support.random_models import ARCHITECTURES, HOOKED, random_model, random_pairs

# Rounding of one number, times what a few layers make of it.
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}


def relative(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return float(difference.float().norm() / reference.float().norm())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_half_precision_stays_close_to_float32(architecture: str, dtype: torch.dtype) -> None:
    exact = read_weights(random_model(architecture))
    rounded = read_weights(random_model(architecture).to(dtype))
    graph = Graph.of(exact)
    pairs = TokenPairs(*random_pairs(4))
    tolerance = TOLERANCE[dtype]

    layout = PackedTokens.whole(pairs.lengths)
    logits = [unembed(w, forward(w, layout, embed(w, layout, layout.pack(pairs.clean)))) for w in (exact, rounded)]
    assert logits[1].dtype == dtype
    assert relative(logits[1] - logits[0], logits[0]) < tolerance

    metric = logit_diff_metric(97, 4)
    scores = [attribute(w, pairs, metric, steps=3).scores for w in (exact, rounded)]
    assert scores[1].dtype == torch.float32
    assert relative(scores[1] - scores[0], scores[0]) < 3 * tolerance

    generator = torch.Generator().manual_seed(0)
    masks = (
        torch.rand(3, graph.n_forward, graph.n_backward, generator=generator)
        < torch.tensor([0.1, 0.5, 0.9])[:, None, None]
    )
    (batch,) = pairs.batches(8)
    patched = [masked_logits(w, prepare_runs(w, batch), masks) for w in (exact, rounded)]
    assert patched[1].dtype == dtype
    assert relative(patched[1] - patched[0], patched[0]) < 2 * tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("architecture", HOOKED)
def test_gpu_gives_the_numbers_of_the_cpu(architecture: str) -> None:
    model = random_model(architecture)
    on_cpu = read_weights(model)
    graph = Graph.of(on_cpu)
    clean, corrupted, lengths = random_pairs(4)
    metric = logit_diff_metric(97, 4)
    expected = attribute(on_cpu, TokenPairs(clean, corrupted, lengths), metric, steps=3).scores
    masks = torch.rand(3, graph.n_forward, graph.n_backward) < 0.3
    (batch,) = TokenPairs(clean, corrupted, lengths).batches(8)
    logits = masked_logits(on_cpu, prepare_runs(on_cpu, batch), masks)

    on_gpu = read_weights(model.cuda())
    pairs = TokenPairs(clean.cuda(), corrupted.cuda(), lengths.cuda())
    scores = attribute(
        on_gpu, pairs, lambda values, index: metric(values.cpu(), index.cpu()).to(values.device), steps=3
    ).scores
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    (batch,) = pairs.batches(8)
    torch.testing.assert_close(
        masked_logits(on_gpu, prepare_runs(on_gpu, batch), masks).cpu(), logits, rtol=1e-3, atol=1e-3
    )
