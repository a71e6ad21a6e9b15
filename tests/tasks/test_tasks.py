"""What holds for the prompts of every task, under Pythia's tokenizer and under a word-level one."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.tasks import TASKS, build_prompts, get_task, greater_than, ioi, sva
from circuits_over_time.utils.tasks.metrics import METRICS
from circuits_over_time.utils.tasks.prompts import Pair, assemble, metric_columns
from circuits_over_time.utils.tasks.registry import units_of
from circuits_over_time.utils.tasks.vocabulary import single_tokens
from circuits_over_time.utils.tasks.word_lists import STUDY
from tests.support.paths import ROOT
from tests.support.task_tokenizers import OTHERS, TOKENIZERS, pythia, task_texts, word_level, words

BUILDS = [*((task, "swap") for task in TASKS), ("ioi", "abc")]
META = {
    "ioi": {"io", "s", "template", "order", "place", "object"},
    "greater_than": {"noun", "century", "year"},
    "gendered_pronoun": {"name", "gender", "template", "role", "corrupted_name"},
    "sva": {"structure", "subject", "number", "other", "other_number", "verbs"},
}


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.mark.parametrize(("task", "corruption"), BUILDS)
def test_rows_are_the_texts_tokens_padded_on_the_right(task, corruption, tokenizer):
    prompts = build_prompts(task, tokenizer, 64, 0, ioi_corruption=corruption)
    for row, (clean, corrupted) in enumerate(prompts.texts):
        length = int(prompts.lengths[row])
        assert prompts.clean[row, :length].tolist() == ids(tokenizer, clean)
        assert prompts.corrupted[row, :length].tolist() == ids(tokenizer, corrupted)
        assert (prompts.clean[row, length:] == tokenizer.pad_token_id).all()
    assert prompts.clean.shape == (64, int(prompts.lengths.max()))
    assert torch.equal(prompts.positions["end"], prompts.lengths - 1)


@pytest.mark.parametrize(("task", "corruption"), BUILDS)
def test_every_pair_differs_and_every_prompt_is_distinct(task, corruption, tokenizer):
    prompts = build_prompts(task, tokenizer, 300, 1, ioi_corruption=corruption)
    assert all(clean != corrupted for clean, corrupted in prompts.texts)
    assert len({clean for clean, _ in prompts.texts}) == 300
    assert set(prompts.meta.columns) == META[task]


# Not greater_than: its answers are all two-digit tokens, also those that a tokenizer would merge with the century.
@pytest.mark.parametrize("task", ["ioi", "gendered_pronoun", "sva"])
def test_every_answer_continues_its_prompt_as_one_token(task):
    prompts = build_prompts(task, pythia(), 24, 2)
    for row, (clean, _) in enumerate(prompts.texts):
        right = prompts.answers.right[row][prompts.answers.right_mask[row]].tolist()
        wrong = prompts.answers.wrong[row][prompts.answers.wrong_mask[row]].tolist()
        assert not set(right) & set(wrong)
        for token in right + wrong:
            assert ids(pythia(), clean + pythia().decode(token)) == [*ids(pythia(), clean), token]


@pytest.mark.parametrize("task", TASKS)
def test_fewer_prompts_are_the_first_of_more(task, tokenizer):
    few, many = build_prompts(task, tokenizer, 7, 3), build_prompts(task, tokenizer, 50, 3)
    assert few.texts == many.texts[:7]
    assert few.meta.to_dict("records") == many.meta.iloc[:7].to_dict("records")
    assert build_prompts(task, tokenizer, 50, 4).texts != many.texts


def test_abc_prompts_too_are_the_first_of_more():
    few, many = (build_prompts("ioi", words(), n, 0, ioi_corruption="abc") for n in (9, 40))
    assert few.texts == many.texts[:9]


def digest() -> str:
    """Of prompts of every task, to compare between processes."""
    built = [build_prompts(task, words(), 40, 5, ioi_corruption=corruption) for task, corruption in BUILDS]
    content = [(prompts.texts, prompts.clean.tolist(), prompts.answers.right.tolist()) for prompts in built]
    return hashlib.sha256(repr(content).encode()).hexdigest()


@pytest.mark.slow
def test_prompts_are_the_same_in_every_process():
    command = [
        sys.executable,
        "-c",
        "from tests.tasks.test_tasks import digest; import sys; sys.stdout.write(digest())",
    ]
    env = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    other = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert other.stdout == digest()


@pytest.mark.parametrize("task", TASKS)
def test_a_bos_token_shifts_every_position_by_one(task, tokenizer):
    plain, with_bos = (build_prompts(task, tokenizer, 20, 0, prepend_bos=bos) for bos in (False, True))
    assert torch.equal(with_bos.clean[:, 1:], plain.clean)
    assert torch.equal(with_bos.corrupted[:, 1:], plain.corrupted)
    assert (with_bos.clean[:, 0] == tokenizer.bos_token_id).all()
    assert (with_bos.corrupted[:, 0] == tokenizer.bos_token_id).all()
    assert not (plain.clean == tokenizer.bos_token_id)[:, :2].any()
    assert torch.equal(with_bos.lengths, plain.lengths + 1)
    assert with_bos.positions.keys() == plain.positions.keys()
    assert all(torch.equal(with_bos.positions[name], plain.positions[name] + 1) for name in plain.positions)


def test_a_prompt_that_begins_with_bos_gets_no_second_one():
    text = "<|endoftext|>The war"
    prompts = assemble(pythia(), [Pair(text, "<|endoftext|>The trip", (1,), (2,))], prepend_bos=True)
    assert prompts.clean.tolist() == [ids(pythia(), text)]


def test_eos_stands_in_for_a_missing_bos_and_neither_is_refused():
    pair = Pair("The war", "The trip", (3,), (4,))
    tokenizer = word_level(["The war trip"])
    tokenizer.eos_token, tokenizer.bos_token = "[BOS]", None
    assert assemble(tokenizer, [pair], prepend_bos=True).clean[0, 0] == 1
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a BOS nor an EOS token"):
        assemble(tokenizer, [pair], prepend_bos=True)


def test_pairs_of_unequal_length_are_refused_with_texts_and_lengths():
    pair = Pair("The war", "The great war", (3,), (4,))
    with pytest.raises(UserError) as error:
        assemble(words(), [replace(pair, where="pair 0")])
    assert str(error.value) == (
        "pair 0: clean has 2 tokens and corrupted 3, but they must have the same number: 'The war' / 'The great war'"
    )


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        (Pair("The war", "The war", (3,), (4,)), "clean and corrupted are the same tokens: 'The war'"),
        (Pair("The war", "The xylophone", (3,), (4,)), "has a word that the tokenizer does not know"),
        (Pair("The war", "The trip", (3, 4), (4,)), "is both an answer and a wrong answer"),
    ],
)
def test_pairs_that_measure_nothing_are_refused(pair, reason):
    with pytest.raises(UserError, match=f"^pair 0: .*{reason}"):
        assemble(words(), [replace(pair, where="pair 0")])


def test_a_name_that_is_no_single_token_is_left_out():
    tokenizer = word_level(task_texts(), without=["Mary", "Paul"])
    for task, columns in (("ioi", ["io", "s"]), ("gendered_pronoun", ["name", "corrupted_name"])):
        used = set(build_prompts(task, tokenizer, 600, 0).meta[columns].to_numpy().ravel())
        assert not used & {"Mary", "Paul"}
        assert "John" in used


@pytest.mark.parametrize(
    ("task", "without", "reason"),
    [
        (
            "ioi",
            ioi.NAMES[4:],
            r"ioi: only 4 of 120 names are single tokens under this tokenizer, but the task needs 5",
        ),
        ("gendered_pronoun", ["she"], r"gendered_pronoun: only 1 of 2 answers are single tokens"),
        ("greater_than", greater_than.NOUNS, r"greater_than: only 0 of 113 nouns are single tokens"),
        ("sva", ["from", "by"], r"sva \(prep_inanim\): only 0 of 2 links are single tokens"),
    ],
)
def test_too_few_words_are_refused_with_task_number_and_reason(task, without, reason):
    with pytest.raises(UserError, match=reason):
        build_prompts(task, word_level(task_texts(), without=without), 10, 0)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("task", ["ioi", "gendered_pronoun", "sva"])
def test_other_kinds_of_tokenizers_make_prompts_with_answers_that_continue_them(task, name):
    tokenizer = OTHERS[name]()
    prompts = build_prompts(task, tokenizer, 60, 2)
    unknown = tokenizer.unk_token_id if name == "pieces" else None
    for row, (clean, corrupted) in enumerate(prompts.texts):
        assert prompts.clean[row, : prompts.lengths[row]].tolist() == ids(tokenizer, clean)
        assert unknown not in ids(tokenizer, clean) + ids(tokenizer, corrupted)
        right = prompts.answers.right[row][prompts.answers.right_mask[row]].tolist()
        wrong = prompts.answers.wrong[row][prompts.answers.wrong_mask[row]].tolist()
        for token in right[:3] + wrong[:3]:
            word = tokenizer.convert_ids_to_tokens(token).lstrip("Ġ▁")
            assert ids(tokenizer, f"{clean} {word}") == [*ids(tokenizer, clean), token]


def test_how_many_words_a_tokenizer_leaves_is_said_once(caplog):
    caplog.set_level("INFO")
    some = word_level(task_texts(), without=["Mary", "Paul", "store", "surgeons", "war", "goes"])
    some.name_or_path = "leaves some"
    for _ in range(2):
        for task in TASKS:
            build_prompts(task, some, 5, 0)
    left = " are single tokens under this tokenizer; the others are left out"
    assert [record.getMessage() for record in caplog.records] == [
        f"ioi: 118 of 120 names{left}",
        f"ioi: 15 of 16 places{left}",
        f"greater_than: 112 of 113 nouns{left}",
        f"gendered_pronoun: 118 of 120 words for {{name}}{left}",
        f"sva: 75 of 76 words and phrases of prompts{left}",
        f"sva: 74 of 75 verbs asked for (in both numbers){left}",
    ]
    caplog.clear()
    for task in TASKS:
        build_prompts(task, words(), 5, 0)
    assert not caplog.records


def test_a_tokenizer_that_cuts_years_otherwise_is_refused():
    tokenizer = word_level([greater_than.TEMPLATE, *greater_than.NOUNS, "16 17"])  # 1616 and 1617: first and last
    with pytest.raises(UserError, match="greater_than: this tokenizer cuts no year from 1100 to 1799 into its century"):
        build_prompts("greater_than", tokenizer, 10, 0)


def test_more_prompts_than_there_are_names_the_maximum():
    few = [greater_than.TEMPLATE, "war trip", "17 01 30 31 32 33 34"]
    tokenizer = word_level(few)
    assert len(build_prompts("greater_than", tokenizer, 10, 0)) == 10  # 2 nouns, years 17, 30-33 (not 01, 34)
    with pytest.raises(UserError, match="n_prompts: 11 prompts of greater_than asked for, but it can make only 10"):
        build_prompts("greater_than", tokenizer, 11, 0)
    with pytest.raises(UserError, match="n_prompts: 0 prompts of greater_than asked for; ask for at least 1"):
        build_prompts("greater_than", tokenizer, 0, 0)


def test_all_prompts_there_are_can_be_drawn_and_are_distinct():
    names = ioi.NAMES[:5]
    tokenizer = word_level([*ioi.TEMPLATES, *names, "store", "ring"])
    total = 2 * len(ioi.TEMPLATES) * 5 * 4
    prompts = build_prompts("ioi", tokenizer, total, 0)
    assert len({clean for clean, _ in prompts.texts}) == total


def test_unknown_tasks_are_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="task: 'greater-than' is unknown; did you mean 'greater_than'"):
        get_task("greater-than")
    with pytest.raises(UserError, match="task: 'ioi@eap' names results of the task ioi; use ioi"):
        get_task("ioi@eap")
    with pytest.raises(UserError, match=r"task: 'xyz' is unknown; name a prompts CSV or one of: ioi, greater_than, "):
        get_task("xyz")


def test_a_name_that_is_meant_as_a_file_is_said_to_be_missing(tmp_path):
    (tmp_path / "drinks.csv").touch()
    (tmp_path / "drinks.tsv").touch()
    near = f"; did you mean '{tmp_path}/drinks.csv'?"
    says = {
        "drinks.cvs": f"no such file{near}",
        "drnks.csv": f"no such file{near}",
        "drinks.tsv": f"not a prompts CSV{near}",
        "food.txt": "no such file; the name of a CSV ends in .csv",
        "own/food.csv": f"no such file; there is no folder {tmp_path}/own",
    }
    for name, reason in says.items():
        with pytest.raises(UserError) as refused:
            build_prompts(f"{tmp_path}/{name}", pythia(), 1, 0)
        assert str(refused.value) == f"task: {tmp_path}/{name}: {reason}"


def test_every_task_names_its_metrics_and_ignores_a_csvs():
    for name, task in TASKS.items():
        assert task.name == name == get_task(name).name
        assert task.metrics[0] == task.primary
        assert sorted(task.metrics) == sorted(METRICS)
        assert get_task(name, "prob_diff") is task
    assert {name: task.primary for name, task in TASKS.items()} == {
        "ioi": "logit_diff",
        "greater_than": "prob_diff",
        "gendered_pronoun": "logit_diff",
        "sva": "prob_diff",
    }


def test_select_keeps_the_parts_of_a_prompt_together():
    prompts = build_prompts("ioi", words(), 12, 0)
    rows = [7, 2, -1]
    mask = prompts.meta["order"] == "ABBA"
    for index, expected in (
        (rows, [7, 2, 11]),
        (torch.tensor([7, 2, 11]), [7, 2, 11]),
        (slice(3, 5), [3, 4]),
        (mask, [row for row in range(12) if mask[row]]),
        (torch.tensor(mask.to_numpy()), [row for row in range(12) if mask[row]]),
        ([], []),
    ):
        chosen = prompts.select(index)
        assert len(chosen) == len(expected)
        assert chosen.texts == [prompts.texts[row] for row in expected]
        for name in ("clean", "corrupted", "lengths"):
            assert torch.equal(getattr(chosen, name), getattr(prompts, name)[expected])
        for name in ("right", "right_mask", "wrong", "wrong_mask"):
            assert torch.equal(getattr(chosen.answers, name), getattr(prompts.answers, name)[expected])
        assert torch.equal(chosen.positions["s2"], prompts.positions["s2"][expected])
        pd.testing.assert_frame_equal(chosen.meta, prompts.meta.iloc[expected].reset_index(drop=True))


def test_select_refuses_rows_that_do_not_exist():
    prompts = build_prompts("ioi", words(), 3, 0)
    for index in ([3], [True, False]):
        with pytest.raises(IndexError):
            prompts.select(index)


def test_moving_prompts_moves_every_tensor():
    moved = build_prompts("ioi", words(), 3, 0).to("meta")
    values = (*vars(moved).values(), *vars(moved.answers).values())
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    assert len(tensors) == 7
    assert all(tensor.device.type == "meta" for tensor in (*tensors, *moved.positions.values()))


def test_parts_of_prompts_that_do_not_fit_are_refused():
    prompts = build_prompts("ioi", words(), 2, 0)
    with pytest.raises(ValueError, match=r"different numbers of rows: \[1, 2\]"):
        replace(prompts, texts=prompts.texts[:1])
    with pytest.raises(ValueError, match="differ"):
        replace(prompts, corrupted=prompts.corrupted[:, 1:])


def test_prompts_longer_than_a_context_are_refused_with_the_longest():
    prompts = build_prompts("ioi", words(), 8, 0)
    longest = int(prompts.lengths.max())

    def shape(n_positions, d_vocab=10**6):
        return SimpleNamespace(n_positions=n_positions, d_vocab=d_vocab)

    prompts.require_fit("ioi", shape(longest))
    with pytest.raises(
        UserError, match=rf"task: ioi: a prompt has {longest} tokens, but the model's context holds 7; use"
    ):
        prompts.require_fit("ioi", shape(7))
    with pytest.raises(UserError, match=r"not the model's: token \d+ in '.+' \(ioi\), but the model has 50 embeddings"):
        prompts.require_fit("ioi", shape(longest, 50))


def test_a_tokenizer_that_makes_no_tokens_is_refused_in_one_line(tmp_path):
    class Silent:
        """Turns every text into no tokens, as a broken tokenizer file can."""

        unk_token_id = bos_token_id = eos_token_id = pad_token_id = None

        def __call__(self, texts, **how):
            return {"input_ids": [[] for _ in texts]}

    path = tmp_path / "prompts.csv"
    path.write_text("clean,corrupted,answers,wrong_answers\nSo Paul,So Mary, he, she\n")
    with pytest.raises(UserError, match=r"row 1 \(line 2\): the tokenizer produces no tokens for 'So Paul'; check"):
        build_prompts(str(path), Silent(), 1, 0, metric="logit_diff")


def test_names_labels_and_primary_metrics_are_read_without_any_library_that_computes():
    code = (
        "import sys\n"
        "from circuits_over_time.utils.tasks.metrics import METRICS\n"
        "from circuits_over_time.utils.tasks.registry import primary_metric, task_label\n"
        "print(task_label('sva'), METRICS[primary_metric('sva')].label, primary_metric('my_prompts'), sep='; ')\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "Subject-verb agreement; probability difference; None\n[]\n"


@pytest.mark.parametrize("task", ["ioi", "gendered_pronoun", "sva", "greater_than"])
def test_tables_give_the_accuracy_where_it_follows_from_the_metric(task: str) -> None:
    prompts = build_prompts(task, words(), 8, seed=0)
    logits = torch.randn(8, len(words()), generator=torch.Generator().manual_seed(1)).to(torch.float64)
    values = prompts.metric(TASKS[task].primary)(logits, slice(None))
    beside = metric_columns(TASKS[task], prompts, values)
    accuracy = prompts.metric("accuracy")(logits, slice(None)).mean().item()
    single = task in ("ioi", "gendered_pronoun")
    assert beside == {
        "metric_name": "logit_diff" if single else "prob_diff",
        "unit": "logits" if single else "probability",
        "accuracy": pytest.approx(accuracy) if single else None,
    }
    assert 0 < accuracy < 1


@pytest.mark.parametrize("task", TASKS)
def test_the_studys_prompts_are_others_and_the_first_of_more(task):
    few, many = (build_prompts(task, pythia(), n, 42, prompt_set="study") for n in (7, 50))
    assert few.texts == many.texts[:7]
    assert set(few.meta.columns) == META[task] - {"role"}
    assert not set(few.texts) & set(build_prompts(task, pythia(), 7, 42).texts)


def test_the_studys_ioi_prompts_have_any_of_its_templates_in_any_order():
    from scipy.stats import chisquare  # Only here, since another process imports this module too.

    meta = build_prompts("ioi", pythia(), 1500, 42, prompt_set="study").meta
    counts = meta.groupby(["order", "template"]).size()
    assert len(counts) == 30
    assert chisquare(counts).pvalue > 1e-4
    # Orders do not alternate: neighbours are alike half of the time.
    assert 0.45 < (meta["order"] == meta["order"].shift()).mean() < 0.55
    assert meta["place"].nunique() == meta["object"].nunique() == 8
    # Of its 99 names those that are one token.
    names = set(single_tokens(pythia(), STUDY["ioi"]["names"].split(), "ioi", "names", 1))
    assert set(meta["s"]) == set(meta["io"]) == names
    assert len(names) == 88


def test_the_studys_greater_than_prompts_end_their_first_years_in_order():
    prompts = build_prompts("greater_than", pythia(), 200, 42, prompt_set="study")
    assert (prompts.meta["year"] % 100).tolist() == [2 + row % 97 for row in range(200)]
    assert set(prompts.meta["century"]) == set(range(11, 18))
    assert prompts.lengths.max() > prompts.lengths.min(), "no noun has several tokens"


def test_the_studys_pronoun_prompts_are_its_20_names_in_its_5_phrases():
    meta = build_prompts("gendered_pronoun", pythia(), 100, 42, prompt_set="study").meta
    assert set(meta.groupby(["name", "template"]).size()) == {1}
    assert (meta["name"].nunique(), meta["template"].nunique()) == (20, 5)


def test_the_studys_agreement_prompts_come_from_every_structure_by_its_size():
    drawn = build_prompts("sva", pythia(), 2000, 42, prompt_set="study").meta["structure"].value_counts()
    known = sva._single_tokens(pythia())
    sizes = {structure.name: prod(sva._slot_sizes(sva._known(known, structure))) for structure in sva.STRUCTURES}
    expected = pd.Series(sizes) / sum(sizes.values()) * 2000
    common = expected[expected > 20].index
    assert ((drawn[common] - expected[common]).abs() < 5 * expected[common] ** 0.5).all()
    assert drawn.max() > 20 * drawn.min()


def test_what_sizes_count_follows_from_the_names_in_the_results() -> None:
    assert units_of(["ioi", "sva@eap"]) == "edges"
    assert units_of(["ioi@mean+neuron"]) == "neurons"
    assert units_of(["sva@eap+node", "ioi", "ioi@neuron"]) == "edges or heads and MLPs or neurons"
