"""Cost of finding and evaluating circuits, in plain passes of the Hugging Face model over the same prompts.

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456 OMP_NUM_THREADS=1 \\
        taskset -c 0 python benchmarks/bench_circuits.py

Random weights at pythia-70m and pythia-160m shape; 16 IOI pairs of 15 to 18 tokens that first differ at position 11
(`swap` prompts: everything before the second subject is shared), 5 integration steps, float32, one core by default. The
plain passes take logits at the answers only and their backward pass reaches the embeddings and no weight. Everything is
repeated in turn; a row gives the ratio of the minima, the median ratio of a round, and the goal. On a GPU:
`--device cuda`.
"""

from __future__ import annotations

import argparse
import ctypes
import io
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from random_pythia import SHAPES, random_pythia
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import GPTNeoXForCausalLM

from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.mib import mib_areas
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.patching.forward import evaluate_metric
from circuits_over_time.edge_attribution_patching.patching.runs import prepare_runs
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.folds import assign_folds
from circuits_over_time.utils.base.files import atomic_write

SIZES = list(range(25, 1001, 25))


def random_pairs(n_prompts: int) -> TokenPairs:
    """Pairs of 15 to 18 tokens that differ at position 11."""
    lengths = 15 + torch.arange(n_prompts) % 4
    clean = torch.randint(0, 50000, (n_prompts, 18))
    corrupted = clean.clone()
    corrupted[:, 11] += 1
    return TokenPairs(clean, corrupted, lengths)


@dataclass
class Setting:
    """A model of random weights and prompt pairs."""

    model: GPTNeoXForCausalLM
    pairs: TokenPairs  # on the CPU, as tasks have them
    steps: int = 5

    @classmethod
    def of(cls, shape: tuple[int, int, int], n_prompts: int, steps: int, device: str) -> Setting:
        return cls(random_pythia(*shape).to(device), random_pairs(n_prompts), steps)

    @cached_property
    def clean(self) -> torch.Tensor:
        return self.pairs.clean.to(self.model.device)

    @cached_property
    def last(self) -> torch.Tensor:
        return self.pairs.lengths.to(self.model.device) - 1

    def metric(self, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(index), device=logits.device)
        return logits[rows, index + 100] - logits[rows, index + 200]

    def plain(self, backward: bool) -> None:
        """One pass of the Hugging Face model over the clean prompts, logits at the answers."""
        neox = self.model.gpt_neox
        with torch.set_grad_enabled(backward):
            embedded = neox.embed_in(self.clean)
            if backward:
                embedded.requires_grad_(True)
            hidden = neox(inputs_embeds=embedded, use_cache=False).last_hidden_state
            rows = torch.arange(len(self.pairs), device=hidden.device)
            logits = self.model.lm_head(hidden[rows, self.last].contiguous())
            total = self.metric(logits, rows).sum()
            if backward:
                torch.autograd.grad(total, embedded)


def finish() -> None:
    """Wait for what a GPU was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], object]) -> float:
    finish()
    start = time.perf_counter()
    run()
    finish()
    return time.perf_counter() - start


def in_turn(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each job in each round, after one round of warming up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            taken = seconds(job)
            if round_:
                times[name].append(taken)
    return times


def resident_gb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def peak_above(run: Callable[[], object], device: str) -> float:
    """Largest growth of resident memory (of allocated memory on a GPU) while `run` runs, GB."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 1e9
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is kept would hide what the run takes
    start, peak, done = resident_gb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, resident_gb() - start)
            done.wait(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return peak


class Products(TorchDispatchMode):
    """Counts the operations of all matrix products (`flop`). PyTorch's own counter does not take `autograd.grad`."""

    flop = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (count := flop_registry.get(function.overloadpacket)) is None:
            with (
                self
            ):  # In inference mode a product of many kinds comes here as it is called, not as what it consists of.
                if (parts := function.decompose(*args, **kwargs)) is not NotImplemented:
                    return parts
        result = function(*args, **kwargs)
        if count is not None:
            self.flop += count(*args, **kwargs, out_val=result)
        return result


def matmul_speed(device: str, dtype: torch.dtype) -> float:
    """Operations per second of large matrix products, the best of ten."""
    size = 8192 if device.startswith("cuda") else 1024
    a, b = torch.randn(2, size, size, device=device, dtype=dtype)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(10))


