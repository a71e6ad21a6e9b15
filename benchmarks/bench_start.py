"""How long a script takes to start, side by side with `import torch`.

    python benchmarks/bench_start.py

Each round starts new processes, one after the other: one that imports torch and nothing else, `--help`, a wrong key,
`--dry-run` of the kept toy family, and get_circuits_over_time.py up to where its first checkpoint is loaded, its
prompts are built and the code that measures is imported. Prints the least seconds of all rounds, the least CPU seconds,
and their ratios to `import torch`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST_CHECKPOINT = """
import dataclasses, os, sys
from circuits_over_time.get_circuits_over_time import ANALYSIS
from circuits_over_time.utils.sweep.analysis import loaded
from circuits_over_time.utils.sweep.runner import main

def measure(*_):
    loaded(ANALYSIS.measure)
    os._exit(0)

main(dataclasses.replace(ANALYSIS, measure=measure), sys.argv[1:])
"""


def seconds(command: list[str], folder: str) -> tuple[float, float]:
    """Wall and CPU time of a new process."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": folder}
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, check=False)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - start, cpu


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="time the start of scripts beside `import torch`")
    parser.add_argument("--rounds", type=int, default=5, help="how many rounds")
    rounds = parser.parse_args().rounds
    script, toy = str(ROOT / "get_circuits_over_time.py"), f"model={ROOT / 'tests' / 'data' / 'toy'}"
    keys = [toy, "task=ioi", "checkpoints=[1350]", "device=cpu"]
    commands = {
        "import torch": ["-c", "import torch"],
        "--help": [script, "--help"],
        "a wrong key": [script, "no_such_key=1"],
        "--dry-run": [script, *keys, "--dry-run"],
        "first checkpoint": ["-c", FIRST_CHECKPOINT, *keys],
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(seconds(command, folder))
    least = {name: tuple(min(times) for times in zip(*each, strict=True)) for name, each in found.items()}
    torch = least["import torch"]
    for name, (wall, cpu) in least.items():
        ratios = f"{wall / torch[0]:5.2f} {cpu / torch[1]:5.2f}"
        sys.stdout.write(f"{name:18}{wall:6.2f} s {cpu:6.2f} s of CPU    x {ratios}\n")


if __name__ == "__main__":
    main()
