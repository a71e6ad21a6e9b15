"""Similarity of circuits to the previous checkpoint, to a reference and between models, with floors and flags.

Every pair is compared at two sizes: at fixed faithfulness, where each circuit is the one found for its checkpoint, and
at a fixed number of edges, because a circuit's size is set by a threshold. At fixed faithfulness a pair counts only if
both checkpoints have a circuit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.search import Signed, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import sign_stable

from ..results.comparison import SIMILARITY
from .chance import expected_added, expected_jaccard, expected_weighted_jaccard
from .floors import Rule, Samples, change_test, changed, noise_floor
from .inputs import Checkpoint, Sequence
from .keys import ComparisonConfig
from .similarity import OF_CIRCUITS, Circuits, Edges, of_circuits, rank_correlation

Table = pd.DataFrame
AT = ("faithfulness", "size")
FAMILY = ["model", "task", "against", "other_model", "at", "measure"]
"""Rows that agree in these differ in their checkpoint alone: one family of tests."""


@dataclass(frozen=True)
class Pair:
    """Two circuits to compare: the later or the other one, `second`, with the `first`.

    Attributes:
        against: `previous`, `reference` or `model`.
        first_of, second_of: the sequences that they are of.
        first, second: their checkpoints.
    """

    against: str
    first_of: Sequence
    first: Checkpoint
    second_of: Sequence
    second: Checkpoint

    @property
    def is_same(self) -> bool:
        """Whether it is one checkpoint compared with itself."""
        return self.first is self.second


def pairs_over_training(sequence: Sequence, reference: int) -> Iterator[Pair]:
    """Every checkpoint with the one before it, and with the reference."""
    checkpoints = list(sequence.checkpoints.values())
    for before, after in pairwise(checkpoints):
        yield Pair("previous", sequence, before, sequence, after)
    for checkpoint in checkpoints:
        yield Pair("reference", sequence, sequence.checkpoints[reference], sequence, checkpoint)


def pairs_between(first: Sequence, second: Sequence) -> Iterator[Pair]:
    """Two models at every step that both have."""
    for step in first.steps:
        if step in second.checkpoints:
            yield Pair("model", first, first.checkpoints[step], second, second.checkpoints[step])


def grown(checkpoint: Checkpoint, rule: Rule, size: int) -> Tensor:
    """The circuit of a number of edges (before pruning) of a checkpoint's own scores, [n_forward, n_backward]."""
    graph = checkpoint.circuit.graph
    signed = None
    if rule.selection == "signed":
        stable = torch.zeros(graph.n_forward * graph.n_backward, dtype=torch.bool)
        stable[checkpoint.folds.edges] = sign_stable(checkpoint.folds, rule.seed)
        signed = Signed(stable.view(graph.n_forward, graph.n_backward), rule.positive_share)
    order = edge_order(checkpoint.circuit.scores, graph, rule.order, limit=size, signed=signed)
    return top_n_masks(order, graph, [min(size, len(order))])[0]


