"""Logit differences, patched paths, exchanged outputs and attention against the Hugging Face model with hooks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuits_over_time.edge_attribution_patching.model.norms import centred
from circuits_over_time.edge_attribution_patching.patching.paths import Receivers
from circuits_over_time.utils.algorithms.attention import NAMES, name_attention
from circuits_over_time.utils.algorithms.effects import Exchange, LogitDifference, reads
from circuits_over_time.utils.tasks.metrics import METRICS
from tests.support.ioi_setup import HEADS, random_setup
from tests.support.path_patching_reference import path_patched_logits, recomputed_after, swapped_at_end
from tests.support.random_models import ARCHITECTURES, HOOKED

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logit_differences_equal_the_metric_of_the_models_own_logits(architecture: str) -> None:
    setup = random_setup(architecture)
    prompts = setup.prompts
    rows = torch.arange(len(prompts)), prompts.lengths - 1
    for found, tokens in zip(setup.runs(batch_size=4).both(), (prompts.clean, prompts.corrupted), strict=True):
        expected = METRICS["logit_diff"](setup.model(tokens).logits[rows], prompts.answers)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_output_bias_counts() -> None:
    setup = random_setup("gpt2")
    weights, prompts = setup.weights, setup.prompts
    bias = torch.randn(weights.d_vocab)
    rows = torch.arange(len(prompts))
    finals = torch.randn(len(prompts), weights.d_model)
    without = LogitDifference(weights, prompts)(finals, rows)
    with_bias = LogitDifference(replace(weights, unembed_bias=bias), prompts)(finals, rows)
    expected = bias[prompts.answers.right[:, 0]] - bias[prompts.answers.wrong[:, 0]]
    torch.testing.assert_close(with_bias - without, expected, **CLOSE)


@pytest.mark.parametrize("architecture", ["neox-parallel", "llama"])
def test_parts_of_the_residual_stream_add_up_to_its_logit_difference(architecture: str) -> None:
    setup = random_setup(architecture)
    of = LogitDifference(setup.weights, setup.prompts)
    rows = torch.arange(len(setup.prompts))
    parts = torch.randn(3, len(rows), setup.weights.d_model)
    final = centred(setup.weights.final_norm, parts.sum(dim=0))
    constant = of(torch.zeros_like(final), rows)
    torch.testing.assert_close(of.of_part(parts, final, rows).sum(dim=0) + constant, of(final, rows), **CLOSE)


@pytest.mark.parametrize("corruption", ["swap", "abc"])
@pytest.mark.parametrize("architecture", HOOKED)
def test_direct_effects_in_closed_form_equal_the_mask_evaluation(architecture: str, corruption: str) -> None:
    runs = random_setup(architecture, ioi_corruption=corruption).runs(batch_size=4)
    direct, by_masks = runs.direct(HEADS), runs.along_paths(HEADS)
    torch.testing.assert_close(direct, by_masks, **CLOSE)
    assert float((direct - runs.both()[0]).abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", HOOKED)
def test_frozen_paths_through_two_stages_equal_brute_force(architecture: str) -> None:
    setup = random_setup(architecture, n_prompts=3)
    stages = [Receivers(((1, 1), (1, 2)), "v"), Receivers(((2, 0), (2, 3)), "q")]
    senders = [(0, 0), (0, 2), (1, 1)]
    runs = setup.runs()
    found = runs.along_paths(senders, stages)
    for row, sender in enumerate(senders):
        for i in range(3):
            logits = path_patched_logits(setup.model, *setup.pair(setup.prompts.corrupted, i), sender, tuple(stages))
            assert float(found[row, i]) == pytest.approx(setup.logit_diff(logits, i), abs=1e-5)
    torch.testing.assert_close(found[2], runs.both()[0])  # (1, 1) cannot write to its own layer


@pytest.mark.parametrize("only_into_queries", [True, False])
@pytest.mark.parametrize("architecture", HOOKED)
def test_exchanges_equal_hooks_at_the_answer(architecture: str, only_into_queries: bool) -> None:
    setup = random_setup(architecture, n_prompts=3)
    others = setup.variants["same_token_opposite_order"]
    senders, movers = [(0, 1), (1, 2)], [(1, 0), (2, 1)]
    names = torch.stack([setup.prompts.positions[name] for name in NAMES], dim=1)
    values, watch = setup.runs(others).exchanged(senders, movers, names, only_into_queries=only_into_queries)
    exchange = Exchange(values, watch.attention(), reads(senders, movers))
    for row, sender in enumerate(senders):
        attended = []
        for i in range(3):
            texts = setup.pair(others, i)
            if only_into_queries:
                record = recomputed_after(setup.model, *texts, sender, Receivers(tuple(movers), "q"), at_end=True)
            else:
                _, record = swapped_at_end(setup.model, *texts, sender)
            expected = setup.logit_diff(record.logits, i)
            assert float(exchange.logit_difference[row, i]) == pytest.approx(expected, abs=1e-5)
            above = [mover for mover in movers if mover[0] > sender[0]]
            attended.append([record.attention[at][head, -1, names[i]] for at, head in above])
        expected = torch.stack([torch.stack(of_prompt) for of_prompt in attended]).mean(dim=(0, 1))
        torch.testing.assert_close(exchange.mean_attention()[row], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", HOOKED)
def test_attention_equals_the_models_own(architecture: str) -> None:
    setup = random_setup(architecture)
    prompts = setup.prompts
    names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
    queries = torch.stack([prompts.positions[name] for name in ("end", "s2")], dim=1)
    by_prompt, means = name_attention(setup.weights, prompts.clean, prompts.lengths, queries, names, batch_size=4)
    own = torch.stack(
        setup.model(prompts.clean, output_attentions=True).attentions
    )  # [layer, prompt, head, query, key]
    for row in range(2):
        for name in range(3):
            seen = torch.stack([own[:, i, :, queries[i, row], names[i, name]] for i in range(len(prompts))])
            torch.testing.assert_close(by_prompt[row, name], seen.movedim(0, -1), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(means[row, name], seen.mean(0), rtol=1e-5, atol=1e-6)
