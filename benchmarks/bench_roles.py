"""How often heads of untrained models are given a role in the IOI algorithm, by the default rule and by the study's.

    OMP_NUM_THREADS=1 python benchmarks/bench_roles.py

Draws models of 16 heads as they are before their first step, with the toy family's tokenizer and all heads in the
circuit (`tests/support/untrained.py`), and prints a row a kind:

    any role     models with any role at all
    noise        models with a name mover where every head copies names, but the right answer is drawn at random
    heads        the same two, by heads
    scores       heads with the score of an induction or duplicate-token head
    highest      the highest such score of any head, as a multiple of what attention to all tokens alike gives

Bound: of models, at most 5% have any role, and at most 5% one from noise. Takes two seconds a model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.untrained import KINDS, simulate

BOUND = 0.05


def row(name: str, found: pd.DataFrame) -> str:
    heads, cells = found["n_heads"].sum(), []
    for rule in ("standard", "study"):
        roles, noise = found[rule], found[f"{rule}_of_noise"]
        cells += [f"{(roles > 0).mean():.1%}", f"{(noise > 0).mean():.1%}", f"{roles.sum() / heads:.1%}"]
        cells += [f"{noise.sum() / heads:.1%}", f"{found[f'{rule}_scores'].sum() / heads:.1%}"]
    return f"| {name} | {len(found)} | {' | '.join(cells)} | {found['highest_over_chance'].max():.2f} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=40, help="of each kind")
    arguments = parser.parse_args()
    of_rule = "any role | noise | any role, heads | noise, heads | scores, heads"
    print(f"| kind | models | default: {of_rule} | study: {of_rule} | highest |")
    every = []
    for kind in KINDS:
        every.append(simulate(kind, range(arguments.models)))
        print(row(kind, every[-1]), flush=True)
    found = pd.concat(every)
    print(row("all", found))
    rates = {name: float((found[name] > 0).mean()) for name in ("standard", "standard_of_noise")}
    return int(max(rates.values()) > BOUND)


if __name__ == "__main__":
    sys.exit(main())
