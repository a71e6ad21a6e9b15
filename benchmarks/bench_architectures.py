"""What attribution and circuits cost in each architecture, in plain passes of the same Hugging Face model.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 OMP_NUM_THREADS=1 \\
        taskset -c 0 python benchmarks/bench_architectures.py

Random weights, 12 layers of 12 heads, d_model 768, 50,304 tokens, MLPs of 3072 (gated ones have a third matrix); 16
pairs as in bench_circuits.py, 5 integration steps, float32. All architectures are timed in turn, and ratios are those
of the minima. The last column holds an architecture against gpt_neox: its cost in its own passes, over that of gpt_neox
in those of gpt_neox.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from bench_circuits import SIZES, in_turn, random_pairs
from random_pythia import SHAPES
from transformers import AutoModelForCausalLM, GPTNeoXConfig, LlamaConfig, PreTrainedModel, Qwen3Config

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute

ROUNDS = 3
LAYERS, HEADS, WIDTH = SHAPES["160m"]
SHAPE = {
    "vocab_size": 50304,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * WIDTH,
}
CONFIGS = {
    "gpt_neox": GPTNeoXConfig(**SHAPE, rotary_pct=0.25),
    "gpt_neox, sequential": GPTNeoXConfig(**SHAPE, rotary_pct=0.25, use_parallel_residual=False),
    "llama": LlamaConfig(**SHAPE, num_key_value_heads=HEADS),
    "llama, 3 groups": LlamaConfig(**SHAPE, num_key_value_heads=3),
    "qwen3, 3 groups": Qwen3Config(**SHAPE, num_key_value_heads=3, head_dim=WIDTH // HEADS),
}


def metric(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """A difference of two logits."""
    rows = torch.arange(len(index))
    return logits[rows, index + 100] - logits[rows, index + 200]


def plain(model: PreTrainedModel, pairs: TokenPairs, *, backward: bool) -> None:
    """One pass of the Hugging Face model over the clean prompts, logits at the answers."""
    rows = torch.arange(len(pairs))
    with torch.set_grad_enabled(backward):
        embedded = model.get_input_embeddings()(pairs.clean)
        if backward:
            embedded.requires_grad_(True)
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        total = metric(model.get_output_embeddings()(hidden[rows, pairs.lengths - 1].contiguous()), rows).sum()
        if backward:
            torch.autograd.grad(total, embedded)


def jobs_of(model: PreTrainedModel, pairs: TokenPairs) -> dict[str, Callable[[], object]]:
    """What is timed of one model."""
    weights = read_weights(model)
    order = edge_order(attribute(weights, pairs, metric, steps=1).scores, Graph.of(weights), limit=SIZES[-1])
    return {
        "forward": lambda: plain(model, pairs, backward=False),
        "both": lambda: plain(model, pairs, backward=True),
        "attribution": lambda: attribute(weights, pairs, metric, steps=5, share_prefix=False).scores,
        "curve": lambda: CircuitEvaluator(weights, pairs, metric).prefixes_of(order)(SIZES),
    }


def main() -> None:
    """Time all architectures in turn, and print a table."""
    pairs = random_pairs(16)
    jobs = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
        jobs |= {(name, job): run for job, run in jobs_of(model, pairs).items()}
    times = {key: min(taken) for key, taken in in_turn(jobs, ROUNDS).items()}
    print(f"{torch.get_num_threads()} thread(s)")
    print(f"{'':22}{'attribution / 5 forward + backward':>36}{'40 circuits / forward':>24}{'against gpt_neox':>20}")
    found = {}
    for name in CONFIGS:
        attribution = times[name, "attribution"] / (5 * times[name, "both"])
        found[name] = attribution, times[name, "curve"] / times[name, "forward"]
        against = "  ".join(f"{own / first:.2f}" for own, first in zip(found[name], found["gpt_neox"], strict=True))
        print(f"{name:22}{found[name][0]:36.2f}{found[name][1]:24.1f}{against:>20}")


if __name__ == "__main__":
    main()
