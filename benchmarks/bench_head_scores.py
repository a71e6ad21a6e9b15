"""Cost of the head scores against plain forward passes of Hugging Face, at pythia-160m shape with random weights.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
        taskset -c 1 python benchmarks/bench_head_scores.py

Prints, for every round and then as the median: CPU seconds of one thread for a plain forward pass over the random
blocks, for all five head scores and for the succession scores (each with reading the weights and building the prompts),
and the ratios to the forward pass of the same round. Bounds: all five scores at most 3.6 forward passes, succession at
most one second. `--copying` makes every head copy every name, the slowest case of the copy scores, where nothing can be
ruled out early.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from random_pythia import SHAPES, random_pythia
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.heads.attention_and_copy import attention_samples, ordinary_tokens, repeated_blocks
from circuits_over_time.utils.heads.copy_scores import copy_samples, mean_scores
from circuits_over_time.utils.heads.succession import succession
from circuits_over_time.utils.heads.successor_words import successor_pairs
from circuits_over_time.utils.tasks import build_prompts

ROOT = Path(__file__).resolve().parents[1]

N_SEQUENCES, SEQ_LEN, N_PROMPTS, BATCH_SIZE = 50, 50, 100, 32


def make_all_heads_copy(model: GPTNeoXForCausalLM) -> None:
    """Every head's OV circuit passes on a part of the embedding, which the output layer reads."""
    model.lm_head.weight.copy_(model.gpt_neox.embed_in.weight)
    for layer in model.gpt_neox.layers:
        attention = layer.attention
        attention.dense.weight.copy_(torch.eye(768))
        fused = attention.query_key_value.weight.view(12, 3, 64, 768)
        fused[:, 2] = torch.eye(768).view(12, 64, 768)
        layer.mlp.dense_4h_to_h.weight.zero_()


def seconds(run: Callable[[], object]) -> float:
    """CPU time, so that whatever else the machine does counts as little as possible."""
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", default=ROOT.parent / "shared" / "pythia_tokenizer", help="folder or hub name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--copying", action="store_true", help="every head copies")
    arguments = parser.parse_args()
    if isinstance(arguments.tokenizer, Path) and not arguments.tokenizer.is_dir():
        print(f"skipped: {arguments.tokenizer} is missing; pass --tokenizer EleutherAI/pythia-160m", file=sys.stderr)
        return 0
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    model = random_pythia(*SHAPES["160m"])
    if arguments.copying:
        make_all_heads_copy(model)
    tokens = repeated_blocks(ordinary_tokens(tokenizer, 50304), N_SEQUENCES, SEQ_LEN, seed=0)

    @torch.inference_mode()
    def plain() -> None:
        for batch in tokens.split(BATCH_SIZE):
            model(batch, use_cache=False)

    def components() -> None:
        weights = read_weights(model)
        prompts = build_prompts("ioi", tokenizer, N_PROMPTS, seed=0)
        positions = torch.stack([prompts.positions[name] for name in ("io", "s1", "s2")], dim=1)
        mean_scores(attention_samples(weights, tokens, BATCH_SIZE))
        mean_scores(copy_samples(weights, prompts.clean, prompts.lengths, positions, BATCH_SIZE))

    def successor() -> None:
        succession(read_weights(model), successor_pairs(tokenizer))

    print(f"{N_SEQUENCES} sequences of {2 * SEQ_LEN} tokens, {N_PROMPTS} IOI prompts, one thread")
    rounds = []
    for number in range(arguments.rounds + 1):
        forward, five, succeeding = seconds(plain), seconds(components), seconds(successor)
        if number == 0:
            continue  # the first round pays for fresh memory
        rounds.append((forward, five, succeeding, five / forward, succeeding / forward))
        report(f"round {number}", rounds[-1])
    report("median", tuple(statistics.median(column) for column in zip(*rounds, strict=True)))
    return 0


def report(name: str, row: tuple[float, ...]) -> None:
    forward, five, succeeding, five_ratio, succession_ratio = row
    print(
        f"{name}: forward {forward:.2f} s; five scores {five:.2f} s = {five_ratio:.2f} forward; "
        f"succession {succeeding:.2f} s = {succession_ratio:.3f} forward"
    )


if __name__ == "__main__":
    sys.exit(main())
