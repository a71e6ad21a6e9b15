"""On an accelerator: the CPU's numbers to the last bit, and no more kernels, waits and transfers than written here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from circuits_over_time.edge_attribution_patching.model import transfer
from circuits_over_time.edge_attribution_patching.model.transfer import (
    checked_at_the_end,
    largest_of,
    require_finite,
    sent_ahead,
    to_cpu,
)
from tests.support.paths import ROOT
from tests.support.pretend_device import device, pretended_device
from tests.support.random_models import ARCHITECTURES

# Kernels, waits and transfers of one checkpoint of the toy families. A change that needs more must say why.
MOST = {
    # Of two tasks, each with the attention of heads on a prompt (114, 4 and 5) and `ig_steps: auto`, in rounds.
    "circuits": (16_222, 67, 127),
    "ablated": (4_421, 21, 50),  # by means at each position
    "tested": (6_813, 23, 45),  # with statistical tests
    "consistency": (12_123, 26, 55),  # 404 for a second stack of steps, since memory is budgeted as on a CPU
    "greater_than": (2_596, 11, 20),
    "components": (754, 4, 7),
    "cspa": (1_702, 4, 7),
    "successor": (707, 3, 5),
    "signatures": (633, 3, 6),  # 12 to copy the patterns of the first prompts, so that the others are freed
    "performance": (5_865, 5, 74),
    "swaps": (2_088, 28, 69),
}


@pytest.mark.endurance
def test_scripts_and_architectures_give_the_cpus_bits_on_a_device(tmp_path: Path) -> None:
    output = tmp_path / "found.json"
    command = [sys.executable, "-m", "tests.support.pretended_runs", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    both = json.loads(output.read_text())
    found, of_two = both["one"], both["two"]
    assert set(found) == {*MOST, *ARCHITECTURES}
    # Of a model whose layers are on two devices.
    assert {name: one["differs_on_two"] for name, one in found.items() if one.get("differs_on_two")} == {}
    assert {name: one["differs"] for name, one in of_two.items() if one["differs"]} == {}
    assert of_two.pop("consistency")
    for one in of_two.values():
        half = len(one["layers"]) // 2
        assert one["layers"] == [["pretend:0"]] * half + [["pretend:1"]] * half
    (alone,), parts = of_two["neox-parallel"]["peaks"]
    assert max(parts) < 0.65 * alone
    assert {name: one["differs"] for name, one in found.items() if one["differs"]} == {}
    assert all(found[name]["files"] > 1 for name in MOST)
    counts = {name: found[name]["counts"] for name in MOST}
    beyond = {
        name: [counts[name], found[name]["most"]]
        for name, most in MOST.items()
        if any(made > limit for made, limit in zip(counts[name], most, strict=True))
    }
    assert beyond == {}


# Of each stage at pythia-160m's shape, 5 steps, with 16 and with 100 prompt pairs.
MOST_OF_STAGES = {
    "attribution": (1_541, 1, 2),
    "prepare the evaluation": (619, 1, 2),
    "one circuit of 1,000 edges": (706, 1, 2),  # 19 for the sum of all nodes, which the logits read
    "many sizes": (1_213, 1, 2),
}


@pytest.mark.endurance
def test_kernels_stay_below_a_limit_and_waits_do_not_grow_with_prompts_sizes_or_layers(tmp_path: Path) -> None:
    def counts(*options: str) -> dict[str, dict[str, list[int]]]:
        output = tmp_path / "counts.json"
        command = [sys.executable, "benchmarks/bench_launches.py", "--output", str(output), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, dict[str, list[int]]] = json.loads(output.read_text())
        return found

    deep = counts("--shape", "narrow", "--prompts", "16", "100")
    assert set(deep) == {"16", "100"}
    for stages in deep.values():
        assert set(stages) == set(MOST_OF_STAGES)
        for stage, most in MOST_OF_STAGES.items():
            assert all(made <= limit for made, limit in zip(stages[stage], most, strict=True)), (stage, stages[stage])
    shallow = counts("--shape", "shallow", "--prompts", "5", "--sizes", "4")["5"]
    for stage, (kernels, *waits) in deep["100"].items():
        assert shallow[stage][1:] == waits, stage
        assert shallow[stage][0] < kernels


def test_the_device_counts_and_refuses_as_a_real_one() -> None:
    here = torch.arange(6.0).view(2, 3)
    with pretended_device(float64=False) as counting:
        there = here.to(device())
        counting.restart()
        total = (there @ there.T).sum()
        made = counting.restart()
        assert (made.kernels, made.waits, made.transfers) == (2, 0, 0), made  # The transpose is a view.
        assert total.item() == float((here @ here.T).sum())
        positive = there[there > 1].cpu()
        made = counting.restart()
        assert positive.equal(here[here > 1])
        assert (made.kernels, made.waits, made.transfers) == (2, 3, 1), made  # An item, a mask, and a copy.
        with pytest.raises(RuntimeError, match="of pretend and of the CPU"):
            there + here
        with pytest.raises(TypeError, match="no float64"):
            there.double()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


def test_the_second_device_takes_nothing_of_the_first_but_copies() -> None:
    here = torch.arange(3.0)
    with pretended_device() as counting:
        first, second = device(), device(1)
        x = here.to(first)
        there = x.exp().to(second)
        assert there.to(torch.float64).device == second
        assert there.to(first).to(x).device == first
        assert counting.restart().moved == 4 * 3 * 2
        given = torch.zeros(2, 3, device=second)
        given[1] = x
        assert given.cpu().equal(torch.stack((torch.zeros(3), here)))
        for mixed in (lambda: there + x, lambda: torch.cat((there, x)), lambda: there[torch.tensor([0]).to(first)]):
            with pytest.raises(RuntimeError, match="of pretend:0 and of pretend:1"):
                mixed()


def test_a_process_with_the_device_still_forks_its_random_numbers() -> None:
    device()
    with torch.random.fork_rng():
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), first)


def test_numbers_come_with_what_is_still_to_be_checked_in_one_copy() -> None:
    with pretended_device() as counting:
        there = torch.arange(3.0).to(device())
        with checked_at_the_end():
            require_finite({"here": largest_of(there)}, torch.float32)
            counting.restart()
            assert to_cpu(there).tolist() == [0, 1, 2]
        made = counting.restart()
        assert (made.waits, made.transfers) == (1, 1)
        with checked_at_the_end():
            require_finite({"here": largest_of(there / 0)}, torch.float32)
            with pytest.raises(FloatingPointError, match="here gives NaN or infinity"):
                to_cpu(there)


def test_what_comes_later_goes_along_in_one_copy_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "AHEAD", 2 * 3 * 8)
    items = [[torch.arange(3) + n] for n in range(5)]
    with pretended_device() as counting:
        there = list(sent_ahead(iter(items), device()))
        assert counting.restart().transfers == 3  # Two items each, and the last one.
        assert [[one.cpu().tolist() for one in item] for item in there] == [[[n, n + 1, n + 2]] for n in range(5)]
