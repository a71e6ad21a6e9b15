"""Cost of loading a checkpoint, against `from_pretrained` and the folding of q, k and v alone.

    OMP_NUM_THREADS=1 python benchmarks/bench_loading.py

Random weights at pythia-160m shape are saved to a temporary local family, float32 on the CPU, and each is loaded in
turn from the page cache. The goal: until the weights can be computed with, loading takes at most 1.3 times what
`from_pretrained` and the folding take. The other columns show the rest:

- `weights`: a checkpoint of the suite, with its tokenizer, config, device and step checked;
- `hash`: the SHA-256 of the weights, which is computed beside the loading and awaited only when results are saved;
- `again`: the same checkpoint loaded once more, as the next script of one process does: its hash is known;
- `bridge`: booting a TransformerBridge, which the sweep never does.

`from_pretrained` maps the file into memory and copies nothing; pages are read when they are first computed with, which
is the first forward pass's time and the same for all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from random_pythia import SHAPES, random_pythia

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.tests.support.random_models import tiny_tokenizer
from circuits_over_time.utils.models.family import resolve_family

ROOT = Path(__file__).resolve().parents[1]

GOAL = 1.3


def seconds(run: Callable[[], object]) -> tuple[float, object]:
    """Wall time, and what came of it."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    """Print the minima and the ratios of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="160m")
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from transformers import AutoModelForCausalLM

    times: dict[str, list[float]] = {name: [] for name in ("plain", "weights", "hash", "again", "bridge")}
    with tempfile.TemporaryDirectory() as folder:
        step = Path(folder) / "random" / "step0"
        random_pythia(*SHAPES[arguments.shape]).save_pretrained(step)
        tiny_tokenizer(step, vocab=50304)
        family = resolve_family(str(step.parent), Path(folder), tokens_per_step=1)

        def plain() -> object:
            return read_weights(AutoModelForCausalLM.from_pretrained(step, dtype=torch.float32, local_files_only=True))

        for index in range(arguments.rounds + 1):
            os.utime(step / "model.safetensors")  # A file that may have changed is hashed anew.
            took = {"plain": seconds(plain)[0]}
            took["weights"], checkpoint = seconds(lambda: family.load(0, device="cpu"))
            took["hash"], _ = seconds(lambda: checkpoint.provenance)  # noqa: B023
            took["again"], _ = seconds(lambda: family.load(0, device="cpu").provenance)
            if index < 3:
                took["bridge"], _ = seconds(lambda: checkpoint.bridge)  # noqa: B023
            if index:  # The first round imports libraries and gets memory.
                for name, value in took.items():
                    times[name].append(value)
    print(f"{'':10}{'fastest':>10}{'median':>10}{'ratio of minima':>18}{'median ratio':>15}")
    for name, values in times.items():
        ratio = min(values) / min(times["plain"])
        rounds = statistics.median(a / b for a, b in zip(values, times["plain"], strict=False))
        print(f"{name:10}{min(values):9.3f}s{statistics.median(values):9.3f}s{ratio:18.2f}{rounds:15.2f}")
    print(f"goal: weights at most {GOAL} times plain")


if __name__ == "__main__":
    main()
