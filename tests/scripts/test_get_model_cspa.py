"""get_model_cspa.py as it is run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from circuits_over_time.utils.heads.corpus import Corpus, draw_sequences, tokens_sha256
from circuits_over_time.utils.heads.cspa import measure
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from get_model_cspa import ANALYSIS
from tests.support.demo_analysis import results_in


def arguments(family: Path, results: Path, *more: str) -> list[str]:
    sizes = ("corpus=toy", "n_sequences=3", "n_mean_sequences=6", "seq_len=12", "seed=3")
    return [f"model={family.as_posix()}", f"results_dir={results.as_posix()}", *sizes, *more]


def test_every_checkpoint_gets_every_head(word_family: Path, tmp_path: Path) -> None:
    assert main(ANALYSIS, arguments(word_family, tmp_path)) == 0
    table = Store(tmp_path).read_tables("cspa", "words")
    assert table.groupby("step").size().to_dict() == {0: 8, 5: 8}
    assert set(table["n_positions"]) == {36}
    assert table["score"].notna().all()
    about = Store(tmp_path).folder("cspa", "words").read_json(5)
    assert set(about) == {"sequences_sha256", "mean_sequences_sha256", "n_function_words"}
    assert about == Store(tmp_path).folder("cspa", "words").read_json(0)
    assert about["sequences_sha256"] != about["mean_sequences_sha256"]


def test_function_words_may_be_a_files(word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = resolve_family(str(word_family), tmp_path).load(0, device="cpu").tokenizer
    known = sorted(token for token in tokenizer.get_vocab() if token.isalpha())[:3]
    words, results = tmp_path / "words.txt", tmp_path / "results"
    words.write_text("\n".join([*known, "unheardof"]), encoding="utf-8-sig")  # as editors of Windows save it
    given = arguments(word_family, results, "checkpoints=[0]", f"function_words={words}")
    assert main(ANALYSIS, given) == 0
    found = Store(results).folder("cspa", "words")
    n_special = len(set(tokenizer.all_special_ids))
    assert found.read_json(0)["n_function_words"] == n_special + len(known)
    assert set(found.read_run()["inputs"]) == {"function_words"}
    for text, reason in (("", "holds no words"), (None, "cannot be read")):
        words.unlink() if text is None else words.write_text(text)
        assert main(ANALYSIS, [*given, "overwrite=true", "--dry-run"]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"function_words: {words}: {reason}")


def test_stopping_and_resuming_gives_the_same_files(word_family: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(ANALYSIS, arguments(word_family, whole)) == 0

    def interrupted(checkpoint, config, inputs, task):
        if checkpoint.step == 5:
            raise KeyboardInterrupt
        return measure(checkpoint, config, inputs, task)

    assert main(dataclasses.replace(ANALYSIS, measure=interrupted), arguments(word_family, parts)) == 130
    assert Store(parts).folder("cspa", "words").steps() == [0]
    assert main(ANALYSIS, arguments(word_family, parts)) == 0
    found, expected = results_in(parts), results_in(whole)
    assert set(found) == set(expected)
    for name, data in expected.items():
        if not name.endswith("run.json"):
            assert found[name] == data, name
    runs = [json.loads((root / "cspa" / "words" / "run.json").read_text()) for root in (whole, parts)]
    assert runs[0]["checkpoints"] == runs[1]["checkpoints"]


def test_seed_changes_the_text(word_family: Path, tmp_path: Path) -> None:
    main(ANALYSIS, arguments(word_family, tmp_path / "3", "checkpoints=[0]"))
    main(ANALYSIS, arguments(word_family, tmp_path / "4", "checkpoints=[0]", "seed=4"))
    hashes = [Store(tmp_path / seed).folder("cspa", "words").read_json(0)["sequences_sha256"] for seed in "34"]
    assert hashes[0] != hashes[1]


def test_pythons_documentation_is_read_and_its_hash_recorded(toy_family: Path, tmp_path: Path) -> None:
    given = arguments(toy_family, tmp_path, "corpus=python_docs", "checkpoints=[0]")
    assert main(ANALYSIS, given) == 0
    about = Store(tmp_path).folder("cspa", "toy").read_json(0)
    tokenizer = resolve_family(str(toy_family), tmp_path).describe(0).tokenizer
    drawn = torch.tensor(draw_sequences(Corpus("python_docs"), tokenizer, 9, 12, seed=3))
    assert about["sequences_sha256"] == tokens_sha256(drawn[:3])
    assert about["mean_sequences_sha256"] == tokens_sha256(drawn[3:])


def test_study_scores_the_first_of_the_sequences_that_it_averages_over(word_family: Path, tmp_path: Path) -> None:
    """With as many of both they are the same text, and the hashes say so."""
    given = arguments(
        word_family, tmp_path, "head_scores=study", "prepend_bos=true", "n_sequences=6", "checkpoints=[0]"
    )
    assert main(ANALYSIS, given) == 0
    folder = Store(tmp_path).folder("cspa", "words")
    about = folder.read_json(0)
    assert about["sequences_sha256"] == about["mean_sequences_sha256"]
    assert set(folder.read_table(0)["n_positions"]) == {6 * 12}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seq_len=65", "seq_len: 65 tokens; the model has 64 positions; lower seq_len"),
        ("start_layer=2", "start_layer: 2; the model has layers 0 to 1; lower start_layer"),
        ("interventions=[]", "interventions"),
        ("interventions=[vo]", "interventions"),
        ("k_unembeddings=5", "k_unembeddings"),
        ("corpus_window=20", "corpus_window: only counts with head_scores=study; leave it out, or pass that too"),
        ("corpus_feld=text", "did you mean 'corpus_field'"),
    ],
)
def test_bad_config_is_one_line_and_exit_code_two(
    word_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert main(ANALYSIS, arguments(word_family, tmp_path, override)) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "Traceback" not in error
