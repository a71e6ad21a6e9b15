"""How a sweep scales: processes and Ray on this machine, and a simulated cluster of up to 64 workers.

    python benchmarks/bench_scaling.py [--simulated] [--toy]

The simulated cluster runs the real loop, claims, store and driver; downloads and analyses sleep (0.5 s and 1 s a
checkpoint), so that many workers fit on few cores and only the runner's own cost shows. Every worker has 20
checkpoints, so a run would take as long with any number of workers if the runner cost nothing, and efficiency is what
one worker took over what n took. `processes` are plain processes on one results folder that share by claims, and
download ahead. `driver` is one process that hands checkpoints to a pool, whose workers download and measure by turns,
and that writes what comes back, as with `executor: ray`.

The other part finds circuits of two tasks in the toy family (model_cache/toy) for real: one process, two processes,
and Ray with two workers. It counts whole commands, with the time that libraries take to import.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from tqdm import tqdm

from circuits_over_time.utils.base.progress import configure_logging
from circuits_over_time.utils.config.keys import BaseConfig
from circuits_over_time.utils.models.checkpoint import Description
from circuits_over_time.utils.models.family import Family
from circuits_over_time.utils.results.kinds import ResultSchema
from circuits_over_time.utils.results.record import versions
from circuits_over_time.utils.results.store import Result
from circuits_over_time.utils.sweep.analysis import Analysis
from circuits_over_time.utils.sweep.claims import ClaimedCheckpoint
from circuits_over_time.utils.sweep.loop import SweepLoop, measure
from circuits_over_time.utils.sweep.plan import Job, Measurement, Sweep
from circuits_over_time.utils.sweep.ray_pool import WAIT
from circuits_over_time.utils.sweep.worker import PoolResult

ROOT = Path(__file__).resolve().parents[1]

DOWNLOAD, MEASURE, EACH, MODEL = 0.5, 1.0, 20, 160
WORKERS = (1, 4, 16, 64)
KIND = ResultSchema("sleeping", {"value": "nothing"}, "sleeping.py")


@dataclass(frozen=True)
class SlowHub(Family):
    """Checkpoints whose download takes a while. One is fetched ahead."""

    _fetching: dict[int, threading.Thread] = field(default_factory=dict, kw_only=True, compare=False)

    def describe(self, step: int) -> Description:
        return Description(None, None)  # type: ignore[arg-type]

    def prefetch(self, step: int) -> None:
        if step not in self._fetching:
            self._fetching[step] = threading.Thread(target=time.sleep, args=(DOWNLOAD,), daemon=True)
            self._fetching[step].start()

    def load(self, step: int, dtype: str = "float32", device: str = "auto") -> Any:
        self.prefetch(step)
        self._fetching.pop(step).join()
        origin = {"repository": "hub", "revision": f"step{step}", "commit": None, "sha256": str(step), "parameters": 1}
        return SimpleNamespace(name=self.name, step=step, tokens=step, provenance=origin, device="cpu")


def sleep(*_: Any) -> dict[str, Result]:
    """An analysis that takes a second and no work."""
    time.sleep(MEASURE)
    return {KIND.name: Result(pd.DataFrame({"value": [1.0] * 100}))}


def sweeps_of(folder: Path, workers: int) -> list[Sweep]:
    """Models of up to 160 checkpoints, together as many as so many workers measure in 20 s."""
    total, sweeps = workers * EACH, []
    names = [f"hub{number}" for number in range(-(-total // MODEL))]
    config = BaseConfig(model=names, results_dir=folder)
    job = Job(Analysis("sleeping", BaseConfig, (KIND,), lambda *_: None, sleep), config)
    for number, name in enumerate(names):
        steps = tuple(range(min(MODEL, total - number * MODEL)))
        family = SlowHub(name, name, steps, {step: step for step in steps})
        what = Measurement(job, name, None)
        sweeps.append(Sweep(name, family, {job: list(steps)}, {step: [what] for step in steps}))
    return sweeps


class Threads:
    """A pool like Ray's, whose workers are threads."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._threads = ThreadPoolExecutor(workers)
        self._running: set[Future[PoolResult]] = set()

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: Any) -> None:
        self._threads.shutdown()

    def room(self) -> int:
        return self.workers + max(1, self.workers // 8)

    def submit(self, claimed: ClaimedCheckpoint) -> None:
        self._running.add(self._threads.submit(self._measure, claimed))

    def wait(self) -> list[PoolResult]:
        done, self._running = wait(self._running, WAIT, FIRST_COMPLETED)
        return [future.result() for future in done]

    def _measure(self, claimed: ClaimedCheckpoint) -> PoolResult:
        name = claimed.family.name
        checkpoint = SlowHub(name, name, (), {}).load(claimed.step)
        return PoolResult(claimed, [(what, measure(checkpoint, what, None)) for what in claimed.missing])


def by_processes(folder: Path, workers: int) -> float:
    """Seconds that forked processes on one folder take."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers + 1)

    versions()  # As importing libraries does, looking up their versions takes each process a while before it starts.

    def work() -> None:
        tqdm.set_lock(threading.RLock())
        sweeps = sweeps_of(folder, workers)
        start.wait()
        os._exit(SweepLoop("sleeping", sweeps).run())

    processes = [context.Process(target=work) for _ in range(workers)]
    for process in processes:
        process.start()
    start.wait()
    begun = time.perf_counter()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return time.perf_counter() - begun


def by_driver(folder: Path, workers: int) -> float:
    """Seconds that a driver with a pool takes."""
    sweeps = sweeps_of(folder, workers)
    begun = time.perf_counter()
    SweepLoop("sleeping", sweeps, Threads(workers)).run()
    return time.perf_counter() - begun


def simulate() -> None:
    """Print the table of the simulated cluster."""
    logging.disable()
    print("| workers | processes: seconds | efficiency | driver: seconds | efficiency |")
    print("| --- | --- | --- | --- | --- |")
    first: dict[str, float] = {}
    for workers in WORKERS:
        row = []
        for name, take in (("processes", by_processes), ("driver", by_driver)):
            with tempfile.TemporaryDirectory() as folder:
                seconds = take(Path(folder), workers)
            assert workers == 1 or name in first
            row.append(f"{seconds:.1f} | {first.setdefault(name, seconds) / seconds:.0%}")
        print(f"| {workers} | {' | '.join(row)} |", flush=True)
    logging.disable(logging.NOTSET)


def on_toy(model: str) -> None:
    """Print the table of this machine."""
    print("| | seconds | against one process |")
    print("| --- | --- | --- |")
    once = 0.0
    for name, count, overrides in (
        ("one process", 1, []),
        ("two processes", 2, []),
        ("Ray, two workers", 1, ["executor=ray"]),
    ):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "get_circuits_over_time.py"), f"model={model}", "n_prompts=50"]
            command += ["task=[ioi, sva]", f"results_dir={folder}", *overrides]
            begun = time.perf_counter()
            running = [subprocess.Popen([*command, "cpus_per_checkpoint=1"], stderr=subprocess.DEVNULL)]
            running += [
                subprocess.Popen([*command, "cpus_per_checkpoint=1"], stderr=subprocess.DEVNULL)
                for _ in range(count - 1)
            ]
            assert [process.wait() for process in running] == [0] * count
            seconds = time.perf_counter() - begun
        once = once or seconds
        print(f"| {name} | {seconds:.0f} | {once / seconds:.2f} |", flush=True)


def main() -> None:
    """Print both tables, or the one asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulated", action="store_true", help="only the simulated cluster")
    parser.add_argument("--toy", action="store_true", help="only this machine")
    parser.add_argument("--model", default="model_cache/toy", help="the family to measure for real")
    arguments = parser.parse_args()
    configure_logging()
    if not arguments.toy:
        simulate()
    if not arguments.simulated:
        on_toy(arguments.model)


if __name__ == "__main__":
    main()
