"""Numbers that are not finite: no script and no function of the library gives results for them."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import circuits_over_time as cot
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.toy.keys import OptimizerConfig
from circuits_over_time.utils.toy.training import Trainer
from tests.support.paths import TOY

FEW_SEQUENCES = ("n_sequences=2", "n_mean_sequences=2", "seq_len=12")
SCRIPTS = {
    "get_model_task_performance": ["task=sva", "n_prompts=4"],
    "get_full_model_components_over_time": ["n_sequences=2", "seq_len=6", "n_prompts=4"],
    "get_new_successor_head_scores_over_time": [],
    "get_head_signatures": ["task=ioi", "n_prompts=8", "n_folds=4"],
    "get_model_cspa": ["corpus=toy", *FEW_SEQUENCES],
    "get_circuits_over_time": ["task=ioi", "n_prompts=8", "eap.ig_steps=2", "n_random=2", "search.mib=false"],
    "get_ioi_consistency": [
        *("n_prompts=8", "circuit.eap.ig_steps=2", "circuit.n_prompts=8", "components.seq_len=6", "cspa.corpus=toy"),
        *(f"cspa.{key}" for key in FEW_SEQUENCES),
    ],
    "get_greater_than_consistency": ["n_prompts=8", "circuit.heads=all"],
    "get_component_swaps": ["task=sva", "n_prompts=8", "components=[heads]", "sources=[1350]", "n_random=1"],
}


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy family, at whose first step layer 0's MLP writes more than float16 holds."""
    family = tmp_path_factory.mktemp("overflow") / "mine"
    for step in (750, 1350):
        shutil.copytree(TOY / f"step{step}", family / f"step{step}")
    shutil.copy(TOY / "family.json", family)
    weights = family / "step750" / "model.safetensors"
    state = {name: tensor.float() for name, tensor in load_file(weights).items()}
    state["gpt_neox.layers.0.mlp.dense_4h_to_h.bias"][5] += 6e4  # finite in float16, but not when it is added twice
    state["gpt_neox.embed_in.weight"][:, 5] = 6e4
    save_file(state, weights, metadata={"format": "pt"})
    return family


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_leaves_the_step_out_and_measures_the_others(
    script: str, overflowing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    analysis = importlib.import_module(script).ANALYSIS
    keys = [f"model={overflowing}", "dtype=float16", f"results_dir={tmp_path}", *SCRIPTS[script]]
    code = main(analysis, keys)
    said = capsys.readouterr().err
    folders = [path.parent for path in tmp_path.rglob("step001350.csv")]
    assert folders
    if script == "get_new_successor_head_scores_over_time":
        return  # It reads the first MLP's output for single tokens, before anything is added up: that is finite.
    assert code == 1
    assert "mine step 750 is left out: layer 0 gives NaN or infinity in float16; pass dtype=float32" in said
    assert not list(tmp_path.rglob("step000750.*"))


def test_the_library_names_layer_and_way_out(overflowing: Path) -> None:
    model, task = cot.load(overflowing, step=750, dtype="float16"), cot.task("sva")
    told = r"^model: layer 0 gives NaN or infinity in float16; pass dtype='float32'$"
    for call in (
        lambda: cot.performance(model, task, n_prompts=4),
        lambda: cot.path_effects(model, task, ["a1.h0"], n_prompts=4),
        lambda: cot.evaluate(model, task, ["a3.h1->logits"], n_prompts=4),
        lambda: cot.find_circuit(model, task, n_prompts=4, ig_steps=2),
        lambda: cot.attention(model, "The keys"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
    assert cot.performance(cot.load(overflowing, step=750), task, n_prompts=4)["value"].notna().all()


def test_a_toy_training_that_diverges_stops_in_one_line() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(2, 2)

    class Diverged(Trainer):
        def __init__(self) -> None:
            self.config, self.model = OptimizerConfig(steps=2), layer
            self.muon = self.adam = torch.optim.SGD(layer.parameters(), lr=0.1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("circuits_over_time.utils.toy.training.mean_loss", lambda *_: layer.weight.sum() * torch.nan)
        with pytest.raises(UserError, match=r"^optimizer: the training diverged \(loss nan after 1 steps\); lower "):
            Diverged().step(1, None)
