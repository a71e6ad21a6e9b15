"""Statistical tests of a circuit.

After Shi et al. 2024, "Hypothesis Testing the Circuit Hypothesis in LLMs" (arXiv 2410.13032).

Equivalence. Does the circuit do as well as the model? Null hypothesis: the share of prompts on which it scores higher
    is within .1 of one half. A sign test, so no distribution is assumed.
Independence. Does what is left without the circuit know anything of what the model does? Null hypothesis: over prompts,
    the metric of the model without the circuit is independent of the model's. HSIC with Gaussian kernels of the median
    distance, and permutations of prompts (Gretton et al. 2007).
Minimality. Is every edge needed? Removing one edge changes the metric of a prompt by some amount, on average over
    prompts. For comparison the circuit is inflated by a random path from `input` to `logits`, and one of the added
    edges is removed again. Null hypothesis of an edge: its change exceeds that of 90% of such edges. One binomial test
    an edge, Bonferroni over edges.
Sufficiency and partial necessity. Is the circuit better than random circuits of its size? Null hypothesis: with
    probability at most .9 it is closer to the model than a random one, or its removal changes the metric more.

An ideal circuit is one whose equivalence, independence and minimality are not rejected, and whose sufficiency and
necessity are shown, because the null hypothesis there says that the circuit is no better than chance allows.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, fsum
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..graph import Graph
from .circuit import Circuit
from .controls import Controls
from .faithfulness import CircuitEvaluator

Test = Literal["equivalence", "independence", "minimality", "sufficiency", "necessity"]
LEVEL = 0.05
EQUIVALENCE_MARGIN = 0.1
QUANTILE = 0.9
N_REFERENCES = 50
"""Random circuits, and inflated circuits, that the tests compare with. Below 29 no test at .9 could succeed."""
PERMUTATIONS = 1000


@dataclass(frozen=True)
class Outcome:
    """One test."""

    test: Test
    # Equivalence: share of prompts on which the circuit scores higher; independence: HSIC; minimality: share of
    # edges whose removal changes the metric more than that of 90% of the edges added at random; sufficiency and
    # necessity: share of random circuits that the circuit beats.
    statistic: float
    p_value: float  # of the null hypothesis; for minimality the smallest over edges, times the number of edges
    # Whether the circuit has the property: for equivalence, independence and minimality that the null hypothesis
    # is kept at 5%, for the others that it is rejected.
    passes: bool
    n: int  # prompts, edges or random circuits


def binomial_tail(n: int, at_least: int, probability: float) -> float:
    """P(X >= at_least) for X binomial of n trials, summed exactly: scipy's differs in the last digits."""
    return min(1.0, fsum(comb(n, k) * probability**k * (1 - probability) ** (n - k) for k in range(at_least, n + 1)))


def equivalence(circuit: Float[Tensor, " prompt"], full: Float[Tensor, " prompt"]) -> Outcome:
    """Whether a circuit and the model score higher equally often; prompts on which they are equal count half."""
    wins = float((circuit > full).sum() + 0.5 * (circuit == full).sum())
    n = len(full)
    # The farther share from one half, at the least favourable probability of the null hypothesis.
    extreme = int(np.floor(max(wins, n - wins)))
    p_value = binomial_tail(n, extreme, 0.5 + EQUIVALENCE_MARGIN)
    return Outcome("equivalence", wins / n, p_value, p_value >= LEVEL, n)


