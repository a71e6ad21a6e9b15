"""Sweeps that are killed, share their work or run out of space: nothing is lost, mixed or left half done."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from circuits_over_time.utils.results.store import Store
from tests.support.endurance import files, finished, kill, slow, start
from tests.support.paths import ROOT
from tests.support.tiny_models import save_family


@pytest.fixture(scope="module")
def undisturbed(tiny_family: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert finished(start(folder, tiny_family)) == 0
    return files(folder)


@pytest.mark.slow
@pytest.mark.endurance
def test_a_sweep_killed_at_thirty_random_instants_ends_in_the_same_bytes(
    undisturbed: dict[str, bytes], tiny_family: Path, tmp_path: Path
) -> None:
    begun = time.monotonic()
    assert finished(start(tmp_path / "timed", tiny_family)) == 0
    seconds = time.monotonic() - begun
    draw = random.Random(0)
    killed = partial = 0
    for number in range(30):
        folder = tmp_path / str(number)
        process = start(folder, tiny_family)
        time.sleep(draw.uniform(0, seconds))
        killed += process.is_alive()
        kill(process)
        partial += 0 < len(list(folder.rglob("step*.csv"))) < 16
        assert finished(start(folder, tiny_family)) == 0
        assert files(folder) == undisturbed, number
    # The instants were not all before the first measurement or after the last.
    assert killed >= 15
    assert partial >= 3


@pytest.mark.slow
def test_one_sweep_killed_again_and_again_ends_in_the_same_bytes(
    undisturbed: dict[str, bytes], tiny_family: Path, tmp_path: Path
) -> None:
    draw = random.Random(1)
    for _ in range(30):
        process = start(tmp_path, tiny_family, slow(0.02))
        time.sleep(draw.uniform(0, 0.4))
        kill(process)
    assert finished(start(tmp_path, tiny_family)) == 0
    assert files(tmp_path) == undisturbed


@pytest.mark.slow
def test_four_processes_share_the_work_and_each_measurement_is_made_once(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    family = save_family(tmp_path_factory.mktemp("family") / "tiny", {step: step for step in range(12)})
    diary = tmp_path / "diary"
    processes = [start(tmp_path / "shared", family, slow(0.05, diary)) for _ in range(4)]
    assert [finished(process) for process in processes] == [0] * 4
    assert sorted(diary.read_text().splitlines()) == sorted(f"{step} {task}" for step in range(12) for task in "xy")
    assert finished(start(tmp_path / "alone", family)) == 0
    assert files(tmp_path / "shared") == files(tmp_path / "alone")
    assert not (tmp_path / "shared" / "results" / ".claims").exists()


@pytest.mark.slow
def test_when_one_of_four_processes_is_killed_the_others_take_over(tmp_path: Path) -> None:
    family = save_family(tmp_path / "family" / "tiny", {step: step for step in range(12)})
    processes = [start(tmp_path / "shared", family, slow(0.1)) for _ in range(4)]
    claims = tmp_path / "shared" / "results" / ".claims"
    victim = processes[1]
    held = []
    while not held:
        assert victim.is_alive()
        held = [path for path in claims.rglob("step*") if f'"pid": {victim.pid},' in path.read_text()]
    kill(victim)
    assert [finished(process) for process in processes if process is not victim] == [0] * 3
    assert finished(start(tmp_path / "alone", family)) == 0
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a tmpfs needs root")
@pytest.mark.slow
@pytest.mark.endurance
def test_a_results_folder_that_fills_up_ends_in_one_line_without_a_half_file(tiny_family: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        filler = folder / "filler"
        filler.write_bytes(bytes(980 * 1024))
        command = [sys.executable, "-m", "tests.support.demo_analysis", f"model={tiny_family}", "task=[x, y]"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        full = subprocess.run([*command, "device=cpu"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert full.returncode == 2, full.stderr
        assert "No space left on device" in full.stderr.splitlines()[-1]
        assert "Traceback" not in full.stderr
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp") or path.name == ".claims"]
        held = [path for path in folder.rglob("step*") if path.suffix in (".csv", ".pt")]
        filler.unlink()
        rest = subprocess.run([*command, "device=cpu"], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert rest.returncode == 0, rest.stderr
        assert len(held) < len(list(folder.rglob("step*")))
        assert Store(folder).tasks("graphs", "tiny") == []
        for name in ("x", "y"):
            assert len(list((folder / "second" / "tiny" / name).glob("step*.csv"))) == 4
    finally:
        subprocess.run(["umount", folder], check=True)
