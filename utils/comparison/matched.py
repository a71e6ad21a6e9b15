"""Comparisons of two models by matched names: `matches`, `matched` and `same_circuit`.

Everything that two models are compared by is a set of items with weights (nodes, edges, edges by score, heads that hold
a role, scores of heads by how long they have emerged, edges by their lifetime), and their overlap is the sum of minima
over the sum of maxima, which is Jaccard's where all weights are 1. The same overlap is worked out by the given names of
the second model's heads, and by those of their matches. Circuits are grown in their own models, and renamed then.

Floors go through the same names. Noise: two draws of one model's prompts, where the second is renamed as the model's
heads match themselves between the two halves of the prompts. Chance: random circuits of these sizes. Shuffled: the
circuits as they are, by the same names after the heads of each layer of the first model were dealt anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from scipy import stats

from circuits_over_time.edge_attribution_patching.circuits.renaming import HeadPlace, Renaming, deals, edge_ends
from circuits_over_time.edge_attribution_patching.graph import Graph

from ..results.comparison import COMPARISONS, heads_of
from ..results.store import Store
from .changes import AT, grown
from .floors import bootstrap_scores
from .inputs import Checkpoint, Trajectory
from .keys import ComparisonConfig
from .matching import SIGNATURES, HeadSignatures, Matcher, Signature, similarities
from .similarity import Edges

GIVEN = "given"
OF_CIRCUITS = ("edge_jaccard", "node_jaccard", "head_jaccard", "weighted_jaccard")
DRAWS = 50
"""Random circuits, pairs of redrawn ones and shuffled matches that a floor is the mean of."""


@dataclass(frozen=True)
class Items:
    """What two models are compared by: each item has up to two nodes, a kind and a weight."""

    nodes: Int[np.ndarray, "item 2"]
    kind: Int[np.ndarray, " item"]
    weight: np.ndarray

    def renamed(self, names: Int[np.ndarray, " node"]) -> Items:
        """The same with other names of the nodes; -1 stays."""
        return replace(self, nodes=np.where(self.nodes < 0, -1, names[self.nodes]))

    def overlap(self, other: Items) -> float:
        """Sum of minima over sum of maxima of the weights; nan if neither has any."""
        sides = [((one.kind * 2**20 + one.nodes[:, 0] + 1) * 2**20) + one.nodes[:, 1] + 1 for one in (self, other)]
        names, place = np.unique(np.concatenate(sides), return_inverse=True)
        weights = [
            np.bincount(places, one.weight, len(names))
            for places, one in zip(np.split(place, [len(sides[0])]), (self, other), strict=True)
        ]
        total = np.maximum(*weights).sum()
        return float(np.minimum(*weights).sum() / total) if total else float("nan")


def items_of_circuit(edges: Edges, mask: np.ndarray, scores: np.ndarray) -> dict[str, Items]:
    """What the circuit's measures compare, by measure."""
    sources, nodes, inputs = edge_ends(edges.graph, edges.flat[torch.from_numpy(mask)])
    ends, weight = np.stack([sources, nodes], 1), scores[mask]
    found = np.unique(ends)
    shares = np.abs(weight) / max(np.abs(weight).sum(), 1e-300)
    return {
        "edge_jaccard": Items(ends, inputs, np.ones(len(ends))),
        "node_jaccard": _of_nodes(found),
        "head_jaccard": _of_nodes(found[edges.heads.numpy()[found]]),
        "weighted_jaccard": Items(ends, inputs + 4 * (weight < 0), shares),
    }


def _of_nodes(nodes: np.ndarray, kind: np.ndarray | int = 0, weight: np.ndarray | float = 1.0) -> Items:
    pairs = np.stack([nodes, np.full(len(nodes), -1)], 1)
    return Items(pairs, np.broadcast_to(kind, nodes.shape), np.broadcast_to(weight, nodes.shape))


@dataclass(frozen=True)
class Names:
    """The names of a second model's nodes among the first's, and what floors need."""

    label: str
    of_second: Int[np.ndarray, " node"]
    own: tuple[np.ndarray, np.ndarray]  # of each model's nodes after its heads were matched with themselves
    shuffled: Sequence[np.ndarray]  # after the heads of each layer of the first model were dealt anew


