"""IOI on small random models and on the hand-built transformer: prompts, made-up head facts, levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.edge_attribution_patching.patching.paths import Head
from circuits_over_time.edge_attribution_patching.statistics import standard_errors
from circuits_over_time.utils.algorithms.attention import NAMES
from circuits_over_time.utils.algorithms.effects import PairedRuns
from circuits_over_time.utils.algorithms.inputs import HeadFacts
from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.algorithms.levels import Levels
from circuits_over_time.utils.algorithms.shares import Effects
from circuits_over_time.utils.algorithms.tables import Consistency
from circuits_over_time.utils.heads.attention_and_copy import (
    attention_samples,
    chance_levels,
    ordinary_tokens,
    repeated_blocks,
)
from circuits_over_time.utils.heads.copy_scores import copy_samples, mean_scores
from circuits_over_time.utils.tasks import TASKS, Prompts
from circuits_over_time.utils.tasks.ioi import signal_variants
from circuits_over_time.utils.tasks.metrics import Answers
from tests.support import ioi_transformer
from tests.support.float64 import in_float64
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

HEADS = [(layer, head) for layer in range(3) for head in range(4)]
"""Those of the random models."""


@dataclass(frozen=True)
class Setup:
    """A model and what its levels are measured on."""

    model: PreTrainedModel
    weights: ModelWeights
    prompts: Prompts
    variants: Mapping[str, Tensor]
    config: IoiConsistencyConfig

    def runs(self, others: Tensor | None = None, batch_size: int = 2) -> PairedRuns:
        """Clean prompts and others, by default the corrupted ones."""
        return PairedRuns(
            self.weights, self.prompts, self.prompts.corrupted if others is None else others, batch_size, 1.0
        )

    def levels(self, facts: HeadFacts, **changes: Any) -> Levels:
        """The levels, to be run."""
        config = self.config.model_copy(update=changes)
        return Levels(self.weights, self.prompts, self.variants, facts, config)

    def measure(self, facts: HeadFacts, **changes: Any) -> Consistency:
        """The tables of the levels."""
        return self.levels(facts, **changes).run()[0]

    def pair(self, others: Tensor, row: int) -> tuple[Tensor, Tensor]:
        """A clean prompt and the other one beside it, without padding."""
        n = int(self.prompts.lengths[row])
        return self.prompts.clean[row, :n], others[row, :n]

    def logit_diff(self, logits: Tensor, row: int) -> float:
        """From the logits at the end of a prompt."""
        answers = self.prompts.answers
        return float(logits[answers.right[row, 0]] - logits[answers.wrong[row, 0]])


def config_of(**keys: Any) -> IoiConsistencyConfig:
    return IoiConsistencyConfig(model="any", **({"n_prompts": 6} | keys))


def _prompts(config: IoiConsistencyConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompts, dict[str, Tensor]]:
    prompts = TASKS["ioi"].build(tokenizer, config.n_prompts, config.seed, config)
    return prompts, signal_variants(prompts, tokenizer, config.seed)


def turned_around(setup: Setup) -> Setup:
    """The same prompts with right and wrong answers exchanged."""
    answers = setup.prompts.answers
    turned = Answers(answers.wrong, answers.wrong_mask, answers.right, answers.right_mask)
    return replace(setup, prompts=replace(setup.prompts, answers=turned))


def random_setup(architecture: str, *, float64: bool = False, **keys: Any) -> Setup:
    """A random model of three layers of four heads; its effects have a positive unit under the config's definitions.

    Roles go by the measured values, whatever their errors.
    """
    tokenizer = words()
    model = random_model(architecture, n_layers=3, n_heads=4, d_model=32, vocab=len(tokenizer))
    model = in_float64(model) if float64 else model
    config = config_of(**({"false_discovery_rate": 1.0} | keys))
    prompts, variants = _prompts(config, tokenizer)
    setup = Setup(model, read_weights(model), prompts, variants, config)
    clean, corrupted = (values.mean() for values in setup.runs().both())
    unit = clean if config.definitions == "frozen" else clean - corrupted
    return setup if unit > 0 else turned_around(setup)


def hand_built(**keys: Any) -> tuple[Setup, HeadFacts]:
    """The hand-built transformer, and its scores; only the CSPA score is made up."""
    tokenizer = ioi_transformer.tokenizer()
    model = ioi_transformer.ioi_transformer()
    weights = read_weights(model)
    config = config_of(**({"n_prompts": 24} | keys))
    prompts, variants = _prompts(config, tokenizer)
    blocks = repeated_blocks(ordinary_tokens(tokenizer, weights.d_vocab), 20, 10, seed=0)
    names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
    samples = attention_samples(weights, blocks, 32)
    samples |= copy_samples(weights, prompts.clean, prompts.lengths, names, 32)
    samples.pop("previous_token")
    facts = facts_of(Graph.of(weights), cspa={(3, 1): 0.9})
    errors = facts.errors | {name: standard_errors(of_score) for name, of_score in samples.items()}
    chance = chance_levels(20, weights.d_vocab)
    facts = replace(facts, **mean_scores(samples), errors=errors, chance=chance)
    return Setup(model, weights, prompts, variants, config), facts


def facts_of(graph: Graph, **scores: Mapping[Head, float]) -> HeadFacts:
    """Head facts with given scores, 0 elsewhere, all without error; the circuit holds every edge."""
    names = ("copy", "negative_copy", "induction", "duplicate_token", "cspa")
    planted = {name: torch.zeros(graph.n_layers, graph.n_heads) for name in names}
    for name, heads in scores.items():
        for head, value in heads.items():
            planted[name][head] = value
    exact = {name: torch.zeros(graph.n_layers, graph.n_heads) for name in names}
    counts, chance = dict.fromkeys(names, 20), dict.fromkeys(("induction", "duplicate_token"), 0.0)
    edges = graph.edge_mask.clone()
    return HeadFacts(graph, edges, "found", **planted, sources={}, errors=exact, n_samples=counts, chance=chance)


def effects_of(*values: float, errors: float = 0.0, n: int = 20) -> Effects:
    """Made-up effects, of means over prompts with a standard error."""
    noise = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(n // 2) * errors * (n - 1) ** 0.5
    means = torch.tensor(values, dtype=torch.float64)
    return Effects(means, means[None], means[:, None] + noise, torch.ones(n, dtype=torch.float64))


def without(facts: HeadFacts, *heads: Head) -> HeadFacts:
    """The same facts with some heads left out of the circuit."""
    edges = facts.edges.clone()
    for head in heads:
        edges[facts.graph.head(*head)] = False
        edges[:, [facts.graph.head_input(*head, letter) for letter in "qkv"]] = False
    return replace(facts, edges=edges)
