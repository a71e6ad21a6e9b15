"""Similarity of circuits to the previous checkpoint, to a reference and between models, with floors and flags.

Every pair is compared at two sizes: at fixed faithfulness, where each circuit is the one found for its checkpoint, and
at a fixed number of edges, because a circuit's size is set by a threshold. At fixed faithfulness a pair counts only if
both checkpoints have a circuit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import signed_selection

from ..base.multiple_tests import adjusted_p_values
from ..config.keys import task_and_method
from ..results.comparison import COMPARISONS
from .chance import expected_added, expected_jaccard, expected_weighted_jaccard
from .floors import Samples, bootstrap_scores, change_test, noise_floor
from .inputs import Checkpoint
from .keys import ComparisonConfig
from .similarity import OF_CIRCUITS, Circuits, Edges, of_circuits, rank_correlation
from .statistics import TAILS

AT = ("faithfulness", "size")
FAMILY = ["model", "task", "against", "other_model", "at", "measure"]
"""Rows that agree in these differ in their checkpoint alone: one family of tests."""


@dataclass(frozen=True)
class CircuitPair:
    """Two circuits to compare: the later or the other one, `second`, with the `first`."""

    against: str  # `previous`, `reference`, `model` or `method`
    first: Checkpoint
    second: Checkpoint


def grown(checkpoint: Checkpoint, size: int) -> Bool[Tensor, "n_forward n_backward"]:
    """The circuit of a number of edges (before pruning) of a checkpoint's own scores."""
    graph, rule = checkpoint.circuit.graph, checkpoint.rule
    of_signs = rule.selection == "signed"
    signed = signed_selection(checkpoint.folds, rule.seed, rule.positive_share) if of_signs else None
    order = edge_order(checkpoint.circuit.scores, graph, rule.order, limit=size, signed=signed)
    return top_n_masks(order, graph, [min(size, len(order))])[0]


def redrawn(checkpoint: Checkpoint, size: int, config: ComparisonConfig, edges: Edges) -> Bool[Tensor, "draw edge"]:
    """Circuits of other draws of the prompts at one checkpoint, over all edges of the graph.

    The same draws at every checkpoint with as many folds; a fifth of `resamples`, because circuits cost more than other
    curves.
    """
    folds, draws = checkpoint.folds, config.resamples // 5
    circuits = torch.zeros(draws, len(edges.flat), dtype=torch.bool)
    scores = bootstrap_scores(folds, config.seed, draws)
    circuits[:, torch.searchsorted(edges.flat, folds.edges)] = checkpoint.rule.grower(folds).circuits(scores, size)
    return circuits


