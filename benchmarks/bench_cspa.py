"""Cost of the CSPA score of all 144 heads at pythia-160m shape, against one plain forward pass over the same tokens.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 \
        OMP_NUM_THREADS=1 taskset -c 1 python benchmarks/bench_cspa.py

The goal is at most 25 times a plain Hugging Face forward pass, logits included, over 17 x 61 tokens in float32 on one
core. Times are the process's own (processor time), so that others on the machine count little. Prints both, round by
round, and the median of the rounds' ratios; the mean ablation's 100 sequences (forward passes without logits) apart;
the peak memory above the weights; and what bounds the score.

What bounds it. Matrix products: 2 n_vocab n_heads d_head (d_model + n_tokens) operations, 712 GFLOP for W_O W_U and 961
GFLOP for the ablated logits, as many as 6.5 forward passes. Then elementwise work on 2 x 144 x 1037 x 50304 = 15.0 G
changed logits: 2 ** x, minus one, times p, sum. The products alone are timed on the same shapes, the rest follows.
Where a head's effect is smaller than `streamed_kl.SMALL` the slower exact exp(x) - 1 is taken: `--untrained` leaves the
random output layer as it is initialised, which makes some heads' effects that small, unlike a trained model's.
"""

from __future__ import annotations

import argparse
import ctypes
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from random_pythia import random_pythia
from transformers import GPTNeoXForCausalLM

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.heads import streamed_kl
from circuits_over_time.utils.heads.cspa_scores import cspa_scores, mean_outputs
from circuits_over_time.utils.heads.keys import Ablation

ROOT = Path(__file__).resolve().parents[1]

N_SEQUENCES, SEQ_LEN, N_MEAN = 17, 61, 100
VOCAB, D_MODEL, LAYERS, HEADS, D_HEAD = 50304, 768, 12, 12, 64


def pythia_160m(untrained: bool) -> GPTNeoXForCausalLM:
    """pythia-160m's shape with random weights, and an output layer that spreads logits like a trained model's."""
    model = random_pythia(LAYERS, HEADS, D_MODEL)
    if not untrained:
        model.lm_head.weight.mul_(6)
    return model


def natural_tokens(n: int, seed: int) -> torch.Tensor:
    """Ids that repeat as words do (Zipf's law), so that contexts hold repeated and common tokens."""
    ranks = torch.arange(1, VOCAB + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(1 / ranks, n * SEQ_LEN, replacement=True, generator=generator).view(n, SEQ_LEN)


def seconds(run: Callable[[], object]) -> float:
    """Processor time."""
    start = time.process_time()
    run()
    return time.process_time() - start


def resident() -> int:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_of(run: Callable[[], object]) -> int:
    """The most bytes in memory while `run` runs, beyond those before, sampled every 5 ms."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed but kept is not there before
    before, most, done = resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, resident())

    thread = threading.Thread(target=watch)
    thread.start()
    run()
    done.set()
    thread.join()
    return most - before


def products(n_tokens: int) -> float:
    """Seconds that the matrix products of the score take at its tile width, from a few tiles."""
    columns = streamed_kl.CPU_BLOCK[1]
    outputs, directions = torch.randn(HEADS * D_HEAD, D_MODEL), torch.randn(columns, D_MODEL)
    changes, block = torch.randn(HEADS, n_tokens, D_HEAD), torch.empty(n_tokens, columns)

    def layer() -> None:
        for head, matrix in enumerate((outputs @ directions.T).view(HEADS, D_HEAD, columns)):
            torch.mm(changes[head], matrix, out=block)

    layer()
    return min(seconds(layer) for _ in range(10)) * LAYERS * VOCAB / columns


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--untrained", action="store_true", help="effects as small as at initialisation")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    model = pythia_160m(arguments.untrained)
    weights = read_weights(model)
    tokens, others = natural_tokens(N_SEQUENCES, 0), natural_tokens(N_MEAN, 1)
    function_words = torch.arange(150)  # the most common ids, as they are in text
    means = torch.zeros(LAYERS, SEQ_LEN, HEADS, D_HEAD)
    n_tokens = tokens.numel()

    def plain() -> None:
        model(tokens, use_cache=False)

    def score() -> None:
        cspa_scores(weights, tokens, means, function_words, Ablation())

    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {N_SEQUENCES} x {SEQ_LEN} tokens, float32")
    print(f"peak above the weights: {peak_of(score) / 1e6:.0f} MB (one head's full logits alone: 209 MB)")
    means = mean_outputs(weights, others)
    plain()
    ratios = []
    for number in range(arguments.rounds):
        before, taken, after = seconds(plain), seconds(score), seconds(plain)
        forward = (before + after) / 2
        ratios.append(taken / forward)
        print(f"round {number}: forward {forward:.2f} s, all 144 heads {taken:.1f} s, ratio {ratios[-1]:.1f}")
    forward, mean_taken, bound = seconds(plain), seconds(lambda: mean_outputs(weights, others)), products(n_tokens)
    print(f"median ratio {statistics.median(ratios):.1f} (goal: at most 25)")
    print(f"mean ablation: {mean_taken / forward:.1f} forward passes for {N_MEAN} sequences")
    print(f"matrix products alone: {bound / forward:.1f} forward passes")
    return 0 if statistics.median(ratios) <= 25 else 1


if __name__ == "__main__":
    sys.exit(main())