class Match:
    """The heads of two models, matched by every signature."""

    def __init__(
        self, graphs: tuple[Graph, Graph], signatures: tuple[HeadSignatures, HeadSignatures], config: ComparisonConfig
    ) -> None:
        self.graphs, self.signatures, self.config = graphs, signatures, config
        self.step = signatures[0].step
        same_prompts = signatures[0].patterns.shape[2] == signatures[1].patterns.shape[2]
        usable = [signature for signature in SIGNATURES if signature == "function" or same_prompts]
        self.matchers = {signature: Matcher(*signatures, signature, config.match) for signature in usable}
        self.tables = {signature: matcher.table(config) for signature, matcher in self.matchers.items()}

    def table(self) -> pd.DataFrame:
        """The rows of `matches`."""
        first, second = self.signatures
        stamp: dict[str, Any] = {"model": first.model, "other_model": second.model, "step": self.step}
        frames = [table.assign(**stamp, signature=signature) for signature, table in self.tables.items()]
        return pd.concat(frames, ignore_index=True)[list(COMPARISONS["matches"])]

    def stability(self) -> Iterator[dict[str, object]]:
        """Rows of `matched`: how similar each layer's heads are to their matches, and dealt anew."""
        first, second = self.signatures
        for signature, matcher in self.matchers.items():
            # [head of the first, head of the second], by layers of the first.
            similarity = similarities(*matcher.points(matcher.half(0))).reshape(*first.shape[:2], -1)
            for layer, rows in self.tables[signature].groupby("layer"):
                others = rows["other_layer"] * second.shape[1] + rows["other_head"]
                stamp = {"at": f"layer {layer}", "measure": "similarity", "names": signature}
                shuffled = similarity[int(str(layer))][:, others].mean()
                yield {**stamp, "value": rows["similarity"].mean(), "shuffled_floor": shuffled}

    @cached_property
    def names(self) -> list[Names]:
        """By the given names, where both models have one shape, and by every signature."""
        first, second = self.graphs
        dealt = list(deals(first, self.config.seed, DRAWS))
        found = list[Names]()
        if first == second:
            places = [(layer, head) for layer in range(first.n_layers) for head in range(first.n_heads)]
            plain = Renaming(first, first, dict(zip(places, places, strict=True))).nodes()
            shuffled = [Renaming(first, first, deal).nodes() for deal in dealt]
            found.append(Names(GIVEN, plain, (plain, plain), shuffled))
        for signature in self.matchers:
            sides = zip(self.graphs, self.signatures, strict=True)
            own = [Renaming(graph, graph, self._with_itself(side, signature)).nodes() for graph, side in sides]
            matched = heads_of(self.tables[signature])
            redealt = [{other: deal[one] for other, one in matched.items()} for deal in dealt]
            shuffled = [Renaming(first, second, heads).nodes() for heads in redealt]
            found.append(Names(signature, Renaming(first, second, matched).nodes(), (own[0], own[1]), shuffled))
        return found

    def _with_itself(self, side: HeadSignatures, signature: Signature) -> dict[HeadPlace, HeadPlace]:
        """A model's heads by the held-out prompts -> those by the others."""
        own = Matcher(side, side, signature, self.config.match)
        pairs = own.pairs(similarities(own.points(own.half(0))[0], own.points(own.half(1))[1]))
        return {other: one for one, other in map(side.places, pairs)}


class MatchedComparer:
    """Overlaps of two models by all names, with floors. Noise floors are worked out once for every checkpoint."""

    def __init__(self, config: ComparisonConfig) -> None:
        self.config = config
        self._noise: dict[tuple[object, ...], dict[str, float]] = {}

    def circuits(self, match: Match, first: Trajectory, second: Trajectory, size: int) -> Iterator[dict[str, object]]:
        """Rows of `matched` about circuits of one task, at every step that both models have."""
        for step in first.steps:
            if step not in second.checkpoints:
                continue
            sides = first.checkpoints[step], second.checkpoints[step]
            for at in AT:
                own_sizes = [side.size for side in sides if side.size is not None]
                sizes = [size, size] if at == "size" else own_sizes
                if len(sizes) < len(sides):  # One has no circuit.
                    continue
                items = [_circuit(side, size if at == "size" else None) for side in sides]
                rng = np.random.default_rng(self.config.seed)
                random = [
                    [_random_like(of_side, side, rng) for _ in range(DRAWS)]
                    for of_side, side in zip(items, sides, strict=True)
                ]
                for names in match.names:
                    noise = [
                        self._noise_floor(side, at, of_side, own, names.label)
                        for side, of_side, own in zip(sides, sizes, names.own, strict=True)
                    ]
                    for measure in OF_CIRCUITS:
                        row = _row(items[0][measure], items[1][measure], names)
                        row["noise_floor"] = float(np.mean([floor[measure] for floor in noise]))
                        row["chance_floor"] = _mean_overlap(random, measure, names.of_second)
                        yield {"task": first.task, "step": step, "at": at, "measure": measure, **row}

    def _noise_floor(self, side: Checkpoint, at: str, size: int, own: np.ndarray, label: str) -> dict[str, float]:
        key = (side.fingerprint, at, size, label, own.tobytes())
        if key not in self._noise:
            edges = Edges(side.circuit.graph, side.folds.edges)
            scores = bootstrap_scores(side.folds, self.config.seed, 2 * DRAWS)
            masks = side.rule.grower(side.folds).circuits(scores, size)
            both = zip(masks.numpy(), scores.numpy(), strict=True)
            drawn = [items_of_circuit(edges, mask, values) for mask, values in both]
            pairs = drawn[::2], drawn[1::2]
            self._noise[key] = {measure: _mean_overlap(pairs, measure, own) for measure in OF_CIRCUITS}
        return self._noise[key]


