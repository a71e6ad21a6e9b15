"""Results folders that others have been in, and models whose names look like numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import circuits_over_time as cot
import compare_circuits
import get_circuits_over_time
from circuits_over_time.plotting import make_report, plot_circuits
from circuits_over_time.plotting.parts.export import figure_main
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from tests.support.paths import TOY


def family(path: Path, *steps: int) -> Path:
    """Some of the toy family's steps under another name."""
    path.mkdir(parents=True)
    for step in steps:
        shutil.copytree(TOY / f"step{step}", path / f"step{step}")
    shutil.copy(TOY / "family.json", path)
    return path


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Circuits of models called 1e5 and 007, from a config that does not quote the names."""
    root = tmp_path_factory.mktemp("stray")
    for name in ("1e5", "007"):
        family(root / name, 750, 1350)
    (root / "mine.yml").write_text(
        "model: [1e5, 007]\ntask: ioi\nn_prompts: 8\neap:\n  ig_steps: 2\nn_random: 2\nsearch: {mib: false}\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(get_circuits_over_time.ANALYSIS, ["-c", "mine.yml", "results_dir=results"]) == 0
        assert main(get_circuits_over_time.ANALYSIS, ["-c", "mine.yml", "model=007", "results_dir=results"]) == 0
    return root / "results"


def test_names_of_digits_stay_text(measured: Path, tmp_path: Path) -> None:
    assert Store(measured).models("graphs") == ["007", "1e5"]
    assert cot.results(measured, "baselines")["model"].tolist() == ["007", "007", "1e5", "1e5"]
    assert figure_main(plot_circuits.FIGURE, ["-r", str(measured), "-m", "007", "-o", str(tmp_path)]) == 0
    drawn = (tmp_path / "circuits.html").read_text()
    assert '"name":"007"' in drawn
    assert '"name":"1e5"' not in drawn


def test_what_others_leave_in_results_is_ignored(measured: Path, tmp_path: Path) -> None:
    results = shutil.copytree(measured, tmp_path / "results")
    for folder in (results / "graphs", results / "faithfulness", results / "graphs" / "007"):
        shutil.copytree(results / "graphs" / "1e5", folder / ".ipynb_checkpoints")
        (folder / ".DS_Store").touch()
    last = results / "graphs" / "007" / "ioi"
    for name in (
        "step000750.csv~",
        "step000750.csv.part",
        ".step000750.csv.swp",
        "step000750 (copy).csv",
        "#step000750#",
    ):
        (last / name).write_text("half")
    assert cot.results(results).equals(cot.results(measured))
    assert figure_main(plot_circuits.FIGURE, ["-r", str(results), "-o", str(tmp_path / "figures")]) == 0
    assert make_report.main(["-r", str(results), "-o", str(tmp_path / "report.html")]) == 0
    few = ["pairs=100", "permutations=99", "resamples=100"]
    assert compare_circuits.main([f"results_dir={results}", "task=ioi", *few]) == 0
    assert set(cot.results(results, "graphs")["model"]) == {"007", "1e5"}


def test_where_nothing_is_learned_figures_say_so_and_do_not_send_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = family(tmp_path / "none", 0) / "step0"
    second = shutil.copytree(first, tmp_path / "none" / "step1")
    tensors = {name: tensor * 1.01 for name, tensor in load_file(first / "model.safetensors").items()}
    save_file(tensors, second / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.chdir(tmp_path)
    keys = ["model=none", "task=ioi", "n_prompts=8", "eap.ig_steps=2", "n_random=2"]
    assert main(get_circuits_over_time.ANALYSIS, keys) == 0
    capsys.readouterr()
    figure_main(plot_circuits.FIGURE, [])
    said = capsys.readouterr().err
    assert "results/faithfulness: measured, but no checkpoint has a circuit (task not learned): nothing to draw" in said
    assert "run: python get_circuits" not in said
    assert make_report.main([]) == 0
    said = capsys.readouterr().err
    assert "no checkpoint has a circuit (task not learned)" in said
    assert "run: python get_circuits" not in said
    assert compare_circuits.main(["model=none", "task=ioi"]) == 0
    assert "ioi: no checkpoint has a circuit" in capsys.readouterr().err
