"""check_checkpoints.py: what it prints, writes and returns, and which configs it takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from check_checkpoints import main
from circuits_over_time.utils.integrity.descent import FLOOR, distance, weight_changes
from circuits_over_time.utils.models.family import resolve_family
from tests.support.hub_server import HubServer, read_folder
from tests.support.loading import instant_waits, point_at
from tests.support.paths import CONFIGS, TOY, TOY_STEPS
from tests.support.tiny_models import save_checkpoint


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A copy of the kept toy family."""
    return Path(shutil.copytree(TOY, tmp_path / "toy"))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """The kept toy family as revisions of a repository, with `main` like its last step."""
    instant_waits(monkeypatch)
    shared = {path.name: path.read_bytes() for path in TOY.iterdir() if path.is_file()}
    shared.pop("family.json")
    branches = {f"step{step}": shared | read_folder(TOY / f"step{step}") for step in TOY_STEPS}
    branches["main"] = branches[f"step{TOY_STEPS[-1]}"]
    with HubServer({"lab/toy": branches}) as hub:
        point_at(hub.endpoint, monkeypatch)
        yield hub


def run(model: object, tmp_path: Path, *more: str) -> int:
    places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache", "tokens_per_step=1"]
    return main([f"model={model}", *places, *more])


def table(tmp_path: Path, model: str = "toy", name: str = "checkpoints") -> pd.DataFrame:
    return pd.read_csv(tmp_path / "results" / "checks" / model / f"{name}.csv")


def test_a_sound_family_passes(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, tmp_path, "--deep") == 0
    out = capsys.readouterr().out
    assert "0 steps hold weights that are not theirs alone, 0 are missing" in out
    assert "toy: too few checkpoints to say whether one descends from another" in out
    assert table(tmp_path, name="distances")["usual"].isna().all()
    found = table(tmp_path)
    assert list(found["step"]) == list(TOY_STEPS)
    assert found["problem"].isna().all()
    assert found["sha256"].nunique() == 3


def test_a_sound_family_on_the_hub_passes_with_main_like_its_last_step(served: HubServer, tmp_path: Path) -> None:
    assert run("lab/toy", tmp_path) == 0
    assert served.downloads("") == []


def test_the_end_of_training_on_an_earlier_branch_is_found(
    served: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branches = served.repositories["lab/toy"]
    branches["step750"] = branches["main"]
    served.missing.add("step0")
    assert run("lab/toy", tmp_path) == 1
    out = capsys.readouterr().out
    assert "1 steps hold weights that are not theirs alone, 1 are missing" in out
    found = table(tmp_path).set_index("step")
    assert (found.loc[750, "problem"], found.loc[750, "same_as"]) == ("equal weights", "1350; main")
    assert found.loc[0, "problem"].startswith("missing: ")
    assert run("lab/toy", tmp_path, "on_duplicate_weights=warn") == 0


def test_any_scripts_config_is_taken_but_no_unknown_key(
    tiny_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configs = sorted(CONFIGS.rglob("*.yml"))
    assert len(configs) > 30
    for path in configs:
        given = [f"model={tiny_family}", f"results_dir={tmp_path}", "checkpoints=[10]"]
        assert main(["-c", str(path), *given]) == 0, path
    capsys.readouterr()
    assert main([f"model={tiny_family}", "checkpoint=[0]"]) == 2
    assert "checkpoint: unknown key; did you mean 'checkpoints'?" in capsys.readouterr().err
    assert main([f"model={tiny_family}", "eap.ig_step=3"]) == 2
    assert capsys.readouterr().err == "command line: eap.ig_step: unknown key; did you mean 'eap.ig_steps'?\n"


def test_a_run_that_does_not_descend_from_its_start_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = drifting(tmp_path / "own", {0: 9, 10: 1, 20: 1, 30: 1, 40: 1})
    assert run(family, tmp_path, "--deep") == 1
    out = capsys.readouterr().out
    assert "own: step 10 does not seem to descend from step 0: relative distance" in out
    distances = table(tmp_path, "own", "distances")
    assert list(distances["stands_out"]) == [True, False, False, False]
    assert distances["distance"][0] == pytest.approx(2**0.5, rel=0.2)


def test_weights_of_another_run_in_the_middle_are_found(tmp_path: Path) -> None:
    family = drifting(tmp_path / "own", {0: 1, 10: 1, 20: 1, 30: 5, 40: 1, 50: 1, 60: 1})
    found, unusable = weight_changes(resolve_family(str(family), tmp_path, tokens_per_step=1), range(0, 70, 10))
    assert unusable == {}
    assert [change.step for change in found if change.stands_out] == [30, 40]


def test_a_training_that_slows_down_is_no_finding(tmp_path: Path) -> None:
    drift = [0, 0.01, 0.05, 0.2, 0.4, 0.55, 0.65, 0.7, 0.72]
    family = drifting(tmp_path / "own", dict.fromkeys(range(0, 90, 10), 1), drift)
    found, _ = weight_changes(resolve_family(str(family), tmp_path, tokens_per_step=1), range(0, 90, 10))
    assert not any(change.stands_out for change in found)
    assert all(change.distance > FLOOR for change in found)


def test_the_distance_is_relative_to_the_earlier_norm() -> None:
    before = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.ones(2, 2)}
    now = {"a": torch.tensor([[3.0, 9.0]]), "b": torch.ones(2, 2)}
    assert distance(before, now) == pytest.approx((5 / 5 + 0) / 2)
    assert distance(before, {"c": torch.ones(1, 1)}) == float("inf")


def test_a_damaged_checkpoint_is_told_and_the_others_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    family = drifting(tmp_path / "own", {0: 1, 10: 1, 20: 1, 30: 1})
    (family / "step10" / "model.safetensors").write_bytes(b"no weights")
    assert run(family, tmp_path, "--deep") == 1
    assert "own step 10: " in capsys.readouterr().out
    assert list(table(tmp_path, "own", "distances")["step"]) == [20, 30]


def drifting(folder: Path, seeds: dict[int, int], drift: list[float] | None = None) -> Path:
    """A family of runs: step -> the run's seed. Along a run, all weights drift by a few percent a step."""
    from safetensors.torch import load_file, save_file

    for number, (step, seed) in enumerate(seeds.items()):
        target = folder / f"step{step}"
        save_checkpoint(target, seed)
        state = load_file(target / "model.safetensors")
        noise = torch.Generator().manual_seed(0)
        share = 0.03 * number if drift is None else drift[number]
        moved = {
            name: tensor + share * tensor.std().nan_to_num(0) * torch.randn(tensor.shape, generator=noise)
            for name, tensor in state.items()
        }
        save_file(moved, target / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_folders_that_cannot_be_measured_do_not_pass(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, last = (toy / f"step{step}" for step in TOY_STEPS)
    (first / "model.safetensors").unlink()
    (first / "lit_model.pth").touch()
    (second / "config.json").unlink()
    tensors = load_file(last / "model.safetensors")
    tensors["gpt_neox.layers.2.mlp.dense_h_to_4h.bias"][0] = torch.nan
    save_file(tensors, last / "model.safetensors", metadata={"format": "pt"})
    assert run(toy, tmp_path) == 1
    problems = table(tmp_path)["problem"].dropna().tolist()
    assert [problem.partition(": ")[0] for problem in problems] == ["missing", *["cannot be measured"] * 2]
    for problem, told in zip(problems, ("is litgpt's", "config.json is missing", "holds NaN or infinity"), strict=True):
        assert told in problem
    assert "3 are missing or cannot be measured" in capsys.readouterr().out