def _mean_overlap(sides: Sequence[Sequence[Mapping[str, Items]]], measure: str, names: np.ndarray) -> float:
    """Of two circuits at a time; the second side is renamed."""
    return float(np.mean([a[measure].overlap(b[measure].renamed(names)) for a, b in zip(*sides, strict=True)]))


def _circuit(side: Checkpoint, size: int | None) -> dict[str, Items]:
    edges = Edges.all_of(side.circuit.graph)
    mask = side.circuit.in_circuit if size is None else grown(side, size)
    of_edges = (x.flatten()[edges.flat].numpy() for x in (mask, side.circuit.scores))
    return items_of_circuit(edges, *of_edges)


def _random_like(items: Mapping[str, Items], side: Checkpoint, rng: np.random.Generator) -> dict[str, Items]:
    """A random circuit of as many edges, and as many random nodes and heads; `input` and `logits` are in every one."""
    edges = Edges.all_of(side.circuit.graph)
    mask, scores = np.zeros(len(edges.flat), dtype=bool), np.zeros(len(edges.flat))
    dealt = rng.choice(len(mask), len(items["edge_jaccard"].weight), replace=False)
    weighted = items["weighted_jaccard"]
    mask[dealt], scores[dealt] = True, weighted.weight * np.where(weighted.kind >= 4, -1, 1)
    found = items_of_circuit(edges, mask, scores)
    heads, n_nodes = np.flatnonzero(edges.heads.numpy()), len(items["node_jaccard"].weight)
    inner = np.arange(1, side.circuit.graph.n_forward)
    drawn = rng.choice(inner, n_nodes - 2, replace=False) if n_nodes >= 2 else inner[:0]
    found["node_jaccard"] = _of_nodes(np.array([0, *drawn, len(inner) + 1] if n_nodes >= 2 else [], dtype=int))
    found["head_jaccard"] = _of_nodes(rng.choice(heads, len(items["head_jaccard"].weight), replace=False))
    return found


def _row(first: Items, second: Items, names: Names) -> dict[str, object]:
    shuffled = [first.overlap(second.renamed(of_draw)) for of_draw in names.shuffled]
    known = [value for value in shuffled if not np.isnan(value)] or [float("nan")]
    floors = {"shuffled_floor": float(np.mean(known)), "shuffled_high": float(np.quantile(known, 0.975))}
    return {"names": names.label, "value": first.overlap(second.renamed(names.of_second))} | floors