def table(name: str, device: str, rounds: int) -> None:
    setting = Setting.of(SHAPES[name], 16, 5, device)
    peak = float("nan")
    weights = read_weights(setting.model)
    graph = Graph.of(weights)
    pairs, metric = setting.pairs, setting.metric
    fold_of = assign_folds(len(pairs), 10, seed=0)

    def score(share_prefix: bool = True) -> torch.Tensor:
        return attribute(weights, pairs, metric, steps=setting.steps, share_prefix=share_prefix).scores

    def curve() -> None:
        evaluator = CircuitEvaluator(weights, pairs, metric)
        evaluator.prefixes_of(edge_order(scores, graph, limit=SIZES[-1]))(SIZES)

    if platform.system() == "Linux":
        peak = peak_above(score, device)
    scores = score()
    (batch,) = pairs.batches(16, weights=weights)
    runs = prepare_runs(weights, batch)
    products = {}
    for job, run in (
        ("attribution", lambda: score(False)),
        ("attribution, shared prefix", score),
        ("curve of 40 sizes", curve),
    ):
        with Products() as counter:
            run()
        products[job] = counter.flop
    evaluator = CircuitEvaluator(weights, pairs, metric)
    thousand = top_n_masks(edge_order(scores, graph, limit=1000), graph, [1000])
    circuit = Circuit(graph, scores, thousand[0])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.pt"

        def save() -> None:
            buffer = io.BytesIO()
            torch.save(circuit.to_tensors(), buffer)
            atomic_write(file, buffer.getvalue())

        save()
        times = in_turn(
            {
                "forward": lambda: setting.plain(False),
                "forward + backward": lambda: setting.plain(True),
                "attribution": lambda: score(False),
                "attribution, shared prefix": score,
                "attribution, 10 folds": lambda: attribute(weights, pairs, metric, fold_of, steps=setting.steps),
                "prepare both runs": lambda: prepare_runs(weights, batch),
                "one circuit, 1000 edges": lambda: evaluate_metric(weights, runs, thousand, metric),
                "curve of 40 sizes": curve,
                "CPR and CMD": lambda: mib_areas(evaluator, scores),
                "build a graph": lambda: (
                    Graph(*SHAPES[name][:2], True).edge_mask,
                    edge_order(scores, graph, limit=1000),
                ),
                "save a graph": save,
                "load a graph": lambda: Circuit.from_tensors(torch.load(file, weights_only=True)),
            },
            rounds,
        )
    passes = [5 * taken for taken in times["forward + backward"]]
    rows = [
        ("attribution / 5 forward + backward", "attribution", passes, 1.3),
        ("  with shared prefix", "attribution, shared prefix", passes, 0.65),
        ("  and in 10 folds", "attribution, 10 folds", passes, 0.65),
        ("prepare both runs / forward", "prepare both runs", times["forward"], 1.2),
        ("one circuit of 1000 edges / forward", "one circuit, 1000 edges", times["forward"], 0.8),
        ("40 sizes, all included / forward", "curve of 40 sizes", times["forward"], 25.0),
        ("CPR and CMD, 20 circuits / forward", "CPR and CMD", times["forward"], 10.0),
    ]
    print(f"\npythia-{name} shape, {device}, {torch.get_num_threads()} thread(s)")
    print(f"  forward {min(times['forward']):.3f} s, forward + backward {min(times['forward + backward']):.3f} s")
    print(f"  {'':38}{'minimum':>9}{'median':>9}{'goal':>7}")
    for label, job, floor, goal in rows:
        ratios = [taken / plain for taken, plain in zip(times[job], floor, strict=True)]
        print(f"  {label:38}{min(times[job]) / min(floor):9.2f}{statistics.median(ratios):9.2f}{goal:7.2f}")
    for job in ("build a graph", "save a graph", "load a graph"):
        print(f"  {job + ', ms':38}{1e3 * min(times[job]):9.1f}{1e3 * statistics.median(times[job]):9.1f}{50:7.0f}")
    print(f"  {'attribution, peak GB above the weights':38}{peak:9.2f}{'':9}{1.5:7.2f}")
    fastest = matmul_speed(device, torch.float32)
    print(f"  matrix products of 1024 x 1024: {fastest / 1e9:.1f} GFLOP/s; a goal of 90% of it for all of attribution")
    for job, flop in products.items():
        speed = flop / min(times[job])
        print(f"  {job + ', GFLOP/s':38}{speed / 1e9:9.1f}{speed / fastest:9.0%}  of {flop / 1e9:.0f} GFLOP")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["70m", "160m"], choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.shapes:
        table(name, arguments.device, arguments.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
