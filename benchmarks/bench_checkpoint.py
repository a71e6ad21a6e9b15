"""What a circuit of one checkpoint costs, stage by stage, in plain forward passes of the same run.

    OMP_NUM_THREADS=1 python benchmarks/bench_checkpoint.py
    OMP_NUM_THREADS=1 python benchmarks/bench_checkpoint.py model_cache/smollm2-135m

Of pythia-70m's, 160m's and 410m's shapes with random weights, or of the last checkpoint of a family's folder. The task
is IOI with the defaults of `get_circuits_over_time.py` but 20 steps, and as many prompts to score edges on as to
evaluate circuits on. A plain pass is that of Hugging Face over the former, with logits at the answers alone. Times are
those that this process computes, without what it waits for. A random model has learned nothing, so there circuits are
to keep what follows in the whole model (`kl`), which every model does.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from random_pythia import SHAPES, random_pythia
from transformers import AutoModelForCausalLM

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.tests.support.task_tokenizers import task_texts, word_level
from circuits_over_time.utils.circuits import find, measured
from circuits_over_time.utils.circuits.keys import CircuitsConfig
from circuits_over_time.utils.models.family import Family, resolve_family
from circuits_over_time.utils.tasks import TASKS

GOALS = {"load": 0.5, "whole task": 12.0}


class Clock:
    """Seconds of CPU by stage; what runs inside another stage counts for its own."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._inner = [0.0]

    def __call__(self, stage: str, run: Callable[..., Any], *args: Any, **named: Any) -> Any:
        start = time.process_time()
        self._inner.append(0.0)
        result = run(*args, **named)
        took = time.process_time() - start
        self.spent[stage] = self.spent.get(stage, 0.0) + took - self._inner.pop()
        self._inner[-1] += took
        return result

    @contextmanager
    def watching(self, stages: dict[str, tuple[Any, str]]) -> Iterator[None]:
        """Count calls of some functions as stages."""
        before = {stage: getattr(owner, name) for stage, (owner, name) in stages.items()}
        for stage, (owner, name) in stages.items():
            setattr(owner, name, lambda *args, stage=stage, **named: self(stage, before[stage], *args, **named))
        yield
        for stage, (owner, name) in stages.items():
            setattr(owner, name, before[stage])


def measure(family: Family, step: int, n_prompts: int, *, learned: bool) -> None:
    """Print one table."""
    clock = Clock()
    family.load(step, device="cpu")  # Imports libraries, and hashes the file.
    checkpoint = clock("load", family.load, step, device="cpu")
    search = {} if learned else {"min_gap": 0.0}
    config = CircuitsConfig(model=family.name, task="ioi", n_prompts=n_prompts, search=search, eap={"ig_steps": 20})
    task = TASKS["ioi"] if learned else replace(TASKS["ioi"], primary="kl")
    weights = checkpoint.weights
    prompts = clock("tokenise", find.circuit_prompts, config, task, checkpoint.tokenizer, weights)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.files.folder, dtype=torch.float32, local_files_only=True)
    tokens, last = prompts.scoring.clean, prompts.scoring.lengths - 1

    @torch.inference_mode()
    def plain() -> float:
        start = time.process_time()
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        model.get_output_embeddings()(hidden[torch.arange(len(last)), last])
        return time.process_time() - start

    plain()
    passes = [plain() for _ in range(3)]
    n_circuits = 0
    evaluate = CircuitEvaluator.__call__

    def counted(self: CircuitEvaluator, masks: torch.Tensor) -> torch.Tensor:
        nonlocal n_circuits
        n_circuits += len(masks)
        return evaluate(self, masks)

    CircuitEvaluator.__call__ = counted  # type: ignore[method-assign]
    stages = {
        "order": (find, "edge_order"),
        "search": (measured, "find_circuit"),
        "random circuits": (measured, "compare_with_random"),
        "attribution": (measured, "score_edges"),
    }
    with clock.watching(stages):
        folds = measured.score_edges(weights, prompts, config)
        found = clock("tables", measured.measure_circuit, weights, prompts, config, folds)
    CircuitEvaluator.__call__ = evaluate  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        clock("save", found.save, Path(folder) / "circuit.pt")
    shortest = min(passes)
    print(f"\n{family.name}, {n_prompts} + {n_prompts} prompts: a plain pass takes {shortest:.2f} s")
    print(f"  {found.status}, {found.size} edges, {len(found.curve)} sizes, {n_circuits} circuits in all")
    total = sum(taken for stage, taken in clock.spent.items() if stage != "load")
    for stage, taken in {**clock.spent, "whole task": total}.items():
        goal = f"   goal {GOALS[stage]:g}" if stage in GOALS else ""
        print(f"  {stage:18}{taken / shortest:8.2f}{goal}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", help="the folder of a family, instead of random weights")
    parser.add_argument("--shapes", nargs="+", default=["70m", "160m", "410m"], choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="the smallest shape and 4 + 4 prompts")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    shapes, n_prompts = (["70m"], 4) if arguments.quick else (arguments.shapes, arguments.prompts)
    with tempfile.TemporaryDirectory() as cache:
        if arguments.folder is not None:
            family = resolve_family(arguments.folder, Path(cache))
            measure(family, family.steps[-1], n_prompts, learned=True)
            return
        for shape in shapes:
            step = Path(cache) / f"random-{shape}" / "step0"
            random_pythia(*SHAPES[shape]).save_pretrained(step)
            word_level(task_texts()).save_pretrained(step)
            measure(resolve_family(str(step.parent), Path(cache), tokens_per_step=1), 0, n_prompts, learned=False)


if __name__ == "__main__":
    main()
