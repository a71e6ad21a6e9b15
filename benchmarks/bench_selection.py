"""Signed against absolute selection of edges: how faithful, how close to the model, how stable are the circuits?

    python benchmarks/bench_selection.py                                  # the toy family, every learned checkpoint
    python benchmarks/bench_selection.py --model model_cache/smollm2-135m --task ioi --prompts 20

Scores are computed once for each checkpoint and task. For each selection it then reports, as means over checkpoints and
tasks: edges of the smallest circuit of faithfulness 0.8 and its faithfulness; CMD over the benchmark's shares of edges,
with the circuits of that selection instead of the strongest edges (0 is best); the stability of the circuit's edges;
and the share of its edges with a positive score.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from circuits_over_time.edge_attribution_patching.choices import USUAL_STEPS
from circuits_over_time.edge_attribution_patching.circuits.circuit_size import SizeRule
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import (
    Baselines,
    CircuitEvaluator,
    FaithfulnessCurve,
)
from circuits_over_time.edge_attribution_patching.circuits.mib import MIB_SHARES
from circuits_over_time.edge_attribution_patching.circuits.search import circuit_sizes, edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.circuits.stability import CircuitBootstrap, signed_selection
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores, assign_folds
from circuits_over_time.utils.circuits.find import circuit_prompts
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.tasks import TASKS

SELECTIONS = (("absolute", 0.0), ("signed", 0.5), ("signed", 0.75), ("signed", 0.9))


def measure(evaluator: CircuitEvaluator, folds: FoldScores, config: CircuitsConfig, resamples: int) -> dict[str, float]:
    """One selection in one checkpoint."""
    graph, scores, search = folds.graph, folds.scores, config.search
    signed = None
    if search.selection == "signed":
        signed = signed_selection(folds.keep_all(), config.seed, search.positive_share)
    order = edge_order(scores, graph, signed=signed)
    evaluate = evaluator.prefixes_of(order)
    curve = FaithfulnessCurve(evaluator.full, evaluator.corrupted)
    size = SizeRule(0.8).search(curve, evaluate, circuit_sizes(order, graph))
    sizes = [int(share * graph.n_edges) for share in MIB_SHARES]
    for one in sizes:
        if one not in curve.values:
            curve.values[one] = evaluate([one])[0]
    cmd = float(np.trapezoid(np.abs(1 - np.array([curve.faithfulness(one) for one in sizes])), MIB_SHARES))
    if size is None:
        return {"CMD": cmd}
    search = config.search
    bootstrap = CircuitBootstrap(
        folds.keep(order, size), "greedy", search.selection, search.positive_share, config.seed
    )
    circuit = top_n_masks(order, graph, [size])[0]
    return {
        "edges": int(circuit.sum()),
        "faithfulness": curve.faithfulness(size),
        "CMD": cmd,
        "stability": float(bootstrap.stability(size, config.seed, resamples)[circuit].mean()),
        "positive": float((scores[circuit] > 0).double().mean()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="model_cache/toy")
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--resamples", type=int, default=300)
    arguments = parser.parse_args()
    family = resolve_family(arguments.model, Path("model_cache"))
    rows = []
    for step in family.steps:
        checkpoint = family.load(step, device="cpu")
        weights = checkpoint.weights
        for task in arguments.task:
            given = {"model": arguments.model, "task": task, "n_prompts": arguments.prompts}
            config = CircuitsConfig(**given)
            prompts = circuit_prompts(config, TASKS[task], checkpoint.tokenizer, checkpoint.weights)
            metrics = [part.metric(TASKS[task].primary) for part in (prompts.scoring, prompts.evaluation)]
            evaluator = CircuitEvaluator(weights, prompts.evaluation.pairs, metrics[1])
            if not Baselines.of(evaluator.full, evaluator.corrupted).learned(config.search.min_gap):
                continue
            fold_of = assign_folds(len(prompts.scoring), config.eap.n_folds, config.seed)
            folds = attribute(weights, prompts.scoring.pairs, metrics[0], fold_of, steps=USUAL_STEPS["eap_ig"])
            for selection, share in SELECTIONS:
                search = {"selection": selection, "positive_share": share}
                found = measure(evaluator, folds, CircuitsConfig(**given, search=search), arguments.resamples)
                name = selection if selection == "absolute" else f"{selection}, {share:.0%} positive"
                rows.append({"step": step, "task": task, "selection": name} | found)
                print(rows[-1], file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    counts = table.groupby("selection", sort=False)["edges"].count().rename("circuits")
    means = table.groupby("selection", sort=False)[["edges", "faithfulness", "CMD", "stability", "positive"]].mean()
    print(f"{arguments.model}, {Graph.of(weights).n_edges:,} edges, {arguments.prompts} prompts")
    print(pd.concat((counts, means.round(3)), axis=1).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())
