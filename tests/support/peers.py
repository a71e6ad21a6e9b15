"""What the published EAP-IG computed on a kept checkpoint (`../shared/peer_files`)."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.connected import prune
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import Metric, TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights
from tests.support.paths import PEER_FILES, TOY


def peers_setting() -> tuple[dict[str, Any], ModelWeights, TokenPairs, Metric]:
    """Its numbers, and the model, the prompts and the metric that they are of."""
    with (PEER_FILES / "prompts.csv").open() as file:
        rows = [{name: cell.strip("\n") for name, cell in row.items()} for row in csv.DictReader(file)]
    model = cot.load(str(TOY), step=1350)
    tokenizer = model.tokenizer
    clean, corrupted = ([tokenizer(row[side]).input_ids for row in rows] for side in ("clean", "corrupted"))
    right, wrong = (
        torch.tensor([tokenizer(row[side]).input_ids[-1] for row in rows]) for side in ("answers", "wrong_answers")
    )
    lengths = torch.tensor([len(ids) for ids in clean])
    padded = [
        torch.tensor([ids + [0] * (int(lengths.max()) - len(ids)) for ids in side]) for side in (clean, corrupted)
    ]

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        rows = torch.arange(len(index))
        return logits[rows, right[index]] - logits[rows, wrong[index]]

    expected = json.loads((PEER_FILES / "expected.json").read_text())
    return expected, model.weights, TokenPairs(*padded, lengths), metric


def peers_scores(expected: dict[str, Any], name: str, graph: Graph) -> Tensor:
    """Its scores, where they were divided by the number of prompts twice."""
    theirs = torch.zeros(graph.n_forward, graph.n_backward)
    for edge, score in expected["edge_scores"][name].items():
        theirs[graph.edge_index(edge)] = expected["n_prompts"] * score
    return theirs


def without_one_by_one(edges: Iterable[str], graph: Graph) -> Tensor:
    """The masks of its exact scores: without one edge after the other, where what pruning cuts off stays off."""
    left, masks = graph.edge_mask.clone(), []
    for edge in edges:
        left[graph.edge_index(edge)] = False
        left = prune(left[None], graph)[0]
        masks.append(left.clone())
        left[graph.edge_index(edge)] = True
    return torch.stack(masks)
