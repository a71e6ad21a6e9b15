"""Cost of one checkpoint of get_ioi_consistency.py against plain forward passes of Hugging Face, at pythia-160m shape.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
        OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/bench_ioi_consistency.py

Prints, for every round and then as the median: processor seconds of a plain forward pass over the 70 prompts, of the
three levels and the backup of the name movers (circuit and scores stored), and of the scores that are computed in the
same load where none are stored (copy, induction, duplicate-token, CSPA; the circuit's cost is that of
get_circuits_over_time.py); and the ratios to the forward pass of the same round. Bound: the levels of a checkpoint take
at most 60 forward passes.

Random weights have no name movers, so scores are made up: all 144 heads are in the circuit (the study's circuits of
this model hold some 40 nodes), 32 of the upper layers can be name movers (about half of them have an effect below 0),
and the threshold of the effect on their queries is 0, so that half of the heads below them are tested for S-inhibition.
`--definitions` picks the way effects are measured. With `--corruption abc` prompts differ from their first name on, so
that there is more to compute than with `swap`; `--through-mlps` adds paths to `frozen`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from random_pythia import SHAPES, random_pythia
from transformers import AutoTokenizer, GPTNeoXForCausalLM, PreTrainedTokenizerBase

from circuits_over_time.edge_attribution_patching.choices import QKV
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.algorithms.backup import backup_table
from circuits_over_time.utils.algorithms.effects import PairedRuns
from circuits_over_time.utils.algorithms.inputs import HeadFacts
from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig, Thresholds
from circuits_over_time.utils.algorithms.levels import Levels
from circuits_over_time.utils.algorithms.tables import Consistency
from circuits_over_time.utils.heads.attention_and_copy import attention_samples, ordinary_tokens, repeated_blocks
from circuits_over_time.utils.heads.copy_scores import copy_samples, mean_scores
from circuits_over_time.utils.heads.cspa_scores import cspa_scores, mean_outputs
from circuits_over_time.utils.heads.function_words import function_tokens
from circuits_over_time.utils.heads.keys import Ablation
from circuits_over_time.utils.tasks import TASKS
from circuits_over_time.utils.tasks.ioi import signal_variants
from circuits_over_time.utils.tasks.metrics import Answers

ROOT = Path(__file__).resolve().parents[1]

BOUND = 60


def made_up_facts(n_layers: int, n_heads: int) -> HeadFacts:
    """32 heads with a copy score and 4 copy-suppression heads in the upper third; other scores are random.

    Larger models than 160m have a circuit of 144 heads drawn at random, those of the upper third with scores in it.
    """
    generator = torch.Generator().manual_seed(0)
    graph = Graph(n_layers, n_heads, parallel=True)
    copy, cspa = torch.zeros(2, n_layers, n_heads)
    first = n_layers * 2 // 3 * n_heads
    upper = torch.randperm(n_layers * n_heads - first, generator=generator) + first
    copy.view(-1)[upper[:32]] = 90.0
    cspa.view(-1)[upper[32:36]] = 0.5
    induction, duplicate = torch.rand(2, n_layers, n_heads, generator=generator)
    edges = graph.edge_mask.clone()
    drawn = torch.randperm(n_layers * n_heads, generator=generator)
    for number in drawn[~torch.isin(drawn, upper[:36])][108:].tolist():
        layer, head = divmod(number, n_heads)
        edges[graph.head(layer, head)] = False
        for letter in QKV:
            edges[:, graph.head_input(layer, head, letter)] = False
    sources = dict.fromkeys(("circuit", "components", "cspa"), "made up")
    names = ("copy", "negative_copy", "induction", "duplicate_token", "cspa")
    scores = dict(zip(names, (copy, torch.zeros_like(copy), induction, duplicate, cspa), strict=True))
    errors, n_samples = dict.fromkeys(names, torch.full((n_layers, n_heads), 0.01)), dict.fromkeys(names, 50)
    chance = {"induction": 0.01, "duplicate_token": 0.01}
    return HeadFacts(
        graph, edges, "found", **scores, sources=sources, errors=errors, n_samples=n_samples, chance=chance
    )


class Bench:
    """One model of random weights, and what is measured on it; `keys` go to the config."""

    def __init__(self, model: GPTNeoXForCausalLM, tokenizer: PreTrainedTokenizerBase, **keys: Any) -> None:
        self.tokenizer, self.model = tokenizer, model
        self.config = IoiConsistencyConfig(
            model="random", thresholds=Thresholds(s_inhibition_effect=0.0), **{"definitions": "study", **keys}
        )
        self.facts = made_up_facts(model.config.num_hidden_layers, model.config.num_attention_heads)
        prompts = TASKS["ioi"].build(self.tokenizer, self.config.n_prompts, self.config.seed, self.config)
        self.variants = signal_variants(prompts, self.tokenizer, self.config.seed)
        prompts = prompts.to(model.device)
        self.weights = read_weights(model)
        runs = PairedRuns(self.weights, prompts, prompts.corrupted, 32, 1.0)
        clean, corrupted = (values.mean() for values in runs.both())
        if clean <= (0 if self.config.definitions == "frozen" else corrupted):  # what random weights happen to prefer
            answers = prompts.answers
            turned = Answers(answers.wrong, answers.wrong_mask, answers.right, answers.right_mask)
            prompts = replace(prompts, answers=turned)
        self.prompts = prompts
        self.text = torch.randint(50254, (117, 61), generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def forward(self) -> None:
        for batch in self.prompts.clean.split(self.config.batch_size):
            self.model(batch, use_cache=False)

    def levels(self) -> Consistency:
        levels = Levels(self.weights, self.prompts, self.variants, self.facts, self.config)
        found, roles = levels.run()
        backup_table(levels.runs, roles, self.config.backup_ablation, levels.scale)
        return found

    def scores(self) -> None:
        """The defaults of get_full_model_components_over_time.py and get_model_cspa.py."""
        weights = self.weights
        tokens = repeated_blocks(ordinary_tokens(self.tokenizer, 50304), 50, 50, seed=0)
        mean_scores(attention_samples(weights, tokens, 32))
        names = torch.stack([self.prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
        mean_scores(copy_samples(weights, self.prompts.clean, self.prompts.lengths, names, 32))
        scored, others = self.text.tensor_split([17])
        cspa_scores(weights, scored, mean_outputs(weights, others), function_tokens(self.tokenizer), Ablation())

    def round(self) -> tuple[float, float, float]:
        seconds = []
        for run in (self.forward, self.levels, self.scores):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
        return seconds[0], seconds[1], seconds[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default=ROOT.parent / "shared" / "pythia_tokenizer", help="folder or hub name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--definitions", choices=("standard", "study", "frozen"), default="study")
    parser.add_argument("--corruption", choices=("swap", "abc"), default="swap")
    parser.add_argument("--through-mlps", action="store_true")
    arguments = parser.parse_args()
    if isinstance(arguments.tokenizer, Path) and not arguments.tokenizer.is_dir():
        print(f"skipped: {arguments.tokenizer} is missing; pass --tokenizer EleutherAI/pythia-160m", file=sys.stderr)
        return 0
    bench = Bench(
        random_pythia(*SHAPES["160m"]),
        AutoTokenizer.from_pretrained(arguments.tokenizer),
        definitions=arguments.definitions,
        ioi_corruption=arguments.corruption,
        through_mlps=arguments.through_mlps,
    )
    print(f"{len(bench.prompts)} prompts, {int(bench.prompts.lengths.sum())} tokens, {torch.get_num_threads()} threads")
    bench.forward()
    found = bench.levels()  # the first run pays for fresh memory
    print(found.levels[["level", "percent", "n_heads", "n_measured", "n_receivers"]].to_string(index=False))
    print(f"{found.signals.groupby(['layer', 'head']).ngroups} heads tested for S-inhibition")
    rounds = []
    for number in range(1, arguments.rounds + 1):
        seconds = bench.round()
        rounds.append((*seconds, seconds[1] / seconds[0], sum(seconds[1:]) / seconds[0]))
        report(f"round {number}", rounds[-1])
    report("median", tuple(statistics.median(column) for column in zip(*rounds, strict=True)))
    return 0


def report(name: str, row: tuple[float, ...]) -> None:
    forward, levels, scores, ratio, with_scores = row
    print(
        f"{name}: forward {forward:.2f} s; levels {levels:.2f} s = {ratio:.1f} forward (bound {BOUND}); head scores "
        f"{scores:.2f} s; levels and scores {with_scores:.1f} forward",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
