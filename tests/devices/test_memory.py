"""How much memory a run may take: what a device has free, less a margin."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
import torch

from circuits_over_time.utils.base import memory
from circuits_over_time.utils.base.memory import GB, MARGIN, auto_budget_gb, free_bytes
from circuits_over_time.utils.config.keys import MemoryKeys
from circuits_over_time.utils.sweep import loop
from tests.support.devices import DEVICES, SCRIPTS, run_script, table_differences
from tests.support.paths import TOY

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def test_what_the_cpu_has_free_is_within_the_machine_and_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path / "none")
    of_machine = free_bytes(CPU)
    assert 0 < of_machine <= 1024 * int(Path("/proc/meminfo").read_text().split()[1])  # Of all of it.
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")
    for most, free in (("max", None), ("5000000\n", 4_000_000), ("500000\n", 0)):
        (tmp_path / "memory.max").write_text(most)
        assert free_bytes(CPU) == free or (free is None and free_bytes(CPU) > 1e8)


def test_a_job_is_a_group_within_others_and_files_that_were_read_make_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / "system.slice" / "job_7"
    job.mkdir(parents=True)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "process")
    (tmp_path / "process").write_text("4:memory:/old\n0::/system.slice/job_7\n")
    for group, most, used in ((job, "9000000", "8000000"), (job.parent, "max", "8000000")):
        (group / "memory.max").write_text(f"{most}\n")
        (group / "memory.current").write_text(f"{used}\n")
    assert free_bytes(CPU) == 1_000_000
    (job / "memory.stat").write_text("anon 1000000\ninactive_file 4000000\nactive_file 2000000\n")
    assert free_bytes(CPU) == 7_000_000
    (job.parent / "memory.max").write_text("8500000\n")
    assert free_bytes(CPU) == 500_000


@pytest.mark.parametrize(
    ("free", "on_cpu", "on_gpu"),
    [(80 * GB, 0.5, 32.0), (24 * GB, 0.5, 8.0), (2 * GB, 0.5, 0.5), (0.1 * GB, 0.03125, 0.03125), (0, 2**-10, 2**-10)],
)
def test_auto_leaves_a_margin_and_room_for_what_is_kept(
    free: float, on_cpu: float, on_gpu: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(free))
    assert (auto_budget_gb(CPU), auto_budget_gb(CUDA)) == (on_cpu, on_gpu)
    assert free == 0 or 2 * on_gpu <= (1 - MARGIN) * free / GB


def test_a_number_is_taken_as_it_is() -> None:
    assert MemoryKeys(memory_budget_gb=3.5).budget_gb(CPU) == 3.5
    assert MemoryKeys().memory_budget_gb == "auto"
    assert MemoryKeys().budget_gb(CPU) <= 1.0


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs the C library of Linux")
def test_what_was_freed_goes_back_to_the_system() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    memory.trim_heap()
    blocks = [b"x" * (100_000 + n) for n in range(600)]
    kept = blocks[::100]  # Between those that are freed: by itself the library gives back only what is behind all.
    during = resident()
    del blocks
    memory.release_memory()
    assert len(kept) == 6
    assert during - resident() > 4e7


@pytest.mark.parametrize("device", DEVICES[1:])
def test_what_a_gpu_has_free_counts_what_torch_keeps(device: str) -> None:
    before = free_bytes(CUDA)
    taken = torch.empty(2**28, dtype=torch.uint8, device=CUDA)
    during = free_bytes(CUDA)
    del taken  # PyTorch keeps it, and gives it to whoever asks next.
    assert before - during == pytest.approx(2**28, rel=0.2)
    assert free_bytes(CUDA) == pytest.approx(before, rel=0.01)


@pytest.mark.parametrize("device", DEVICES[1:])
def test_a_gpu_that_is_full_makes_batches_smaller(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "_fitting", {})
    keys = (f"device={device}", "task=ioi", "n_prompts=200", "batch_size=200", "memory_budget_gb=1")
    script, overrides = SCRIPTS["circuits"]
    memory.release_memory()  # Of other tests.
    torch.cuda.reset_peak_memory_stats()
    run_script(script, TOY, tmp_path / "free", *overrides, *keys)
    assert "does not fit" not in capsys.readouterr().err
    most = torch.cuda.max_memory_allocated()
    memory.release_memory()
    torch.cuda.set_per_process_memory_fraction(0.6 * most / torch.cuda.get_device_properties(0).total_memory)
    try:
        run_script(script, TOY, tmp_path / "full", *overrides, *keys)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "did not fit on cuda" in capsys.readouterr().err
    assert table_differences(tmp_path / "free", tmp_path / "full") == []
