"""Every script, and every architecture's engine, on the CPU and on the pretended device, compared.

    python -m tests.support.pretended_runs OUTPUT.json

The device has no float64, as Apple's GPUs: what runs there runs on one that has. A process of its own: PyTorch's
autograd knows only the devices that were registered before its first backward pass.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from circuits_over_time.edge_attribution_patching.circuits.faithfulness import CircuitEvaluator
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model import pairs as batches
from circuits_over_time.edge_attribution_patching.model.norms import Norm
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.reference import Reference
from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.exact import exact_scores
from circuits_over_time.edge_attribution_patching.scores.information_flow import information_flow
from circuits_over_time.edge_attribution_patching.units import graph_of
from circuits_over_time.utils.heads import streamed_kl
from circuits_over_time.utils.models import family
from circuits_over_time.utils.models.checkpoint import placement

from . import devices
from .pretend_device import Counts, device, pretended_device
from .random_models import ARCHITECTURES, random_model, random_pairs


@contextmanager
def scripts_on_the_device(n_devices: int = 1) -> Iterator[Callable[[], Counts]]:
    """Scripts take the pretended device, or both, for this machine's own."""
    with (
        mock.patch.object(family, "resolve_devices", return_value=[device(index) for index in range(n_devices)]),
        pretended_device(float64=False) as counting,
    ):
        yield counting.restart


def files_of(script: str, overrides: list[str]) -> dict[str, bytes]:
    """The files that it writes for one checkpoint; run.json aside, which names the device."""
    # CPUs sum over the vocabulary in blocks of another size, in float64, and some with other exponentials: not here.
    as_gpu: dict[str, Any] = {"CPU_BLOCK": streamed_kl.GPU_BLOCK, "WITHOUT_FLOAT64": ("cpu", device().type)}
    as_gpu["_in_bits"] = lambda _, heads: [False] * len(heads)
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(streamed_kl, **as_gpu):
        devices.run_script(script, devices.checkpoint_of(script)[0], Path(folder), *overrides)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file() and path.name != "run.json")
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def compared() -> dict[str, dict[str, Any]]:
    """What differs between the two, by script and architecture, and the scripts' counts."""
    found: dict[str, dict[str, Any]] = {}
    for name, (script, overrides) in devices.SCRIPTS.items():
        with mock.patch.object(batches, "COUNTED", ()):  # Batches of other sizes round otherwise.
            on_cpu = files_of(script, overrides)
            with scripts_on_the_device() as counts:
                there = files_of(script, overrides)
        made = counts()
        found[name] = {
            "differs_on_two": [],
            "differs": sorted(file for file in on_cpu | there if on_cpu.get(file) != there.get(file)),
            "files": len(on_cpu),
            "counts": [made.kernels, made.waits, made.transfers],
            "most": made.by_name.most_common(20),
        }
        if name in ON_TWO:
            with scripts_on_the_device(2) as counts:
                there = files_of(script, overrides)
            found[name]["differs_on_two"] = sorted(file for file in on_cpu if on_cpu[file] != there.get(file))
            found[name]["moved"] = counts().moved
    for architecture in ARCHITECTURES:
        on_cpu_tensors, _ = devices.run_engine(architecture, torch.device("cpu"))
        counted = mock.patch.object(batches, "COUNTED", ("cpu", device().type))
        with counted, pretended_device(float64=False):
            there_tensors = devices.run_engine(architecture, device())[0]
        same = [bool(here.equal(one)) for here, one in zip(on_cpu_tensors, there_tensors, strict=True)]
        found[architecture] = {"differs": [number for number, good in enumerate(same) if not good]}
    return found


ON_TWO = ("ablated", "greater_than", "components", "cspa", "successor", "signatures", "swaps")
"""Scripts that run with `device_map`, too; `on_two` has what the others do, smaller."""


def on_two() -> dict[str, Any]:
    """What differs between a model on one of the devices and its layers on both, and the most bytes on each."""
    found: dict[str, Any] = {}
    for architecture, n_layers in (("neox-parallel", 4), ("gpt2", 2), ("llama-grouped", 2), ("olmo", 2), ("gemma2", 2)):
        model, runs, peaks = random_model(architecture, n_layers=n_layers), [], []
        for n_devices in (1, 2):
            with pretended_device(float64=False) as counting:
                devices_ = [device(index) for index in range(n_devices)]
                weights = read_weights(model, placement(model.config, torch.float32, devices_))
                runs.append([one.cpu() for one in methods_of(weights)])
                peaks.append([live.peak for live in counting.live[:n_devices]])
        same = [bool(here.equal(one)) for here, one in zip(*runs, strict=True)]
        found[architecture] = {"differs": [number for number, good in enumerate(same) if not good], "peaks": peaks}
        places = [sorted({str(one.device) for one in tensors_of(layer)}) for layer in weights.layers]
        found[architecture]["layers"] = places
    script, overrides = "get_ioi_consistency", ["n_prompts=6", "cspa.corpus=toy", "cspa.n_sequences=2"]
    with scripts_on_the_device(1):
        here = files_of(script, overrides)
    with scripts_on_the_device(2):
        there = files_of(script, overrides)
    found["consistency"] = {"differs": sorted(file for file in here if here[file] != there.get(file))}
    return found


def tensors_of(record: Any) -> Iterator[torch.Tensor]:
    """The tensors of a layer and of its norms."""
    for value in vars(record).values():
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, Norm):
            yield from (value.gain, value.bias)


def methods_of(weights: ModelWeights) -> Iterator[torch.Tensor]:
    """Scores of every method and level, and circuits under them, of a few prompts."""
    pairs = TokenPairs(*random_pairs(3))

    def metric(logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return logits[:, 5] - logits[:, 7] + 0 * index

    means = Reference.of(weights, "mean", pairs.clean, pairs.lengths, neurons=True)
    for method in ("eap_ig", "relp", "ceap", "eap_ig_activations"):
        yield attribute(weights, pairs, metric, method=method, steps=2).sums
    yield attribute(weights, pairs, metric, steps=2, reference=means).sums
    for reference in (None, means):
        yield attribute(weights, pairs, metric, steps=2, level="neuron", reference=reference).sums
    yield information_flow(weights, pairs).sums
    graph = Graph.of(weights)
    yield exact_scores(weights, pairs, metric, edges=graph.flat_edges[::200]).sums
    order = graph.edge_mask.nonzero()[torch.randperm(int(graph.edge_mask.sum()), generator=torch.manual_seed(0))]
    for how in ({}, {"reference": means}, {"accumulate": "model"}):
        evaluator = CircuitEvaluator(weights, pairs, metric, **how)
        yield evaluator.prefixes_of(order)([0, 60, len(order)])
    neurons = graph_of(weights, "neuron")
    units = torch.rand(2, neurons.n_forward, 1, generator=torch.manual_seed(0)) < 0.5
    for reference in (None, means):
        yield CircuitEvaluator(weights, pairs, metric, graph=neurons, reference=reference)(units)


if __name__ == "__main__":
    device()
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps({"one": compared(), "two": on_two()}))
