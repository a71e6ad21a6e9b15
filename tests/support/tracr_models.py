"""A transformer whose circuits are known: the programs of tests/data/tracr.npz (benchmarks/compile_truth.py).

All programs read the same letters. They run side by side in one model: each has dimensions of the residual stream,
heads and MLP units of its own, and what a task asks for is one program's output. So the other programs' heads work, on
the same prompts, and are no part of the task's circuit.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.norms import Norm
from circuits_over_time.edge_attribution_patching.model.pairs import Metric, TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import LayerWeights, ModelWeights

from .paths import DATA

_HUGE = 1e12
_CONSTANT = ("one", "indices:", "tokens:BOS", "tokens:compiler_pad")
"""Labels of what is the same at a position of every prompt: no pair of prompts shows who reads it."""


@dataclass(frozen=True)
class Program:
    """One task of the model.

    Attributes:
        dims: its dimensions of the residual stream.
        labels: what each of these holds, `hist:3`.
        n_heads: how many heads it has in a layer.
        outputs: names of its outputs, in order.
        unembed: what each dimension adds to each output, [output, dim].
        sequences, answers: prompts and the output at their end: which one, or a number.
    """

    name: str
    dims: slice
    labels: list[str]
    n_heads: int
    outputs: list[str]
    unembed: Tensor
    sequences: list[list[int]]
    answers: list[float]


def compiled(soften: float = 1.0, noise: float = 0.0) -> tuple[ModelWeights, list[Program]]:
    """The model of all programs, and these.

    Args:
        soften: what attention scores are multiplied with. Compiled heads attend to one place as good as wholly (scores
            differ by 100); with less than 1, they answer a little worse, by the same circuits.
        noise: what is added to every weight of heads and MLPs, in units of the matrix's root mean square: then every
            node reads and writes a little of everything.
    """
    stored = np.load(DATA / "tracr.npz")
    names = list(dict.fromkeys(key.partition("/")[0] for key in stored.files))
    parts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key in stored.files:
        parts[key.partition("/")[0]][key.partition("/")[2]] = stored[key]
    about = {name: json.loads(str(part["about"])) for name, part in parts.items()}
    widths = [len(about[name]["labels"]) for name in names]
    starts = [sum(widths[:number]) for number in range(len(names))]
    d_model, n_layers = sum(widths), max(len(part["query"]) for part in parts.values())
    d_head = max(part["query"].shape[2] // about[name]["n_heads"] for name, part in parts.items())
    n_heads = max(
        sum(about[name]["n_heads"] for name in names if layer < len(parts[name]["query"])) for layer in range(n_layers)
    )
    programs = [
        Program(name, slice(start, start + width), unembed=torch.tensor(parts[name]["unembed"]), **about[name])
        for name, start, width in zip(names, starts, widths, strict=True)
    ]
    of_programs = [(program, parts[program.name]) for program in programs]
    generator = torch.Generator().manual_seed(0)
    layers = []
    for index in range(n_layers):
        layer = _layer(of_programs, index, n_heads, d_head, d_model, soften)
        exact = {name: getattr(layer, name) for name in ("W_qkv", "W_O", "W_in", "W_out")}
        drawn = {
            name: torch.randn(W.shape, generator=generator) * W.square().mean().sqrt() for name, W in exact.items()
        }
        layers.append(replace(layer, **{name: W + noise * drawn[name] for name, W in exact.items()}))
    embed, positions = (
        torch.tensor(np.concatenate([parts[name][key] for name in names], axis=1)).float()
        for key in ("embed", "position_embed")
    )
    weights = ModelWeights(
        architecture="tracr",
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=d_head,
        d_model=d_model,
        d_mlp=layers[0].W_in.shape[1],
        d_vocab=len(embed),
        n_positions=len(positions),
        parallel=False,
        layers=tuple(layers),
        embed=embed,
        position_embed=positions,
        # The outputs of all programs; a task looks at its own.
        unembed=torch.block_diag(*(program.unembed for program in programs)),
        unembed_bias=None,
        # As good as none: a scale that no residual stream changes, and a gain that undoes it.
        final_norm=Norm(torch.full((d_model,), _HUGE**0.5), torch.zeros(d_model), _HUGE, center=False),
    )
    return weights, programs


def _layer(
    parts: list[tuple[Program, dict[str, Any]]], layer: int, n_heads: int, d_head: int, d_model: int, soften: float
) -> LayerWeights:
    """One layer of all programs, each in its dimensions; heads that no program has write nothing."""
    heads: dict[str, list[Tensor]] = {name: [] for name in ("query", "key", "value", "linear")}
    W_in, b_in, W_out = [torch.zeros(d_model, 0)], [torch.zeros(0)], [torch.zeros(0, d_model)]
    b_out = torch.zeros(d_model)
    for program, part in parts:
        if layer >= len(part["query"]):
            continue
        before, after = program.dims.start, d_model - program.dims.stop
        size = part["query"].shape[2] // program.n_heads
        for name in heads:
            matrix = torch.tensor(part[name][layer])
            matrix = matrix if name == "linear" else matrix.T
            matrix = matrix.unflatten(0, (program.n_heads, size))  # [head, d_head, d_model]
            if name == "query":
                matrix = matrix * soften / size**0.5
            heads[name] += [*F.pad(matrix, (before, after, 0, d_head - size))]
        W_in.append(F.pad(torch.tensor(part["mlp_1w"][layer]), (0, 0, before, after)))
        b_in.append(torch.tensor(part["mlp_1b"][layer]))
        W_out.append(F.pad(torch.tensor(part["mlp_2w"][layer]), (before, after)))
        b_out[program.dims] = torch.tensor(part["mlp_2b"][layer])
    for matrices in heads.values():
        matrices += [torch.zeros(d_head, d_model)] * (n_heads - len(matrices))
    qkv = torch.stack([*heads["query"], *heads["key"], *heads["value"]])
    return LayerWeights(
        W_qkv=qkv,
        b_qkv=torch.zeros(qkv.shape[:2]),
        V_mean=torch.zeros(n_heads, d_head),
        W_O=torch.stack(heads["linear"]),
        b_O=torch.zeros(d_model),
        attn_norm=None,
        attn_scale=1.0,
        mlp_norm=None,
        W_in=torch.cat(W_in, dim=1),
        b_in=torch.cat(b_in),
        W_out=torch.cat(W_out),
        b_out=b_out,
        activation=F.relu,
    )


def circuit(weights: ModelWeights, program: Program) -> Tensor:
    """The edges that a program consists of, bool [n_forward, n_backward].

    Back from the dimensions that its output reads: what writes to them, what that reads to do so, and so on. Dimensions
    that hold a constant are left out.
    """
    graph = Graph.of(weights)
    varies = torch.ones(weights.d_model, dtype=torch.bool)
    for dim, label in enumerate(program.labels, start=program.dims.start):
        varies[dim] = not label.startswith(_CONSTANT)
    reads: dict[int, Tensor] = {graph.logits: _embedded(program.unembed.abs().sum(0) > 0, program, weights) & varies}
    writes: dict[int, Tensor] = {0: weights.embed.abs().sum(0) > 0}
    needed = reads[graph.logits]
    for index in reversed(range(weights.n_layers)):
        layer = weights.layers[index]
        useful = (layer.W_out[:, needed] != 0).any(1)  # hidden units
        writes[graph.mlp(index)] = (layer.W_out != 0).any(0)
        reads[graph.mlp_input(index)] = (layer.W_in[:, useful] != 0).any(1) & varies
        needed = needed | reads[graph.mlp_input(index)]
        of_heads = needed.clone()
        for head in range(weights.n_heads):
            writes[graph.head(index, head)] = (layer.W_O[head] != 0).any(0)
            useful = (layer.W_O[head][:, needed] != 0).any(1)  # of d_head
            for letter in ("q", "k", "v"):
                W = layer.W_qkv[layer.rows(letter)][head]
                rows = useful if letter == "v" else torch.full_like(useful, bool(useful.any()))
                found = (W[rows] != 0).any(0) & varies
                reads[graph.head_input(index, head, letter)] = found
                of_heads |= found
        needed = of_heads
    edges = torch.zeros_like(graph.edge_mask)
    for u, written in writes.items():
        for v, read in reads.items():
            edges[u, v] = graph.edge_mask[u, v] and bool((written & read).any())
    return edges


def _embedded(dims: Tensor, program: Program, weights: ModelWeights) -> Tensor:
    whole = torch.zeros(weights.d_model, dtype=torch.bool)
    whole[program.dims] = dims
    return whole


def task(programs: list[Program], program: Program, n: int = 40) -> tuple[TokenPairs, Metric]:
    """Pairs of prompts of equal length with different answers, and the metric.

    The metric is the output of the clean prompt's answer minus that of the corrupted one's; of a number, that number,
    with the sign of the difference between the two answers.
    """
    first = sum(len(before.unembed) for before in programs[: programs.index(program)])
    rows = range(len(program.sequences))
    found = [
        (x, y)
        for x in rows
        for y in rows
        if len(program.sequences[x]) == len(program.sequences[y]) and program.answers[x] != program.answers[y]
    ]
    generator = torch.Generator().manual_seed(0)
    chosen = [found[row] for row in torch.randperm(len(found), generator=generator)[:n].tolist()]
    tokens = [torch.tensor(sequence) for sequence in program.sequences]
    sides = [pad_sequence([tokens[pair[side]] for pair in chosen], batch_first=True) for side in (0, 1)]
    lengths = torch.tensor([len(program.sequences[x]) for x, _ in chosen])
    right, wrong = (torch.tensor([program.answers[pair[side]] for pair in chosen]) for side in (0, 1))

    def metric(logits: Tensor, index: Tensor) -> Tensor:
        if len(program.unembed) == 1:
            return logits[:, first] * (right - wrong)[index].sign()
        at = torch.arange(len(index))
        return logits[at, first + right[index].long()] - logits[at, first + wrong[index].long()]

    return TokenPairs(*sides, lengths), metric