class Comparer:
    """Compares pairs of circuits of one task.

    Args:
        config: the config.
        size: edges before pruning where sizes are fixed.
    """

    def __init__(self, config: ComparisonConfig, size: int) -> None:
        self.config, self.size = config, size
        self._masks: dict[tuple[str, int], Tensor] = {}
        self._fixed: dict[tuple[str, int], Samples] = {}

    def rows(self, pair: Pair) -> list[dict[str, object]]:
        """One row for every measure at either size, without `q_value` and `changed`."""
        sizes: dict[str, tuple[int, int]] = {"size": (self.size, self.size)}
        if pair.first.size is not None and pair.second.size is not None:
            sizes = {"faithfulness": (pair.first.size, pair.second.size)} | sizes
        floors = [
            self._floors(sequence, checkpoint, sizes)
            for sequence, checkpoint in ((pair.first_of, pair.first), (pair.second_of, pair.second))
        ]
        p_values = self._p_values(pair, sizes)
        stamp = {
            "model": pair.second_of.model,
            "task": pair.second_of.task,
            "step": pair.second.step,
            "tokens": pair.second.tokens,
            "against": pair.against,
            "other_model": pair.first_of.model,
            "other_step": pair.first.step,
        }
        graph = pair.first.circuit.graph
        edges = Edges.all_of(graph)
        scores = [side.circuit.scores.flatten()[edges.flat][None] for side in (pair.first, pair.second)]
        # Of large graphs only some edges have fold scores, and with them a noise floor.
        kept = torch.isin(edges.flat, pair.first.folds.edges) & torch.isin(edges.flat, pair.second.folds.edges)
        correlation = float(rank_correlation(*(score[:, kept] for score in scores))[0])
        rows: list[dict[str, object]] = []
        row: dict[str, object]
        for at, (first_size, second_size) in sizes.items():
            masks = (
                self._mask(pair.first_of, pair.first, at),
                self._mask(pair.second_of, pair.second, at),
            )
            sides = [
                Circuits(edges, mask.flatten()[edges.flat][None], score)
                for mask, score in zip(masks, scores, strict=True)
            ]
            values = of_circuits(*sides)
            chance = _chance(sides[0], sides[1], self.config.seed)
            counts = {
                "size": second_size,
                "other_size": first_size,
                "n_edges": int(sides[1].held.sum()),
                "other_n_edges": int(sides[0].held.sum()),
            }
            for measure in OF_CIRCUITS:
                key = f"{at}/{measure}"
                row = {"at": at, "measure": measure, "value": float(values[measure][0])}
                row |= {"chance_floor": chance[measure], "p_value": p_values.get(key, np.nan)} | _band(floors, key)
                rows.append(stamp | row | counts)
        row = {"at": "scores", "measure": "rank_correlation", "value": correlation, "chance_floor": 0.0}
        row |= {"p_value": p_values.get("rank_correlation", np.nan)} | _band(floors, "rank_correlation")
        rows.append(stamp | row)
        return rows

    def _floors(self, sequence: Sequence, checkpoint: Checkpoint, sizes: Mapping[str, tuple[int, int]]) -> Samples:
        """Noise floors of a checkpoint; that at the fixed size is the same in every pair, and worked out once."""
        key = (sequence.model, checkpoint.step)
        given = (sequence.rule, self.config.seed, self.config.pairs)
        if key not in self._fixed:
            self._fixed[key] = noise_floor(checkpoint.folds, {"size": sizes["size"]}, *given)
        varying = {name: both for name, both in sizes.items() if name != "size"}
        return self._fixed[key] | (noise_floor(checkpoint.folds, varying, *given) if varying else {})

    def _p_values(self, pair: Pair, sizes: Mapping[str, tuple[int, int]]) -> Mapping[str, float]:
        """p-values by size and measure; a checkpoint and itself are not tested."""
        if pair.is_same:
            return {}
        given = (pair.second_of.rule, self.config.seed, self.config.permutations)
        return change_test(pair.first.folds, pair.second.folds, sizes, *given)

    def _mask(self, sequence: Sequence, checkpoint: Checkpoint, at: str) -> Tensor:
        if at == "faithfulness":
            return checkpoint.circuit.in_circuit
        key = (sequence.model, checkpoint.step)
        if key not in self._masks:
            self._masks[key] = grown(checkpoint, sequence.rule, self.size)
        return self._masks[key]


def flagged(rows: Table, rate: float) -> Table:
    """The table with `q_value` and `changed`, corrected over the checkpoints of each family of tests."""
    table = rows.assign(q_value=np.nan, changed=False)
    for _, family in table.groupby(FAMILY, sort=False):
        adjusted, flags = changed(family["p_value"].to_numpy(dtype=float), rate)
        table.loc[family.index, "q_value"] = adjusted
        table.loc[family.index, "changed"] = flags
    return table.astype(dict.fromkeys(("size", "other_size", "n_edges", "other_n_edges"), "Int64"))[
        list(SIMILARITY.columns)
    ]


def similarity_rows(comparer: Comparer, pairs: Iterator[Pair], done: Callable[[], None] = lambda: None) -> Table:
    """The rows of many pairs, in their order."""
    rows: list[dict[str, object]] = []
    for pair in pairs:
        rows += comparer.rows(pair)
        done()
    return pd.DataFrame(rows)


def _band(floors: list[Samples], key: str) -> dict[str, float]:
    """Noise floor and its band of one similarity, over both checkpoints."""
    sides = [floor[key] for floor in floors]
    known = [side[~np.isnan(side)] for side in sides]
    known = [side for side in known if len(side)]
    if not known:
        return dict.fromkeys(("noise_floor", "noise_low", "noise_high"), float("nan"))
    return {
        "noise_floor": float(np.mean([side.mean() for side in known])),
        "noise_low": float(min(np.quantile(side, 0.025) for side in known)),
        "noise_high": float(max(np.quantile(side, 0.975) for side in known)),
    }


def _chance(first: Circuits, second: Circuits, seed: int) -> dict[str, float]:
    """What random circuits of these sizes would give, by measure."""
    edges = first.edges
    sides = (first, second)
    n_edges = [int(side.held.sum()) for side in sides]
    nodes = [edges.nodes(side.held)[0] for side in sides]
    n_nodes = [int(held.sum()) for held in nodes]
    n_heads = [int((held & edges.heads).sum()) for held in nodes]
    total = len(edges.flat)
    scores = [side.scores[side.held].numpy() for side in sides]
    # An empty circuit lacks even the two nodes that all others have.
    both = 2 if min(n_nodes) >= 2 else 0
    return {
        "node_jaccard": expected_jaccard(n_nodes[0], n_nodes[1], len(edges.heads), both),
        "head_jaccard": expected_jaccard(n_heads[0], n_heads[1], int(edges.heads.sum())),
        "edge_jaccard": expected_jaccard(n_edges[0], n_edges[1], total),
        "weighted_jaccard": expected_weighted_jaccard(scores[0], scores[1], total, seed, draws=200),
        "edges_added": expected_added(n_edges[0], n_edges[1], total),
        "edges_removed": expected_added(n_edges[1], n_edges[0], total),
    }