class Comparer:
    """Compares pairs of circuits of one task, where sizes are fixed at `size` edges before pruning."""

    def __init__(self, config: ComparisonConfig, size: int) -> None:
        self.config, self.size = config, size
        self.raw = config.weighted_jaccard == "raw"
        self._masks: dict[tuple[str, str, int], Tensor] = {}
        self._fixed: dict[tuple[str, str, int], Samples] = {}

    def rows(self, pair: CircuitPair) -> list[dict[str, object]]:
        """One row for every measure at either size, without `q_value` and `changed`."""
        # At fixed faithfulness only where both checkpoints have a circuit.
        sizes: dict[str, tuple[int, int]] = {"size": (self.size, self.size)}
        if pair.first.size is not None and pair.second.size is not None:
            sizes = {"faithfulness": (pair.first.size, pair.second.size)} | sizes
        checkpoints = first, second = pair.first, pair.second
        floors = [self._floors(checkpoint, sizes) for checkpoint in checkpoints]
        p_values: dict[str, float] = {}
        if first is not second:  # A checkpoint and itself are not tested.
            given = (second.rule, self.config.seed, self.config.permutations)
            p_values = change_test(first.folds, second.folds, sizes, *given)
            if self.raw:  # All other measures, and so their tests, do not look at the size of scores.
                of_raw = change_test(first.folds, second.folds, sizes, *given, raw=True)
                p_values = p_values | {key: p for key, p in of_raw.items() if key.endswith("/weighted_jaccard")}
        stamp = {"model": second.model, "task": second.task, "step": second.step, "tokens": second.tokens}
        other = task_and_method(first.task)[1] if pair.against == "method" else first.model
        stamp |= {"against": pair.against, "other_model": other, "other_step": first.step}
        edges = Edges.all_of(first.circuit.graph)
        scores = [checkpoint.circuit.scores.flatten()[edges.flat][None] for checkpoint in checkpoints]
        # Of large graphs only some edges have fold scores, and with them a noise floor.
        kept = torch.isin(edges.flat, first.folds.edges) & torch.isin(edges.flat, second.folds.edges)
        correlation = float(rank_correlation(*(score[:, kept] for score in scores))[0])
        rows: list[dict[str, object]] = []

        def add(key: str, at: str, measure: str, value: float, chance: float, **counts: int) -> None:
            row = {"at": at, "measure": measure, "value": value, "chance_floor": chance}
            rows.append(stamp | row | {"p_value": p_values.get(key, np.nan)} | _band(floors, key) | counts)

        for at, (first_size, second_size) in sizes.items():
            masks = [self._mask(checkpoint, at).flatten()[edges.flat][None] for checkpoint in checkpoints]
            sides = [Circuits(edges, mask, score) for mask, score in zip(masks, scores, strict=True)]
            values = of_circuits(*sides, raw=self.raw)
            chance = _chance(sides[0], sides[1], self.config.seed, self.raw)
            counts = {"size": second_size, "other_size": first_size}
            counts |= {"n_edges": int(masks[1].sum()), "other_n_edges": int(masks[0].sum())}
            for measure in OF_CIRCUITS:
                add(f"{at}/{measure}", at, measure, float(values[measure][0]), chance[measure], **counts)
        add("rank_correlation", "scores", "rank_correlation", correlation, 0.0)
        return rows

    def _floors(self, checkpoint: Checkpoint, sizes: Mapping[str, tuple[int, int]]) -> Samples:
        """Noise floors of a checkpoint; that at the fixed size is the same in every pair, and worked out once."""
        given = (checkpoint.rule, self.config.seed, self.config.pairs, self.raw)
        if checkpoint.key not in self._fixed:
            self._fixed[checkpoint.key] = noise_floor(checkpoint.folds, {"size": sizes["size"]}, *given)
        varying = {name: both for name, both in sizes.items() if name != "size"}
        return self._fixed[checkpoint.key] | (noise_floor(checkpoint.folds, varying, *given) if varying else {})

    def _mask(self, checkpoint: Checkpoint, at: str) -> Tensor:
        if at == "faithfulness":
            return checkpoint.circuit.in_circuit
        if checkpoint.key not in self._masks:
            self._masks[checkpoint.key] = grown(checkpoint, self.size)
        return self._masks[checkpoint.key]


def flagged(rows: pd.DataFrame, rate: float) -> pd.DataFrame:
    """The table with `q_value` and `changed`, corrected over the checkpoints of each family of tests."""
    table = rows.assign(q_value=np.nan, changed=False)
    for _, family in table.groupby(FAMILY, sort=False):
        adjusted = adjusted_p_values(family["p_value"].to_numpy(dtype=float))
        table.loc[family.index, "q_value"] = adjusted
        table.loc[family.index, "changed"] = adjusted <= rate  # False where nothing was tested
    sizes = ("size", "other_size", "n_edges", "other_n_edges")
    return table.astype(dict.fromkeys(sizes, "Int64"))[list(COMPARISONS["similarity"])]


def _band(floors: list[Samples], key: str) -> dict[str, float]:
    """Noise floor and its band of one similarity, over both checkpoints."""
    sides = [floor[key][~np.isnan(floor[key])] for floor in floors]
    bands = [(side.mean(), *np.quantile(side, TAILS)) for side in sides if len(side)] or [(np.nan,) * 3]
    means, lows, highs = zip(*bands, strict=True)
    return {"noise_floor": float(np.mean(means)), "noise_low": float(min(lows)), "noise_high": float(max(highs))}


def _chance(first: Circuits, second: Circuits, seed: int, raw: bool) -> dict[str, float]:
    """What random circuits of these sizes would give, by measure."""
    edges, sides = first.edges, (first, second)
    total, n_edges = len(edges.flat), [int(side.masks.sum()) for side in sides]
    nodes = [edges.nodes(side.masks)[0] for side in sides]
    n_nodes = [int(of_circuit.sum()) for of_circuit in nodes]
    n_heads = [int((of_circuit & edges.heads).sum()) for of_circuit in nodes]
    scores = [side.scores[side.masks].numpy() for side in sides]
    # An empty circuit lacks even the two nodes that all others have.
    both = edges.graph.n_ends if min(n_nodes) >= 2 else 0
    return {
        "node_jaccard": expected_jaccard(n_nodes[0], n_nodes[1], len(edges.heads), both),
        "head_jaccard": expected_jaccard(n_heads[0], n_heads[1], int(edges.heads.sum())),
        "edge_jaccard": expected_jaccard(n_edges[0], n_edges[1], total),
        "weighted_jaccard": expected_weighted_jaccard(scores[0], scores[1], total, seed, 200, raw),
        "edges_added": expected_added(n_edges[0], n_edges[1], total),
        "edges_removed": expected_added(n_edges[1], n_edges[0], total),
    }