def hsic(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> tuple[Tensor, Tensor, float]:
    """Centred Gaussian kernels of two samples and their Hilbert-Schmidt independence criterion (biased estimate)."""
    kernels = []
    for values in (x.double(), y.double()):  # each kernel [n, n], with rows and columns centred
        distance = (values[:, None] - values[None, :]).abs()
        width = distance[distance > 0].median() if bool((distance > 0).any()) else torch.tensor(1.0)
        kernel = torch.exp(-(distance**2) / (2 * width**2))
        kernels.append(kernel - kernel.mean(0, keepdim=True) - kernel.mean(1, keepdim=True) + kernel.mean())
    return kernels[0], kernels[1], float((kernels[0] * kernels[1]).mean())


def independence(without: Float[Tensor, " prompt"], full: Float[Tensor, " prompt"], seed: int) -> Outcome:
    """Whether the model without the circuit says nothing about the model."""
    x, y, statistic = hsic(without, full)
    generator = np.random.default_rng(seed)
    exceed = 0
    for _ in range(PERMUTATIONS):
        order = torch.from_numpy(generator.permutation(len(full)))  # breaks what links the two samples
        exceed += float((x * y[order][:, order]).mean()) >= statistic
    p_value = (1 + exceed) / (1 + PERMUTATIONS)
    return Outcome("independence", statistic, p_value, p_value >= LEVEL, len(full))


def _beats(test: Test, beaten: Bool[Tensor, " random"]) -> Outcome:
    """Whether the circuit beats nearly all random ones, from which of them it does."""
    n, n_beaten = len(beaten), int(beaten.sum())
    p_value = binomial_tail(n, n_beaten, QUANTILE)
    return Outcome(test, n_beaten / n, p_value, p_value < LEVEL, n)


def sufficiency(
    circuit: Float[Tensor, " prompt"], full: Float[Tensor, " prompt"], random: Float[Tensor, "random prompt"]
) -> Outcome:
    """Whether the circuit is closer to the model, on average over prompts, than random circuits are."""
    own = (circuit - full).double().abs().mean()
    return _beats("sufficiency", (random - full).double().abs().mean(1) > own)


def necessity(
    without: Float[Tensor, " prompt"], full: Float[Tensor, " prompt"], without_random: Float[Tensor, "random prompt"]
) -> Outcome:
    """Whether removing the circuit changes the metric more than removing random circuits does."""
    own = (without - full).double().abs().mean()
    return _beats("necessity", (without_random - full).double().abs().mean(1) < own)


def minimality(changes: Float[Tensor, " edge"], references: Float[Tensor, " reference"]) -> Outcome:
    """Whether no edge's removal matters less than that of edges added at random.

    Args:
        changes: mean absolute change of the metric when each edge of the circuit is removed.
        references: the same for an added edge of each inflated circuit.
    """
    n = len(references)
    above = (changes[:, None] > references[None, :]).sum(1).tolist()
    # Few references below an edge's change speak against its being above 90% of them: P(X <= above).
    p_values = [1 - binomial_tail(n, count + 1, QUANTILE) if count < n else 1.0 for count in above]
    smallest = min(1.0, min(p_values) * len(changes))
    share = sum(count > QUANTILE * n for count in above) / len(changes)
    return Outcome("minimality", share, smallest, smallest >= LEVEL, len(changes))


def inflated_circuits(
    circuit: Circuit, n: int, seed: int
) -> tuple[Bool[Tensor, "n n_forward n_backward"], Bool[Tensor, "n n_forward n_backward"]]:
    """Circuits with a random path added, and the same with one of the added edges removed.

    A path goes backwards from `logits`, each time along a random edge into the node reached, until `input`. Paths that
    add nothing are drawn again.

    Raises:
        ValueError: if the circuit holds every edge.
    """
    graph = circuit.graph
    if circuit.n_edges == graph.n_edges:
        raise ValueError("the circuit holds every edge: nothing can be added")
    generator = np.random.default_rng(seed)
    inflated = circuit.in_circuit.repeat(n, 1, 1)
    reduced = inflated.clone()
    for whole, without in zip(inflated, reduced, strict=True):
        added: list[tuple[int, int]] = []
        while not added:
            added = [edge for edge in _random_path(graph, generator) if not circuit.in_circuit[edge]]
        for edge in added:
            whole[edge] = without[edge] = True
        without[added[int(generator.integers(len(added)))]] = False
    return inflated, reduced


def _random_path(graph: Graph, generator: np.random.Generator) -> list[tuple[int, int]]:
    path, node, role = [], graph.n_nodes, graph.n_roles - 1
    while node != 0:
        inputs = (graph.forward_of_backward == node).nonzero()[:, 0]
        if len(inputs) == 0:  # A unit is a path by itself.
            break
        n_before = int(graph.n_before[inputs[0]])
        source, target = int(generator.integers(n_before)), int(inputs[generator.integers(len(inputs))])
        if graph.roles:
            role = int(generator.choice(graph.follows[role, :, target].nonzero()[:, 0]))
        path.append((role * graph.n_nodes + source, target))
        node = source
    return path


def run_tests(
    evaluator: CircuitEvaluator, circuit: Circuit, of_circuit: Float[Tensor, " prompt"], controls: Controls, seed: int
) -> list[Outcome]:
    """All tests. They evaluate one circuit an edge, and 2 for each of the 50 inflated circuits.

    Args:
        circuit, of_circuit: a circuit with at least one edge, and its metric.
        controls: at least 29 random circuits.
    """
    full = evaluator.full
    edges = circuit.in_circuit.nonzero()
    # The circuit without each of its edges in turn.
    removed = circuit.in_circuit.repeat(len(edges), 1, 1)
    removed[torch.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    changes = (evaluator(removed) - of_circuit).double().abs().mean(1)
    results = [
        equivalence(of_circuit, full),
        independence(controls.without, full, seed),
        sufficiency(of_circuit, full, controls.random),
        necessity(controls.without, full, controls.without_random),
    ]
    if circuit.n_edges < circuit.graph.n_edges:
        inflated, reduced = (evaluator(masks) for masks in inflated_circuits(circuit, N_REFERENCES, seed))
        results.insert(2, minimality(changes, (reduced - inflated).double().abs().mean(1)))
    return results
