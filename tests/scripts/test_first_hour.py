"""The first hour of a user: prompts in two CSVs, an own model from the Trainer, circuits, a comparison, figures."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from choreographer.browsers.chromium import Chromium
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from circuits_over_time.plotting import plot_circuit_similarity, plot_circuits, plot_faithfulness_curve
from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.report.advice import also_possible
from circuits_over_time.utils.results.comparison import ComparisonFolder
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from compare_circuits import main as compare
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_model_task_performance import ANALYSIS as PERFORMANCE
from tests.support.commands import run_command
from tests.support.drawings import run
from tests.support.task_tokenizers import word_level

HEADER = "clean,corrupted,answers,wrong_answers\n"
NAMES = [f"N{chr(ord('a') + one)}{chr(ord('a') + two)}" for one in range(6) for two in range(10)]
N_ROWS = 60


def rows(verb: str) -> list[str]:
    """Whoever is named first is asked for: the corrupted prompt begins with another name."""
    return [f"{a} {verb} then,{b} {verb} then, {a}, {b}" for a, b in pairwise([*NAMES, NAMES[0]])]


@pytest.fixture(scope="module")
def hour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two CSVs of 60 rows, one with a row twice, and a small GPT-NeoX that the Trainer has trained for a few steps."""
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments, default_data_collator

    folder = tmp_path_factory.mktemp("hour")
    (folder / "walks.csv").write_text(HEADER + "\n".join(rows("walks")) + "\n")
    (folder / "reads.csv").write_text(HEADER + "\n".join([*rows("reads"), rows("reads")[0]]) + "\n")
    tokenizer = word_level([" ".join(NAMES), "walks reads then"])
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    texts = [f"{name} {verb} then {name}" for verb in ("walks", "reads") for name in NAMES]
    data = [{"input_ids": ids, "labels": ids} for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    arguments = TrainingArguments(
        str(folder / "mine"),
        max_steps=150,
        save_steps=75,
        learning_rate=1e-2,
        per_device_train_batch_size=60,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = Trainer(
        GPTNeoXForCausalLM(config), arguments, default_data_collator, train_dataset=data, processing_class=tokenizer
    )
    trainer.train()
    return folder


def try_suggestions(results: Path) -> int:
    """Paste every command that the report suggests, as a dry run; returns how many there are."""
    suggested = also_possible(Results(Store(results), in_report=True))
    for advice in suggested:
        assert run_command(advice.command, "--dry-run") == 0, advice
    return len(suggested)


@pytest.mark.slow
def test_the_first_hour(hour: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = hour / "results"
    shared = [f"model={hour / 'mine'}", f"results_dir={results}", "device=cpu"]
    circuits = [*shared, "n_random=0", "eap.ig_steps=3"]
    for task in ("walks", "reads"):
        # Neither a number of prompts, nor a metric, nor a family.json.
        assert main(CIRCUITS, [*circuits, f"task={hour / task}.csv", "--dry-run"]) == 0
        assert main(CIRCUITS, [*circuits, f"task={hour / task}.csv"]) == 0
        said = capsys.readouterr().err
        for step in (75, 150):
            row = Store(results).folder("baselines", "mine", task).read_table(step).iloc[0]
            assert f"mine step {step} {task}: {row['status']}" in said
            assert (row["n_prompts"], row["metric"], row["unit"]) == (N_ROWS / 2, "logit_diff", "logits")
        assert ("1 of 61 rows repeat an earlier one and are dropped" in said) == (task == "reads")
    assert Store(results).folder("baselines", "mine", "walks").read_table(150)["status"].item() == "found"
    assert Store(results).read_tables("baselines")["tokens"].isna().all()

    assert main(PERFORMANCE, [*shared, f"task=[all, {hour / 'walks.csv'}]"]) == 1
    assert "tasks that do not fit the model and were left out: 4" in capsys.readouterr().err
    assert Store(results).tasks("task_performance", "mine") == ["walks"]

    n_suggested = try_suggestions(results)
    for task in ("walks", "reads"):
        assert compare([f"results_dir={results}", f"task={task}", "pairs=100", "permutations=99", "resamples=100"]) == 0
    assert 0 < try_suggestions(results) < n_suggested  # The comparison was one of them.
    capsys.readouterr()
    # The first comparison is kept beside the second.
    assert set(ComparisonFolder(results).read("similarity")["task"]) == {"walks", "reads"}
    more = [f"task={hour / 'walks.csv'}", f"results_dir={hour / 'other'}", "n_prompts=40"]
    assert main(CIRCUITS, [*circuits, *more, "--dry-run"]) == 2
    assert capsys.readouterr().err.strip().endswith("only 60; pass n_prompts=30 or evaluate_on=same")

    for script in (plot_faithfulness_curve, plot_circuit_similarity):
        assert run(script, "-r", results, "-o", hour / "figures", "--width", "3.25in") == 0
    assert (hour / "figures" / "faithfulness_curve_mine.html").is_file()
    if Chromium.find_browser(skip_local=False) is not None:
        assert run(plot_circuits, "-r", results, "-o", hour / "figures", "--format", "svg", "--width", "3.25in") == 0
        width = str(ElementTree.parse(hour / "figures" / "circuits.svg").getroot().get("width"))
        assert float(width.removesuffix("px").removesuffix("pt")) in (312, 234)
