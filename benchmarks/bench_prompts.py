"""Time to build 200 prompts of every task.

    OMP_NUM_THREADS=1 python benchmarks/bench_prompts.py [--tokenizer FOLDER] [--rounds 5]

Bound: 0.3 s a task under Pythia's tokenizer (a folder that `AutoTokenizer` reads); by default the toy family's.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from transformers import AutoTokenizer

from circuits_over_time.tests.support.paths import TOY, TOY_STEPS
from circuits_over_time.utils.tasks import TASKS, build_prompts

ROOT = Path(__file__).resolve().parents[1]

N_PROMPTS = 200


def main() -> None:
    """Print the fastest round of each task."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizer", type=Path, default=TOY / f"step{TOY_STEPS[0]}")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    for task in TASKS:
        seconds = []
        for seed in range(arguments.rounds):
            start = time.perf_counter()
            build_prompts(task, tokenizer, N_PROMPTS, seed)
            seconds.append(time.perf_counter() - start)
        print(f"{task}: {min(seconds):.3f} s for {N_PROMPTS} prompts")


if __name__ == "__main__":
    main()
