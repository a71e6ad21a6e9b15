"""Speed against the published EAP-IG as shipped: edge scores and a curve of 40 sizes, side by side in one run.

    OMP_NUM_THREADS=1 python benchmarks/bench_peer.py CLONE --python VENV/bin/python

CLONE is a clone of the public repository hannamw/EAP-IG, which is no part of this project; without it nothing is
measured. It needs an environment of its own, since transformer_lens 4.x has no `HookedTransformer` any more. Measured
with Python 3.11 and `pip install torch==2.13.0 transformer_lens==2.16.1 transformers==4.57.6 pyarrow==21.0.0`.

The setting is that of `bench_circuits.py`: random weights at pythia-160m's shape, 16 pairs of 15 to 18 tokens that
first differ at position 11, 5 `left` integration steps, float32. Two processes of one thread each work in turn, and
seconds are those of CPU. EAP-IG runs with its defaults: all pairs in one batch, greedy circuits. The scores and the
metric of all 40 circuits must be the same, or the benchmark fails. Its process takes 5 GB, and minutes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_circuits import SIZES, Setting
from random_pythia import SHAPES

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.circuits.search import edge_order
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute

GOALS = {"attribution": 80.0, "curve": 60.0}
PAD = 50303
"""A token of no prompt, for what is behind their ends."""


class Peer:
    """The other process; its work is asked for by name."""

    def __init__(self, python: str, clone: Path, folder: Path) -> None:
        self.folder = folder
        command = [python, str(Path(__file__).with_name("eap_ig_process.py")), str(clone), str(folder)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"EAP-IG's process ended with exit code {self.process.wait()}; its error is above")
        return line

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def __call__(self, name: str) -> tuple[float, torch.Tensor]:
        """Seconds of CPU, and what came out."""
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return float(self._answer()), torch.load(self.folder / f"{name}.pt")


def timed(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds of CPU, and what came out."""
    start = time.process_time()
    result = run()
    return time.process_time() - start, result


def given_to(setting: Setting) -> dict[str, object]:
    """What the other process needs to know."""
    config = setting.model.config
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return {
        "shape": {name: getattr(config, name) for name in (*sizes, "max_position_embeddings")},
        "weights": setting.model.state_dict(),
        "clean": setting.pairs.clean,
        "corrupted": setting.pairs.corrupted,
        "pad": PAD,
        "steps": setting.steps,
        "sizes": SIZES,
    }


def compare(shape: str, python: str, clone: Path, rounds: int) -> None:
    """Print one table."""
    setting = Setting.of(SHAPES[shape], 16, 5, "cpu")
    pairs, metric = setting.pairs, setting.metric
    behind = torch.arange(pairs.clean.shape[1]) >= pairs.lengths[:, None]
    pairs.clean[behind] = pairs.corrupted[behind] = PAD
    weights = read_weights(setting.model)
    graph = Graph.of(weights)

    def attribution() -> torch.Tensor:
        return attribute(weights, pairs, metric, steps=setting.steps).scores

    scores = attribution()

    def curve() -> torch.Tensor:
        order = edge_order(scores, graph, limit=SIZES[-1])
        return CircuitEvaluator(weights, pairs, metric).prefixes_of(order)(SIZES)

    ours = {"attribution": attribution, "curve": curve}
    taken: dict[str, list[float]] = {
        name: [] for name in ("plain", "attribution", "curve", "their attribution", "their curve")
    }
    with tempfile.TemporaryDirectory() as folder:
        torch.save(given_to(setting), Path(folder) / "setting.pt")
        peer = Peer(python, clone, Path(folder))
        for _ in range(rounds):
            for name, run in ours.items():
                for _ in range(3):  # Ours are short, and the first run of anything is not its speed.
                    taken["plain"].append(timed(lambda: setting.plain(False))[0])
                    seconds, result = timed(run)
                    taken[name].append(seconds)
                seconds, theirs = peer(name)
                taken[f"their {name}"].append(seconds)
                apart = float((result - theirs).abs().max() / result.abs().max())
                assert apart < 1e-3, f"{name}: they differ by {apart:.1e} of the largest value"
                print(f"{name}: the same within {apart:.1e} of the largest value", flush=True)
        peer.end()
    least = {name: min(seconds) for name, seconds in taken.items()}
    print(f"\npythia-{shape} shape, one thread, {len(pairs)} pairs: a plain pass takes {least['plain']:.2f} s of CPU")
    print(f"  {'in plain passes':16}{'here':>9}{'EAP-IG':>9}{'ratio':>7}{'goal':>6}")
    for name, goal in GOALS.items():
        here, there = least[name] / least["plain"], least[f"their {name}"] / least["plain"]
        print(f"  {name:16}{here:9.2f}{there:9.1f}{there / here:7.1f}{goal:6}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", nargs="?", type=Path, help="the folder of EAP-IG's clone")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of EAP-IG's environment")
    parser.add_argument("--shape", default="160m", choices=SHAPES)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.clone is None:
        print("Nothing is measured: this benchmark takes the folder of a clone of EAP-IG.")
        return
    if not (arguments.clone / "src/eap/attribute.py").is_file():
        parser.error(f"{arguments.clone} has no src/eap/attribute.py, so it is no clone of EAP-IG")
    torch.set_num_threads(1)
    compare(arguments.shape, arguments.python, arguments.clone, arguments.rounds)


if __name__ == "__main__":
    main()
