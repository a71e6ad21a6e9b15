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

from circuits_over_time.edge_attribution_patching.model import pairs
from circuits_over_time.utils.heads import streamed_kl
from circuits_over_time.utils.models import family
from tests.support import devices
from tests.support.pretend_device import Counts, device, pretended_device
from tests.support.random_models import ARCHITECTURES


@contextmanager
def scripts_on_the_device() -> Iterator[Callable[[], Counts]]:
    """Scripts take the pretended device for this machine's own."""
    with (
        mock.patch.object(family, "resolve_device", return_value=device()),
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
        with mock.patch.object(pairs, "COUNTED", ()):  # Batches of other sizes round otherwise.
            on_cpu = files_of(script, overrides)
            with scripts_on_the_device() as counts:
                there = files_of(script, overrides)
        made = counts()
        found[name] = {
            "differs": sorted(file for file in on_cpu | there if on_cpu.get(file) != there.get(file)),
            "files": len(on_cpu),
            "counts": [made.kernels, made.waits, made.transfers],
            "most": made.by_name.most_common(20),
        }
    for architecture in ARCHITECTURES:
        on_cpu_tensors, _ = devices.run_engine(architecture, torch.device("cpu"))
        counted = mock.patch.object(pairs, "COUNTED", ("cpu", device().type))
        with counted, pretended_device(float64=False):
            there_tensors = devices.run_engine(architecture, device())[0]
        same = [bool(here.equal(one)) for here, one in zip(on_cpu_tensors, there_tensors, strict=True)]
        found[architecture] = {"differs": [number for number, good in enumerate(same) if not good]}
    return found


if __name__ == "__main__":
    device()
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps(compared()))
