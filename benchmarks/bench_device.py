"""Time and memory of every analysis on one device, beside what its matrix units and a plain model do there.

    python benchmarks/bench_device.py --device cuda --output bench_output        # or: make bench DEVICE=cuda

Pythia's shapes with random weights, made on the device; pairs of 15 to 18 tokens that share their first eleven, 5
integration steps; head scores and IOI consistency with their scripts' defaults, facts about heads made up
(`bench_ioi_consistency.py`). Every stage runs in float32, in float32 with TF32 products, and in bfloat16, and last of
all, in float32 alone and once, the IOI consistency, whose products are not counted. The budget of memory is what
scripts take by default. A cell has
milliseconds (the least of some rounds after one that warms up), the peak of memory above the weights in GB, the share
of the speed at which the device multiplies large matrices in this format in the same run, and the time in plain forward
and backward passes of Hugging Face over as many pairs. It prints a table in markdown and, with `--output`, writes it
(`device.md`) and its numbers (`device.json`). What has no time left (`--minutes`) is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
from bench_circuits import SIZES, Products, Setting, matmul_speed, peak_above, random_pairs, seconds
from bench_ioi_consistency import Bench
from random_pythia import SHAPES, random_pythia
from transformers import AutoTokenizer

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order, top_n_masks
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.utils.base.memory import auto_budget_gb

ROOT = Path(__file__).resolve().parents[1]
# Its tokenizer knows the words of IOI, and lies in the repository.
TOKENIZER = ROOT / "tests" / "data" / "toy_ioi" / "step1700"
PRECISIONS = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
}
PLAIN = "plain forward and backward"
LEAST, MOST_ROUNDS = 0.15, 3
"""Seconds after which a stage has been measured enough, and how often at most."""


@dataclass
class Measured:
    """A stage on one shape in one precision.

    Attributes:
        seconds: the least of the rounds.
        peak: GB that were taken above what was there before.
        flop: operations of its matrix products.
    """

    shape: str
    stage: str
    precision: str
    seconds: float
    peak: float
    flop: int
    share: float = 0.0
    in_plain: float = 0.0


def stages(shape: str, dtype: torch.dtype, device: str, last: bool) -> Iterator[tuple[str, int, Callable[[], object]]]:
    """Name, pairs and what to run of every stage; or of the `last`, which takes longest."""
    model = random_pythia(*SHAPES[shape], device=device).to(dtype)
    bench = Bench(model, AutoTokenizer.from_pretrained(TOKENIZER))
    weights, graph = bench.weights, Graph.of(bench.weights)
    memory = {"memory_budget_gb": auto_budget_gb(torch.device(device))}
    settings = {n: Setting(model, random_pairs(n)) for n in (16, 100)}
    for n, setting in settings.items():
        yield PLAIN, n, lambda setting=setting: setting.plain(True)

    if last:
        yield "IOI consistency", 70, bench.levels
        return

    def scored(setting: Setting) -> torch.Tensor:
        return attribute(weights, setting.pairs, setting.metric, steps=setting.steps, **memory).scores

    for n, setting in settings.items():
        yield "attribution", n, lambda setting=setting: scored(setting)
    few = settings[16]
    order = edge_order(scored(few), graph, limit=SIZES[-1])
    thousand = top_n_masks(order, graph, [1000])

    def evaluator() -> CircuitEvaluator:
        return CircuitEvaluator(weights, few.pairs, few.metric, **memory)

    yield "one circuit of 1,000 edges", 16, lambda: evaluator()(thousand)
    yield f"{len(SIZES)} sizes", 16, lambda: evaluator().prefixes_of(order)(SIZES)
    yield "head scores", 100, bench.scores


def measure(run: Callable[[], object], device: str, counted: bool) -> tuple[float, float, int]:
    """Seconds, peak in GB and operations. Counting warms up; what is not counted runs once."""
    products = Products()
    if counted:
        with products:
            run()
    times: list[float] = []
    peak = peak_above(lambda: times.append(seconds(run)), device)
    while counted and len(times) < MOST_ROUNDS and sum(times) < LEAST:
        times.append(seconds(run))
    return min(times), peak, products.flop


def measure_all(shapes: list[str], device: str, deadline: float) -> Iterator[tuple[list[Measured], dict[str, float]]]:
    """All that is measured so far, shape by shape while there is time, and the speed of large products by precision."""
    found: list[Measured] = []
    speeds = {}
    for precision, (dtype, products) in PRECISIONS.items():
        torch.set_float32_matmul_precision(products)
        speeds[precision] = matmul_speed(device, dtype)
    for last, shape in product((False, True), shapes):
        for precision, (dtype, products) in list(PRECISIONS.items())[: 1 if last else None]:
            torch.set_float32_matmul_precision(products)
            plain: dict[int, float] = {}
            with contextlib.suppress(torch.OutOfMemoryError):  # Of the model itself.
                for stage, n, run in stages(shape, dtype, device, last):
                    if time.monotonic() > deadline:
                        break
                    try:
                        taken, peak, flop = measure(run, device, stage != "IOI consistency")
                    except (ArithmeticError, RuntimeError, ValueError) as error:  # Too little memory is one of these.
                        print(f"{shape} {precision} {stage}, {n}: {type(error).__name__}: {error}", file=sys.stderr)
                        continue
                    share = flop / taken / speeds[precision]
                    if stage == PLAIN:
                        plain[n] = taken
                    one = Measured(shape, f"{stage}, {n}", precision, taken, peak, flop, share)
                    one.in_plain = taken / (plain[n] if n in plain else plain[100] * n / 100)
                    found.append(one)
                    print(f"{shape} {precision} {one.stage}: {cell(one)}", file=sys.stderr, flush=True)
            if device.startswith("cuda"):
                finish()
                torch.cuda.empty_cache()
        yield found, speeds


def cell(one: Measured | None) -> str:
    """Milliseconds, GB, share and plain passes."""
    if one is None:
        return ""
    share = f"{one.share:.0%}, " if one.flop else ""
    return f"{1e3 * one.seconds:,.0f} ms, {one.peak:.2f} GB, {share}{one.in_plain:.1f}x"


def table(found: list[Measured], speeds: dict[str, float], device: str) -> str:
    """All of it in markdown."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
    told = ", ".join(f"{speed / 1e12:.3g} TFLOP/s in {precision}" for precision, speed in speeds.items())
    lines = [
        f"{name}, torch {torch.__version__}, {torch.get_num_threads()} threads; large matrix products: {told}.",
        "",
        f"| shape | stage, pairs | {' | '.join(speeds)} |",
        "| --- " * (2 + len(speeds)) + "|",
    ]
    rows: dict[tuple[str, str], dict[str, Measured]] = {}
    for one in found:
        rows.setdefault((one.shape, one.stage), {})[one.precision] = one
    lines += [
        f"| {shape} | {stage} | {' | '.join(cell(row.get(precision)) for precision in speeds)} |"
        for (shape, stage), row in rows.items()
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, help="by default 160m to 2.8b on a GPU, 70m on a CPU")
    parser.add_argument("--minutes", type=float, default=3.0, help="after which nothing more is begun")
    parser.add_argument("--output", type=Path, help="a folder for device.md and device.json")
    arguments = parser.parse_args()
    shapes = arguments.shapes or (list(SHAPES)[1:] if arguments.device.startswith("cuda") else ["70m"])
    text = ""
    for found, speeds in measure_all(shapes, arguments.device, time.monotonic() + 60 * arguments.minutes):
        text = table(found, speeds, arguments.device)
        if arguments.output:  # After each shape, so that nothing is lost where the time ends.
            arguments.output.mkdir(parents=True, exist_ok=True)
            (arguments.output / "device.md").write_text(text + "\n")
            numbers = {"flop_per_second": speeds, "stages": [asdict(one) for one in found]}
            (arguments.output / "device.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
