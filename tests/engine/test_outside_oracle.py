"""Edge scores against transformer_lens' own edge attribution: one gradient, at the corrupted run."""

from pathlib import Path

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, Node, attribution_patch

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from tests.support.random_models import HOOKED, random_model, random_pairs, tiny_tokenizer


def name_of(node: Node) -> str:
    """A node as the graph calls it."""
    if node.kind in ("embed", "logits"):
        return {"embed": "input", "logits": "logits"}[node.kind]
    if node.kind.startswith("mlp"):
        return f"m{node.layer}"
    letter = "" if node.kind == "attn_head_out" else f"<{node.kind[0]}>"
    return f"a{node.layer}.h{node.head}{letter}"


@pytest.mark.parametrize("architecture", HOOKED)
def test_one_step_at_the_corrupted_run_agrees_with_transformer_lens(architecture: str, tmp_path: Path) -> None:
    model = random_model(architecture, n_layers=2)
    weights = read_weights(random_model(architecture, n_layers=2))
    graph = Graph.of(weights)
    clean, corrupted, lengths = random_pairs(1, lengths=(7, 7))
    pairs = TokenPairs(clean, corrupted, lengths)
    scores = attribute(
        weights, pairs, lambda logits, index: logits[:, 3] - logits[:, 5], steps=1, quadrature="left"
    ).scores

    tiny_tokenizer(tmp_path)
    name = "gpt2" if architecture == "gpt2" else "EleutherAI/pythia-70m"
    bridge = TransformerBridge.boot_transformers(
        name, hf_model=model.requires_grad_(True), tokenizer=tiny_tokenizer(tmp_path), device="cpu"
    )
    found = attribution_patch(
        bridge,
        clean,
        corrupted,
        lambda logits: (logits[:, -1, 3] - logits[:, -1, 5]).mean(),
        EdgeAttributionConfig(granularity="edge"),
    )
    expected = torch.zeros_like(scores)
    for (source, target), score in found.edge_scores.items():
        expected[graph.edge_index(f"{name_of(source)}->{name_of(target)}")] += score
    assert (expected != 0).sum() == (scores != 0).sum()
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
