"""Ctrl-C at awkward instants, in processes of their own: one line, exit code 130, and the next run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.support.endurance import files, without_config
from tests.support.hub_server import HubServer, read_folder
from tests.support.paths import ROOT
from tests.support.tiny_models import save_checkpoint, save_family

pytestmark = pytest.mark.slow
SLOW_RAY = """
import dataclasses, sys, time
from tests.support import demo_analysis
from circuits_over_time.utils.sweep.runner import main

def measure(checkpoint, config, inputs, task):
    time.sleep(0.4)
    return demo_analysis.measure(checkpoint, config, inputs, task)

if __name__ == "__main__":
    sys.exit(main(dataclasses.replace(demo_analysis.ANALYSIS, measure=measure)))
"""


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("branches")
    for number in range(3):
        save_checkpoint(folder / f"step{number}", number)
    with HubServer({"lab/run": {f"step{number}": read_folder(folder / f"step{number}") for number in range(3)}}) as hub:
        yield hub


def interrupted(command: list[str], folder: Path, when: Callable[[], object], **more: str) -> tuple[int, str]:
    """Start a command, send SIGINT as soon as something is so, and return its exit code and what it said on stderr."""
    folder.mkdir(exist_ok=True)
    process = started(command, folder, **more)
    try:
        for _ in range(1200):
            if when() or process.poll() is not None:
                break
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)  # It counts what it has just saved.
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, said


def started(command: list[str], folder: Path, **more: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1", **more}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(*overrides: str) -> list[str]:
    return ["-m", "tests.support.demo_analysis", "task=[x, y]", "device=cpu", *overrides]


@pytest.mark.endurance
def test_ctrl_c_while_the_hub_lists_branches_or_checkpoints(served: HubServer, tmp_path: Path) -> None:
    command = demo("model=lab/run", "tokens_per_step=64")
    for part in ("/refs", "/revision/"):
        served.requests.clear()
        served.holds = part
        code, said = interrupted(
            command,
            tmp_path,
            lambda part=part: any(part in path for _, path in served.requests),
            HF_ENDPOINT=served.endpoint,
        )
        assert (code, said.splitlines()) == (130, ["interrupted: to go on, run the same command again"])
    served.holds = None
    again = started(command, tmp_path, HF_ENDPOINT=served.endpoint)
    assert (again.wait(60), len(list(tmp_path.rglob("step*.csv")))) == (0, 12)


@pytest.mark.endurance
def test_ctrl_c_during_a_download_and_the_next_run_goes_on_within_the_file(served: HubServer, tmp_path: Path) -> None:
    # The hub's client writes 10 MB at a time, so a file needs more to be half there.
    branches = served.repositories["lab/run"]
    padded = tmp_path / "model.safetensors"
    for step, prefetch in (("step0", "false"), ("step1", "true")):
        padded.write_bytes(branches[step]["model.safetensors"])
        save_file(load_file(padded), padded, {"format": "pt", "padding": "x" * 11_000_000})
        branches[step] = branches[step] | {"model.safetensors": padded.read_bytes()}
        folder = tmp_path / prefetch
        command = demo("model=lab/run", "tokens_per_step=64", f"prefetch={prefetch}")
        served.holds_after["model.safetensors"] = 10_600_000
        if step == "step1":
            branches["step0"] = branches.pop("step2")
        done, total = (0, 6) if step == "step0" else (2, 4)

        def half_there(folder: Path = folder, done: int = done) -> bool:
            parts = [path.stat().st_size for path in folder.rglob(".model.safetensors.*.part")]
            return any(parts) and len(list(folder.rglob("step*.csv"))) == 2 * done

        code, said = interrupted(command, folder, half_there, HF_ENDPOINT=served.endpoint)
        assert code == 130
        assert "Traceback" not in said
        end = f"interrupted: {done} of {total} measured and saved; to go on, run the same command again"
        assert said.splitlines()[-1] == end
        assert not [path for path in folder.rglob("*") if path.name == ".claims" or path.name.endswith(".tmp")]
        served.holds_after.clear()
        served.resumed_at.clear()
        again = started(command, folder, HF_ENDPOINT=served.endpoint)
        assert (again.wait(60), served.resumed_at) == (0, [10 * 2**20])
        assert len(list(folder.rglob("step*.csv"))) == 2 * total


@pytest.mark.endurance
def test_ctrl_c_of_a_ray_driver_leaves_finished_results_and_no_worker(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs requirements-cluster.txt")
    family = save_family(tmp_path / "family" / "tiny", {step: step for step in range(8)})
    script = tmp_path / "slow_demo.py"
    script.write_text(SLOW_RAY)
    command = [str(script), f"model={family}", "task=[x, y]", "device=cpu", "cpus_per_checkpoint=1"]
    folder, alone = tmp_path / "ray", tmp_path / "alone"
    tables = folder / "results/second/tiny/y"
    mark = f"CIRCUITS_TEST_{os.getpid()}"
    code, said = interrupted(
        [*command, "executor=ray"], folder, lambda: len(list(tables.glob("*.csv"))) >= 2, **{mark: "1"}
    )
    done = len(list(tables.glob("*.csv")))
    assert code == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("of 16 measured and saved; to go on, run the same command again")
    assert 2 <= done < 8
    assert not (folder / "results/.claims").exists()
    assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
    for _ in range(100):
        if not (left := processes_with(mark)):
            break
        time.sleep(0.1)
    assert left == []
    assert started([*command, "executor=ray"], folder).wait(120) == 0
    alone.mkdir()
    assert started(command, alone).wait(60) == 0
    assert without_config(files(folder)) == without_config(files(alone))


def processes_with(mark: str) -> list[str]:
    """Command lines of processes that were started with an environment variable, by themselves or by their parents."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{mark}=".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return [line for line in found if line]
