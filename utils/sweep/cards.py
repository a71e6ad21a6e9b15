"""Whether a model and its batches fit on usual GPUs, in the words of a dry run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import takewhile
from operator import eq
from typing import Any

from circuits_over_time.edge_attribution_patching.choices import EXACT_AT_ONCE, MOST_PARTS, USUAL_STEPS
from circuits_over_time.edge_attribution_patching.model.architecture_table import ARCHITECTURES
from circuits_over_time.edge_attribution_patching.model.memory import (
    BYTES,
    BatchSizes,
    Memory,
    Sizes,
    layers_by_device,
    pairs_within,
)

from ..base.memory import GB, budget_of_free
from ..models.tokenizers import PlainShape

CARDS = (24, 48, 80)
"""GB of usual GPUs. They have as many GiB, 7% more, which leaves room for what CUDA takes itself."""
MOST_CARDS = 8
"""How many of them a machine has, at most."""
SEARCHED = 40
"""Circuits that a search evaluates at once, at most, as far as memory counts."""


def on_cards(
    config: Any, shape: PlainShape, parameters: int, clean: Sequence[Sequence[int]], corrupted: Sequence[Sequence[int]]
) -> tuple[int, str]:
    """The predicted peak on each of `CARDS`, and how many pairs go in a batch there; with `device_map` on as many cards
    as it takes. Before it come the bytes of a step of one pair, so that the largest of several tasks can be told.

    `config` has `MemoryKeys`; `clean` and `corrupted` are the tokens of the pairs.
    """
    if shape.architecture not in ARCHITECTURES or min(shape.n_layers, shape.n_heads, shape.d_model, shape.d_vocab) < 1:
        return 0, ""
    number, lengths = BYTES[config.dtype], [len(row) for row in clean]
    # Where levels start from a circuit, that is what takes most.
    keys: Any = config if hasattr(config, "eap") else getattr(config, "circuit", None)
    shared = [0] * len(lengths)
    if getattr(keys, "ablation", "patching") == "patching":
        # Tokens that the two have in common before they differ.
        shared = [sum(takewhile(bool, map(eq, *rows))) for rows in zip(clean, corrupted, strict=True)]
    pairs = sorted(((length - same, length) for same, length in zip(shared, lengths, strict=True)), reverse=True)
    if getattr(config, "evaluate_on", "same") == "heldout":  # Scores take one half, and circuits the other.
        pairs = pairs[: (len(pairs) + 1) // 2]
    method, steps = "eap_ig", USUAL_STEPS["eap_ig"]
    if hasattr(keys, "eap"):
        method, steps = keys.eap.method, keys.eap.steps(keys.ablation)
    nodes = 1 + shape.n_layers * (shape.n_heads + 1)
    told = []
    for card in CARDS:
        fits = "too small"
        for n_cards in range(1, (MOST_CARDS if config.device_map else 1) + 1):
            # Of each card its layers, as a model by themselves, and the bytes of its weights.
            parts = _parts(shape, parameters, number, [card * GB] * n_cards)
            free, at_once = card * GB - max(weights for _, weights in parts), 0
            if free > 0:
                budget = GB * (budget_of_free(free) if config.memory_budget_gb == "auto" else config.memory_budget_gb)
                at_once = min(len(pairs), pairs_within(shape, max(lengths), number, budget))
            peak = math.inf
            while at_once:
                given = nodes, pairs, at_once, number, budget, method, steps
                peak = max(weights + _peak(part, *given) for part, weights in parts)
                if peak <= card * GB:
                    break
                at_once, budget = at_once // 2, budget / 2  # As a run does where memory runs out.
            if at_once:
                several = f"{n_cards} cards, at most " if n_cards > 1 else ""
                fits = f"{several}{peak / GB:.1f} GB, {at_once} pair{'s'[: at_once != 1]} at once"
                break
        told.append(f"{card} GB: {fits}")
    return Memory(shape, BatchSizes.of([max(lengths)], [pairs[0][0]]), number, 0).step, "; ".join(told)


def _parts(shape: PlainShape, parameters: int, number: int, rooms: Sequence[float]) -> list[tuple[PlainShape, float]]:
    """How a model's layers go to several cards: of each a model of its layers alone, and the bytes of its weights."""
    shared = (1 if shape.tied else 2) * shape.d_vocab * shape.d_model
    of_layer = (parameters - shared) / shape.n_layers
    counts = layers_by_device(shape, number, rooms)
    return [
        (shape._replace(n_layers=count), number * (count * of_layer + shared * (place == 0)))
        for place, count in enumerate(counts)
        if count
    ]


def _peak(
    shape: Sizes, nodes: int, pairs: Sequence[tuple[int, int]], at_once: int, number: int, budget: float, *how: Any
) -> int:
    """Of finding circuits, above the weights. Of each pair: how many tokens run, and its length; the most first.

    What all `nodes` of the model write comes along from card to card.
    """
    runs, lengths = zip(*pairs[:at_once], strict=True)
    memory = Memory(shape, BatchSizes.of(lengths, runs), number, budget)
    evaluated = memory.evaluation(SEARCHED, nodes, batches=-(-len(pairs) // at_once))
    return max(scoring_peak(memory, *how), evaluated)


def scoring_peak(memory: Memory, method: str, steps: int | str) -> int:
    """That of scoring all edges of a batch; with `auto`, where the path is cut as finely as it may be."""
    sizes, batch = memory.sizes, memory.batch
    if method == "information_flow_routes":  # What all nodes write, the rest without each, and a product; float32.
        of_prompt = 4 * (1 + sizes.n_layers * (sizes.n_heads + 1)) * batch.width * sizes.d_model
        return 3 * of_prompt * max(1, min(batch.n_prompts, int(memory.budget // (2 * of_prompt))))
    if method == "exact":
        return memory.evaluation(EXACT_AT_ONCE)
    if method == "ceap":  # The sums of a step wait for what nodes write in the next one.
        per_token = sizes.n_layers * (3 * sizes.n_heads * sizes.d_head + sizes.d_model)
        return memory.attribution(1) + 4 * batch.n_tokens * per_token
    most = MOST_PARTS // 2 if steps == "auto" else int(steps)
    passes = {"eap": 1, "relp": 1, "clean_corrupted": 2, "eap_ig_activations": most * (2 * sizes.n_layers + 1)}
    return memory.attribution(passes.get(method, most))
