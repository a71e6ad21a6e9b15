"""Matching heads: permuted models are found again, unrelated ones are not, and overlaps follow the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch

from circuits_over_time.edge_attribution_patching.circuits.renaming import Renaming
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.comparison.keys import ComparisonConfig, MatchConfig
from circuits_over_time.utils.comparison.matched import Match, items_of_circuit, other_rows
from circuits_over_time.utils.comparison.matching import SIGNATURES, HeadSignatures, Matcher, Signature
from circuits_over_time.utils.comparison.similarity import Edges
from circuits_over_time.utils.results.comparison import heads_of

LAYERS, HEADS = 3, 8
CONFIG = ComparisonConfig(permutations=99, resamples=100)


def made(seed: int, *, heads: int = HEADS, kv_heads: int | None = None, layers: int = LAYERS) -> HeadSignatures:
    """Signatures of unrelated heads, with little noise from fold to fold."""
    rng = np.random.default_rng(seed)
    shape = (layers, heads, kv_heads or heads)
    folds, patterns = (
        rng.normal(size=(1, layers * heads, n)) + 0.05 * rng.normal(size=(10, layers * heads, n)) for n in (12, 30)
    )
    return HeadSignatures(f"m{seed}", 5, shape, [f"s{n}" for n in range(12)], folds, patterns)


def permuted(signatures: HeadSignatures, order: np.ndarray, seed: int = 9) -> HeadSignatures:
    """The same heads in another order, measured with other noise."""
    rng = np.random.default_rng(seed)
    folds, patterns = (
        of_all[:, order] + 0.02 * rng.normal(size=of_all.shape) for of_all in (signatures.folds, signatures.patterns)
    )
    return replace(signatures, model="permuted", folds=folds, patterns=patterns)


def order_within_layers(seed: int, n_moved: int = HEADS) -> np.ndarray:
    rng, order = np.random.default_rng(seed), np.arange(LAYERS * HEADS).reshape(LAYERS, HEADS)
    for of_layer in order:
        of_layer[:n_moved] = rng.permutation(of_layer[:n_moved])
    return order.flatten()


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("n_moved", [HEADS, HEADS // 2])
def test_heads_permuted_within_layers_are_matched_to_themselves(signature: Signature, n_moved: int) -> None:
    first, order = made(0), order_within_layers(1, n_moved)
    second = permuted(first, order)
    table = Matcher(first, second, signature, MatchConfig()).table(CONFIG)
    assert heads_of(table) == dict(zip(second.places(range(len(order))), first.places(order.tolist()), strict=True))
    assert (table["q_value"] < 0.05).all()
    assert table[["confidence", "held_out"]].min().min() > 0.95


@pytest.mark.parametrize("signature", SIGNATURES)
def test_unrelated_models_are_not_matched_above_chance(signature: Signature) -> None:
    tables = [Matcher(made(n), made(50 + n), signature, MatchConfig()).table(CONFIG) for n in range(6)]
    p_values = np.concatenate([table["p_value"] for table in tables])
    assert (p_values <= 0.05).mean() <= 0.08
    assert sum((table["q_value"] <= 0.05).sum() for table in tables) == 0


def test_heads_that_share_keys_and_values_move_together() -> None:
    """Two groups change places, and the heads inside one."""
    first = made(3, heads=6, kv_heads=2, layers=2)
    order = np.array([4, 3, 5, 0, 1, 2, 6, 7, 8, 9, 10, 11])
    table = Matcher(first, permuted(first, order), "function", MatchConfig()).table(CONFIG)
    assert heads_of(table) == dict(zip(first.places(range(12)), first.places(order.tolist()), strict=True))
    # The best pairs would take this head out of its group.
    order[[2, 3]] = order[[3, 2]]
    pairs = Matcher(first, permuted(first, order), "function", MatchConfig()).table(CONFIG)
    groups = {(row.layer, row.head // 3, row.other_layer, row.other_head // 3) for row in pairs.itertuples()}
    assert len({one[:2] for one in groups}) == len({one[2:] for one in groups}) == len(groups)


def test_a_model_of_other_width_leaves_heads_without_a_match() -> None:
    first = made(4)
    kept = np.concatenate([np.arange(layer * HEADS, layer * HEADS + 5) for layer in range(LAYERS)])
    second = replace(first, shape=(LAYERS, 5, 5), folds=first.folds[:, kept], patterns=first.patterns[:, kept])
    found = heads_of(Matcher(first, second, "function", MatchConfig()).table(CONFIG))
    assert found == {(layer, head): (layer, head) for layer in range(LAYERS) for head in range(5)}


def test_layers_stay_within_reach() -> None:
    first, second = made(5), made(6)
    for reach in (0, 1):
        table = Matcher(first, second, "function", MatchConfig(layers=reach)).table(CONFIG)
        assert (table["layer"] - table["other_layer"]).abs().max() == reach


@pytest.mark.parametrize("signature", SIGNATURES)
def test_stability_is_the_mean_over_a_layers_matches_beside_all_deals_of_its_heads(signature: Signature) -> None:
    first, second = made(7, heads=3), made(8, heads=3)
    graph = Graph(LAYERS, 3, parallel=True)
    match = Match((graph, graph), (first, second), CONFIG)
    rows = [row for row in match.stability() if row["names"] == signature]
    points = match.matchers[signature].points(match.matchers[signature].half(0))
    assert [row["at"] for row in rows] == ["layer 0", "layer 1", "layer 2"]
    for layer, row in enumerate(rows):
        pairs = match.tables[signature].query(f"layer == {layer}")
        others = points[1][3 * pairs["other_layer"] + pairs["other_head"]]

        def mean(heads: Sequence[int], layer: int = layer, others: np.ndarray = others) -> float:
            return float((points[0][[3 * layer + head for head in heads]] * others).sum(1).mean())

        assert row["value"] == pytest.approx(mean(pairs["head"].tolist()))
        deals = [mean([dealt[head] for head in pairs["head"]]) for dealt in permutations(range(3))]
        assert row["shuffled_floor"] == pytest.approx(np.mean(deals))


def test_lifetimes_overlap_by_the_names_of_the_matches() -> None:
    """By hand: 3 and 2 checkpoints of one edge, and an edge that only one model has; by given names nothing."""
    first, order = made(0), order_within_layers(1)
    graph, second = Graph(LAYERS, HEADS, parallel=True), permuted(first, order)
    match = Match((graph, graph), (first, second), CONFIG)
    (layer, old), new = divmod(int(order[HEADS + 1]), HEADS), 1
    assert (layer, old) != (1, new)
    edges = [(first.model, f"a1.h{old}", "logits", 3), (first.model, "m0", f"a1.h{old}<q>", 4)]
    edges += [(second.model, f"a1.h{new}", "logits", 2)]
    lives = pd.DataFrame(edges, columns=["model", "source", "target", "lifetime"]).assign(task="ioi", at="size")
    none = pd.DataFrame(columns=["model", "kind", "step", "score", "layer", "head"])
    rows = other_rows(match, (first.model, second.model), {"curves": none, "emergence": none, "lifetimes": lives}, {})
    found = {row["names"]: row["value"] for row in rows if row["measure"] == "lifetimes" and row["at"] == "size"}
    assert found == {"given": 0, "function": pytest.approx(2 / 7), "attention": pytest.approx(2 / 7)}


def test_a_renamed_circuit_is_the_circuit_with_its_heads_renamed() -> None:
    """Edge by edge, by name; and the overlap by these names is 1, while that by the given names is not."""
    graph, order = Graph(LAYERS, HEADS, parallel=True), order_within_layers(2)
    heads = {divmod(new, HEADS): divmod(int(old), HEADS) for new, old in enumerate(order)}
    renaming, edges = Renaming(graph, graph, heads), Edges.all_of(graph)
    flat = edges.flat[torch.randperm(len(edges.flat), generator=torch.Generator().manual_seed(0))[:40]].sort().values
    renamed = renaming.edges(flat)
    names = {f"a{a}.h{b}": f"a{c}.h{d}" for (a, b), (c, d) in heads.items()}

    def of(edge: tuple[str, str]) -> tuple[str, str]:
        target, mark, letter = edge[1].partition("<")
        return names.get(edge[0], edge[0]), names.get(target, target) + mark + letter

    assert {of(edge) for edge in Edges(graph, flat).names()} == set(Edges(graph, renamed).names())
    scores = np.random.default_rng(0).normal(size=40)
    place = np.argsort(
        [
            flat.tolist().index(one)
            for edge in renamed.tolist()
            for one in flat.tolist()
            if renaming.edges(torch.tensor([one])).tolist() == [edge]
        ]
    )
    second = items_of_circuit(Edges(graph, flat), np.ones(40, dtype=bool), scores)
    first = items_of_circuit(Edges(graph, renamed), np.ones(40, dtype=bool), scores[np.argsort(place)])
    for measure, items in second.items():
        assert first[measure].overlap(items.renamed(renaming.nodes())) == pytest.approx(1), measure
    assert first["edge_jaccard"].overlap(second["edge_jaccard"]) < 0.5
