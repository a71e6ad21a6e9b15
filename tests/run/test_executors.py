"""Ray and Slurm for real: a cluster of two nodes on this machine, and submitit's local tasks.

Results equal those of a single process, also if a worker or a node is killed.
"""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuits_over_time.utils.models.checkpoint import LoadedCheckpoint
from circuits_over_time.utils.results.store import Result
from circuits_over_time.utils.sweep.runner import Analysis, main
from circuits_over_time.utils.tasks import greater_than
from tests.support import demo_analysis
from tests.support.demo_analysis import ANALYSIS
from tests.support.endurance import files, without_config
from tests.support.paths import TOY
from tests.support.task_tokenizers import task_texts, word_level
from tests.support.tiny_models import save_family
from tests.support.word_family import word_model

STEPS = range(6)
pytestmark = [pytest.mark.slow, pytest.mark.endurance]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("family") / "tiny", {step: step for step in STEPS})


def sweep(folder: Path, family: Path, *overrides: str, analysis: Analysis = ANALYSIS) -> int:
    """Run the demo in `folder`."""
    folder.mkdir(exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        given = [f"model={family}", "task=[x, y]", "device=cpu", "cpus_per_checkpoint=1"]
        return main(analysis, [*given, *overrides])
    finally:
        os.chdir(before)


@pytest.fixture(scope="module")
def alone(family: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    assert sweep(folder, family) == 0
    return without_config(files(folder))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and a node with one; tests add a second."""
    ray = pytest.importorskip("ray", reason="needs requirements-cluster.txt")
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found.add_node(num_cpus=1)
    ray.init(address=found.address, log_to_driver=False, logging_level="ERROR")
    yield found
    ray.shutdown()
    found.shutdown()


def dies_once(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Any) -> dict[str, Result]:
    """The demo; the first worker to measure step 3 is killed as by kill -9."""
    met = Path(config.cache_dir) / "met"
    if checkpoint.step == 3 and not met.exists():
        met.parent.mkdir(parents=True, exist_ok=True)
        met.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return demo_analysis.measure(checkpoint, config, inputs, task)


def dies_always(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Any) -> dict[str, Result]:
    """The demo; whoever measures step 3 is killed."""
    if checkpoint.step == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return demo_analysis.measure(checkpoint, config, inputs, task)


def takes_time(checkpoint: LoadedCheckpoint, config: Any, inputs: Any, task: Any) -> dict[str, Result]:
    """The demo, slowed down; it says on which node it runs."""
    import ray

    folder = Path(config.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "nodes").open("a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")
    time.sleep(1)
    return demo_analysis.measure(checkpoint, config, inputs, task)


def test_ray_gives_what_one_process_gives_and_a_killed_worker_costs_nothing(
    cluster: Any, family: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    analysis = dataclasses.replace(ANALYSIS, measure=dies_once)
    assert sweep(tmp_path / "ray", family, "executor=ray", analysis=analysis) == 0
    assert (tmp_path / "ray" / "model_cache" / "met").exists()
    assert without_config(files(tmp_path / "ray")) == alone


def test_a_checkpoint_that_kills_every_worker_is_reported_and_the_others_are_measured(
    cluster: Any, family: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    analysis = dataclasses.replace(ANALYSIS, measure=dies_always)
    assert sweep(tmp_path / "ray", family, "executor=ray", "retries=1", analysis=analysis) == 1
    assert caplog.messages[-1].startswith("  tiny step 3: its worker was lost, the last of 2 times; run again")
    tables = sorted(path.name for path in (tmp_path / "ray/results/second/tiny/y").glob("*.csv"))
    assert tables == [f"step{step:06d}.csv" for step in STEPS if step != 3]
    assert not (tmp_path / "ray" / "results" / ".claims").exists()


def test_when_a_node_is_killed_the_other_measures_its_checkpoints(
    cluster: Any, family: Path, alone: dict[str, Any], tmp_path: Path
) -> None:
    import threading

    node = cluster.add_node(num_cpus=1)
    said = tmp_path / "ray" / "model_cache" / "nodes"
    killed = threading.Event()

    def kill_node() -> None:
        for _ in range(600):
            if said.exists() and node.node_id in said.read_text():
                cluster.remove_node(node, allow_graceful=False)
                killed.set()
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill_node)
    killer.start()
    analysis = dataclasses.replace(ANALYSIS, measure=takes_time)
    assert sweep(tmp_path / "ray", family, "executor=ray", analysis=analysis) == 0
    killer.join()
    assert killed.is_set()
    assert len(set(said.read_text().split())) == 2
    assert without_config(files(tmp_path / "ray")) == alone


def test_bad_input_in_a_worker_and_too_large_wishes_are_told_in_one_line(
    cluster: Any, family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path / "ray", family, "executor=ray", "device=cuda:7") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("device: there is no 'cuda:7' here")
    assert sweep(tmp_path / "ray", family, "executor=ray", "cpus_per_checkpoint=99") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "cpus_per_checkpoint: no machine of the Ray cluster has 99 cores and 0 GPUs; ask for fewer"
    )


def test_tasks_of_a_job_array_give_what_one_process_gives(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="needs requirements-cluster.txt")
    asked = ("executor=slurm", "slurm.cluster=local", "workers=2", "checkpoints=[0, 750]", "n_prompts=4")
    from get_model_task_performance import ANALYSIS as PERFORMANCE

    assert sweep(tmp_path / "slurm", TOY, *asked, "task=[ioi, sva]", analysis=PERFORMANCE) == 0
    assert re.search(r"to stop them: kill \d+ \d+\n", capsys.readouterr().err)
    assert sweep(tmp_path / "alone", TOY, *asked[3:], "task=[ioi, sva]", analysis=PERFORMANCE) == 0
    found = {name: data for name, data in files(tmp_path / "slurm").items() if not name.startswith(".slurm/")}
    assert without_config(found) == without_config(files(tmp_path / "alone"))


def test_a_task_that_does_not_fit_is_left_out_of_an_array_and_not_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("submitit", reason="needs requirements-cluster.txt")
    from get_model_task_performance import ANALYSIS as PERFORMANCE

    family = tmp_path / "words"
    word_model(0).save_pretrained(family / "step0")
    word_level(task_texts(), without=greater_than.NOUNS).save_pretrained(family / "step0")
    asked = ("executor=slurm", "slurm.cluster=local", "workers=1", "n_prompts=2")
    assert sweep(tmp_path / "slurm", family, *asked, "task=all", analysis=PERFORMANCE) == 1
    said = capsys.readouterr().err
    assert "tasks that do not fit the model and were left out: 1\n" in said
    assert "lost" not in said
    assert "could not be measured" not in said


@pytest.mark.parametrize(("executor", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_library_is_told_in_one_line(
    executor: str,
    module: str,
    family: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert sweep(tmp_path, family, f"executor={executor}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"executor: {module} is not installed; run: pip install -r requirements-cluster.txt"