def other_rows(
    match: Match, models: tuple[str, str], tables: Mapping[str, pd.DataFrame], roles: Mapping[str, pd.DataFrame]
) -> Iterator[dict[str, object]]:
    """Rows of `matched` about roles in IOI, if there are any, the emergence of scores, and lifetimes of edges."""
    graphs = match.graphs

    def rows_of(measure: str, items: Sequence[Items], **stamp: str) -> Iterator[dict[str, object]]:
        for names in match.names:
            yield {"task": None, "at": None, **stamp, "measure": measure, **_row(items[0], items[1], names)}

    def of_heads(tables: list[pd.DataFrame], kind: str, steps: np.ndarray | None = None) -> list[Items]:
        """Heads by what a column says of them; with steps, by at how many of them they have emerged."""
        kinds, items = sorted(set(pd.concat(tables)[kind])), list[Items]()
        for graph, rows in zip(graphs, tables, strict=True):
            places = zip(rows["layer"].astype(int), rows["head"].astype(int), strict=True)
            heads = np.array([graph.head(*place) for place in places], dtype=int)
            since = None if steps is None else steps[None, :] >= rows["step"].to_numpy(dtype=float)[:, None]
            weight = 1.0 if since is None else since.sum(1).astype(float)
            items.append(_of_nodes(heads, rows[kind].map(kinds.index).to_numpy(dtype=int), weight))
        return items

    if all(model in roles for model in models):
        at_step = [roles[model][roles[model]["step"] == match.step] for model in models]
        yield from rows_of("roles", of_heads([rows[rows["passes"].astype(bool)] for rows in at_step], "role"))
    of_kinds = (tables["curves"], tables["emergence"], tables["lifetimes"])
    curves, emergence, lifetimes = ([table[table["model"] == model] for model in models] for table in of_kinds)
    common = np.array(sorted(set(curves[0]["step"]) & set(curves[1]["step"])))
    emerged = [rows[(rows["kind"] == "head") & rows["step"].notna()] for rows in emergence]
    yield from rows_of("emergence", of_heads(emerged, "score", common))
    for task in sorted(set(lifetimes[0]["task"]) & set(lifetimes[1]["task"])):
        for at in AT:
            items = []
            for graph, rows in zip(graphs, lifetimes, strict=True):
                rows = rows[(rows["task"] == task) & (rows["at"] == at)]
                # Circuits with roles of tokens have other nodes.
                rows = rows[rows["source"].isin(graph.forward_nodes) & rows["target"].isin(graph.backward_nodes)]
                ends = [graph.edge_index(name) for name in rows["source"] + "->" + rows["target"]]
                flat = torch.tensor([u * graph.n_backward + v for u, v in ends], dtype=torch.long)
                sources, nodes, inputs = edge_ends(graph, flat)
                items.append(Items(np.stack([sources, nodes], 1), inputs, rows["lifetime"].to_numpy(dtype=float)))
            yield from rows_of("lifetimes", items, task=task, at=at)


def transfer_rows(store: Store, models: tuple[str, str], task: str) -> Iterator[dict[str, object]]:
    """Rows of `matched` about two models' circuits in each other (`matched_transfer`), means of both directions.

    Beside the faithfulness there stand that of the models' own circuits as `noise_floor`, and that of random ones.
    """
    kind = "matched_transfer"
    if not all(store.folder(kind, model, task).steps() for model in models):
        return
    tables = [store.read_tables(kind, model, task) for model in models]
    both = pd.concat([table[table["from_model"].isin(models)] for table in tables], ignore_index=True).rename(
        columns={"faithfulness": "value", "random_floor": "chance_floor"}
    )
    for step, at_step in both.groupby("step"):
        own = at_step.loc[at_step["names"] == "own", "value"]
        carried = at_step[at_step["names"] != "own"].groupby("names", sort=False)
        means = carried[["value", "chance_floor", "shuffled_floor", "shuffled_high"]].mean()
        for names, row in means[carried.size() == len(models)].iterrows():
            stamp = {"task": task, "step": step, "at": "faithfulness", "measure": "transfer", "names": names}
            yield {**stamp, **row, "noise_floor": own.mean()}


def same_circuit(matched: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """How much is the same in the models of a group: means over all pairs, with jackknife intervals over models.

    Means over tasks have an empty `task`.
    """
    rows = []
    floors = ["noise_floor", "chance_floor", "shuffled_floor"]
    keys = ["step", "at", "measure", "names"]
    for group, models in groups.items():
        of_group = matched[matched["model"].isin(models) & matched["other_model"].isin(models)]
        pair = ["model", "other_model"]
        over_tasks = of_group[of_group["task"].notna()].groupby([*keys, *pair], as_index=False, dropna=False)
        together = over_tasks[["value", *floors]].mean()
        for key, part in pd.concat([of_group, together]).groupby(["task", *keys], dropna=False, sort=False):
            part = part.dropna(subset="value")
            value = part["value"].mean()
            without = [part.loc[(part[pair] != model).all(axis=1), "value"].mean() for model in models]
            n = len(without) if len(part) == len(models) * (len(models) - 1) // 2 and len(models) > 2 else 0
            error = np.sqrt((n - 1) / n * np.square(np.array(without) - np.mean(without)).sum()) if n else np.nan
            reach = stats.t.ppf(0.975, n - 1) * error if n else np.nan
            row = dict(zip(["task", *keys], key, strict=True)) | {"group": group, "n_pairs": len(part), "value": value}
            rows.append(row | {"low": value - reach, "high": value + reach} | part[floors].mean().to_dict())
    return pd.DataFrame(rows, columns=list(COMPARISONS["same_circuit"]))
