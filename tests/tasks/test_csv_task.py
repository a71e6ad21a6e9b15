"""Tasks from a CSV of prompts."""

import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from circuits_over_time.edge_attribution_patching.model.architectures import Shape
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.circuits.find import circuit_prompts
from circuits_over_time.utils.circuits.keys import CircuitSettings
from circuits_over_time.utils.config.keys import PromptOptions
from circuits_over_time.utils.tasks import build_prompts, get_task
from circuits_over_time.utils.tasks.csv_task import table_task
from tests.support.paths import CONFIGS, TOY_STEPS
from tests.support.task_tokenizers import pythia, words

TINY = Shape(
    "gpt_neox",
    n_layers=1,
    n_heads=1,
    n_kv_heads=1,
    d_head=4,
    d_model=4,
    d_mlp=8,
    d_vocab=10_000,
    n_positions=64,
    parallel=True,
)
EXAMPLE = CONFIGS / "example_prompts.csv"
HEADER = "clean,corrupted,answers,wrong_answers"
GOOD = "So Paul is such a good cook,So Mary is such a good cook, he, she"


@pytest.fixture
def write(tmp_path):
    def _write(*lines, name="mine.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_text("\n".join(lines) + "\n", encoding=encoding)
        return str(path)

    return _write


def test_the_example_for_the_toy_family_fits_it(toy_family):
    tokenizer = AutoTokenizer.from_pretrained(toy_family / f"step{TOY_STEPS[0]}")
    assert len(build(str(CONFIGS / "toy_prompts.csv"), None, tokenizer)) == 12


def build(path, n=1, tokenizer=None, **options):
    return build_prompts(path, tokenizer or words(), n, 0, metric="logit_diff", **options)


def test_the_example_works_under_pythia():
    prompts = build_prompts(str(EXAMPLE), pythia(), 4, 0, metric="prob_diff")
    by_text = {clean: row for row, (clean, _) in enumerate(prompts.texts)}
    row = by_text["The keys on the cabinet"]
    decode = lambda tokens, mask: [pythia().decode(token) for token in tokens[mask]]  # noqa: E731
    assert decode(prompts.answers.right[row], prompts.answers.right_mask[row]) == [" are", " were", " have"]
    assert decode(prompts.answers.wrong[row], prompts.answers.wrong_mask[row]) == [" is", " was", " has"]
    assert prompts.answers.right_mask.sum(dim=1).min() == 1


def test_rows_become_prompts_with_their_other_columns_as_facts(write):
    second = "So Mary is such a good cook,So Paul is such a good cook, she, he;she ,b"
    path = write(f"{HEADER},kind", f"{GOOD},a", second.replace("she ", " store"))
    prompts = build(path, 2)
    rows = {clean: row for row, (clean, _) in enumerate(prompts.texts)}
    paul, mary = rows["So Paul is such a good cook"], rows["So Mary is such a good cook"]
    he, she, store = (words().get_vocab()[word] for word in ("he", "she", "store"))
    assert prompts.answers.right[[paul, mary]].tolist() == [[he], [she]]
    assert prompts.answers.wrong[paul][prompts.answers.wrong_mask[paul]].tolist() == [she]
    assert prompts.answers.wrong[mary][prompts.answers.wrong_mask[mary]].tolist() == [he, store]
    assert prompts.meta["kind"][[paul, mary]].tolist() == ["a", "b"]
    assert torch.equal(prompts.positions["end"], torch.tensor([6, 6]))


def test_draws_repeat_begin_alike_and_take_bos(write):
    path = write(HEADER, *(f"So {name} is,So Karen is, he, she" for name in ("John", "Paul", "Mark", "Brian", "Kevin")))
    few, many = build(path, 2), build(path, 5)
    assert few.texts == many.texts[:2]
    assert len(set(many.texts)) == 5
    assert (build(path, 5, prepend_bos=True).clean[:, 0] == words().bos_token_id).all()
    with pytest.raises(UserError, match=r"n_prompts: 6 prompts of mine.csv .* only 5; pass n_prompts=5$"):
        build(path, 6)


def test_a_table_has_all_rows_unless_a_number_is_asked_for(write):
    names = ("John", "Paul", "Mark", "Brian", "Kevin", "George", "James")
    path = write(HEADER, *(f"So {name} is,So Karen is, he, she" for name in names))
    every = build(path, None)
    assert sorted(clean for clean, _ in every.texts) == sorted(f"So {name} is" for name in names)
    assert every.texts[:2] == build(path, 2).texts
    task = get_task(path)
    halves = circuit_prompts(CircuitSettings(), task, words(), TINY)
    assert [len(half) for half in (halves.scoring, halves.evaluation)] == [3, 4]
    assert sorted([*halves.scoring.texts, *halves.evaluation.texts]) == sorted(every.texts)
    whole = circuit_prompts(CircuitSettings(evaluate_on="same"), task, words(), TINY)
    assert whole.scoring.texts == whole.evaluation.texts == every.texts
    told = circuit_prompts(CircuitSettings(n_prompts=2), task, words(), TINY)
    assert [len(half) for half in (told.scoring, told.evaluation)] == [2, 2]


@pytest.mark.parametrize(("rows", "asked", "works"), [(7, 4, 3), (2, 5, 1)])
def test_too_few_rows_name_the_number_that_works(write, rows, asked, works):
    names = ("John", "Paul", "Mark", "Brian", "Kevin", "George", "James")[:rows]
    task = get_task(write(HEADER, *(f"So {name} is,So Karen is, he, she" for name in names)))
    same = "evaluate_on=same" if asked <= rows else f"n_prompts={rows} evaluate_on=same"
    told = rf"n_prompts: {asked} .* only {rows}; pass n_prompts={works} or {same}$"
    with pytest.raises(UserError, match=told):
        circuit_prompts(CircuitSettings(n_prompts=asked), task, words(), TINY)
    found = circuit_prompts(CircuitSettings(n_prompts=works), task, words(), TINY)
    assert len(found.scoring) == len(found.evaluation) == works
    circuit_prompts(CircuitSettings(n_prompts=min(asked, rows), evaluate_on="same"), task, words(), TINY)


def test_one_row_is_too_few_for_two_halves(write):
    task = get_task(write(HEADER, GOOD))
    with pytest.raises(UserError, match=r"^evaluate_on: heldout needs two prompts, .* mine has one; add rows, or"):
        circuit_prompts(CircuitSettings(), task, words(), TINY)


def test_rows_that_are_there_twice_are_dropped_and_counted_once(write, caplog):
    twin = GOOD + ",again"
    path = write(f"{HEADER},note", f"{GOOD},first", twin, "So Mary is,So Paul is, she, he,", twin)
    for _ in range(2):
        prompts = build(path, None)
    assert sorted(prompts.meta["note"]) == ["", "first"]
    (line,) = [record.getMessage() for record in caplog.records if "repeat" in record.getMessage()]
    assert line == f"{path}: 2 of 4 rows repeat an earlier one and are dropped: row 2 (line 3), row 4 (line 5)"


def test_a_byte_order_mark_is_not_part_of_the_header(write):
    assert len(build(write(HEADER, GOOD, encoding="utf-8-sig"))) == 1


def test_the_metric_is_the_logit_difference_or_another_primary_one(write):
    path = write(HEADER, GOOD)
    assert get_task(path).primary == "logit_diff"
    with pytest.raises(UserError, match=r"metric: 'accuracy' cannot be used for the prompts of .*mine.csv"):
        get_task(path, "accuracy")
    task = get_task(path, "prob_diff")
    assert (task.name, task.primary) == ("mine", "prob_diff")
    assert task.metrics == ("prob_diff", "logit_diff", "accuracy", "rank_0_rate", "prob_mass")


def test_the_folder_is_the_stem_unless_a_task_has_it():
    assert get_task("configs/example_prompts.csv", "logit_diff").name == "example_prompts"
    with pytest.raises(
        UserError, match=r"x/ioi.csv would write into the results of the built-in task 'ioi'; rename the file"
    ):
        get_task("x/ioi.csv", "logit_diff")
    with pytest.raises(UserError, match=r"x/own@eap.csv: 'own@eap' would name results of a task own; rename the file"):
        get_task("x/own@eap.csv", "logit_diff")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            "So Paul is,So John was not, he, she",
            r"clean has 3 tokens and corrupted 4, .*'So Paul is' / 'So John was not'",
        ),
        (
            "So Paul is,So John is, he;she, her",
            r"'she' is not a token of its own after 'So Paul is'; write ' she', with",
        ),
        ("So Paul is,So John is, such a, he", r"' such a' is 2 tokens after 'So Paul is'$"),
        ("So Paul is,So John is, xylophone, he", r"' xylophone' is not a token of its own after 'So Paul is'$"),
        ("So Paul is,So John is, he, she; he", r"'he' is both an answer and a wrong answer$"),
        ("So Paul is,So Paul is, he, she", r"clean and corrupted are the same tokens: 'So Paul is'$"),
        ("So Paul is,So John is,, she", r"answers is empty$"),
        ("So Paul is,So John is, he;, she", r"an answer between two ';' is empty$"),
        ("So Paul is,So John is, he", r"does not have as many cells as the header \(4\)$"),
        ("So Paul is,So John is, he, she,x", r"does not have as many cells as the header \(4\)$"),
        (
            GOOD.replace(" she", " her"),
            r"repeats the prompts of row 1 with other answers: 'So Paul is such a good cook'$",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_file_row_and_reason(write, row, reason):
    path = write(HEADER, GOOD, row)
    for n in (1, 2):
        with pytest.raises(UserError, match=rf"mine\.csv: row 2 \(line 3\): .*{reason}") as error:
            build(path, n)
        assert "\n" not in str(error.value)


def test_a_row_of_unequal_length_under_pythia_names_both_lengths(write):
    path = write(HEADER, "The war lasted from the year 1732,The war lasted from the year 2,12,13")
    with pytest.raises(UserError, match=r"mine\.csv: row 1 \(line 2\): clean has 8 tokens and corrupted 7"):
        build(path, tokenizer=pythia())


def test_an_answer_may_continue_a_word_where_it_is_a_token_of_its_own(write):
    path = write(HEADER, "The Blue Bay Quarry (BB,The Blue Sea Quarry (BB,Q,G")
    prompts = build(path, tokenizer=pythia())
    assert prompts.answers.right.tolist() == [pythia()("(BBQ")["input_ids"][-1:]]
    # Without its space this name is another token, and is asked for as it is written.
    path = write(HEADER, "John gave a drink to,Mary gave a drink to,Mary,John", name="glued.csv")
    assert pythia().decode(build(path, tokenizer=pythia()).answers.right[0]) == "Mary"
    # "gavethe" is cut elsewhere: there is no token to ask for.
    path = write(HEADER, "John gave th,Mary gave th,e,is", name="other.csv")
    with pytest.raises(UserError, match=r"'e' is not a token of its own after 'John gave th'; write ' e', with"):
        build(path, tokenizer=pythia())


def test_text_without_spaces_between_words_is_taken(write):
    rows = ["明天天气是,今天天气是,大,小", "他有十个,他在十个,人,国"]
    letters = sorted(set("".join(rows)))
    backend = Tokenizer(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    prompts = build(write(HEADER, *rows), 2, tokenizer)
    asked = {tokenizer.decode(token) for token in prompts.answers.right[:, 0]}
    assert asked == {"大", "人"}


def test_a_prompt_that_ends_with_a_space_is_told_so(write):
    path = write(HEADER, "So Paul is ,So Mary is ,he,she")
    told = r"'he' is not a token of its own after 'So Paul is '; the prompt ends with a space: end it before that, and "
    with pytest.raises(UserError, match=told + "write ' he'"):
        build(path, tokenizer=pythia())


def test_up_to_five_rows_are_told_at_once_with_their_cells(write):
    path = write(HEADER, *(f"So {name} is,,he,she" for name in "ABCDEFG"))
    with pytest.raises(UserError) as caught:
        build(path)
    told = "; ".join(f"row {n} (line {n + 1}): corrupted is empty" for n in range(1, 6))
    assert str(caught.value) == f"{path}: {told} and 2 more"
    rows = [
        "So Paul is,So Paul is so, he, she",
        "So Paul is,So Mary is, he, she",
        "So Mary is,So John was not, he, she",
    ]
    with pytest.raises(UserError, match=r"row 1 .*clean has 3 tokens and corrupted 4.*; row 3 \(line 4\): clean has 3"):
        build(write(HEADER, *rows, name="lengths.csv"), tokenizer=pythia())


def test_answers_that_are_one_token_are_told(write):
    lowered = Tokenizer(models.WordLevel({"he": 0, "she": 1, "so": 2, "is": 3, "paul": 4, "mary": 5}, unk_token="she"))
    lowered.normalizer, lowered.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lowered)
    path = write(HEADER, "So Paul is,So Mary is, he; He, she")
    with pytest.raises(UserError, match=r"row 1 \(line 2\): answers: ' he' and ' He' are the same token; keep one"):
        build(path, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["clean,corrupted,answer,wrong_answers", GOOD],
            r"column 'answers' is missing; a table of prompts has clean, ",
        ),
        ([f"{HEADER},clean", f"{GOOD},x"], r"has the same column twice"),
        ([HEADER], r"holds no prompts"),
        ([""], r"column 'clean' is missing"),
        ([HEADER, '"So Paul'], r"cannot be read as a UTF-8 CSV"),
    ],
)
def test_a_file_that_is_no_prompts_csv_is_refused(write, lines, reason):
    with pytest.raises(UserError, match=rf"mine\.csv: {reason}"):
        build(write(*lines))


def test_a_missing_file_and_other_encodings_are_refused(write, tmp_path):
    with pytest.raises(UserError, match=r"none\.csv: no such file; a task is a built-in one or a prompts CSV"):
        build(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"mine\.csv: cannot be read as a UTF-8 CSV"):
        build(write(HEADER, GOOD.replace("Paul", "Zoë"), encoding="latin-1"))


def test_the_same_file_elsewhere_gives_the_same_prompts(tmp_path):
    copy = shutil.copy(EXAMPLE, tmp_path)
    first, second = (build_prompts(str(path), pythia(), 3, 7, metric="logit_diff") for path in (EXAMPLE, copy))
    assert first.texts == second.texts


IDS = "So Paul is such a good cook,So Mary is such a good cook,344,703"


@pytest.mark.parametrize(
    ("header", "row", "options"),
    [
        (HEADER, IDS, {"answers_as": "ids"}),
        (HEADER, '"So Paul is such a good cook",So Mary is such a good cook,344;344,[703]', {"answers_as": "ids"}),
        ("clean,corrupted,correct_idx,incorrect_idx", IDS, {}),
        ("clean,corrupted,word_idx,corrupted_word_idx,word,corrupted_word", f"{IDS},he,she", {}),
        ("clean,corrupted,clean_answer_idx,corrupted_answer_idx", IDS, {}),
    ],
)
def test_answers_that_are_ids_are_those_of_their_texts(write, header, row, options):
    """Also where EAP-IG's users name the columns; " he" is 344 and " she" 703 for Pythia."""
    of_text = build(write(HEADER, GOOD, name="text.csv"), tokenizer=pythia())
    task = get_task(write(header, row), **options)
    of_ids = task.build(pythia(), 1, 0, PromptOptions(prepend_bos=False))
    assert of_ids.answers.right.tolist() == of_text.answers.right.tolist() == [[344]]
    assert of_ids.answers.wrong.tolist() == of_text.answers.wrong.tolist() == [[703]]
    assert not [column for column in of_ids.meta if column.endswith("_idx")]


@pytest.mark.parametrize(
    ("header", "row", "reason"),
    [
        ("correct_idx,incorrect_idx", "344, she", r"row 2 \(line 3\): incorrect_idx is ' she', not a token id$"),
        ("correct_idx,incorrect_idx", "344,", r"row 2 \(line 3\): incorrect_idx is '', not a token id$"),
        (
            "correct_idx,incorrect_idx",
            "344,99999",
            r"row 2 .*incorrect_idx: 99999 is no token of this tokenizer",
        ),
        ("correct_idx,incorrect_idx", "344,344", r"row 2 .*' he' is both an answer and a wrong answer"),
        ("answers,wrong_answers", "344,703", r"row 2 .*'344' right after 'So.*ids everywhere with answers_as=ids"),
        ("answers,wrong_answers", " he,703", r"row 2 .*'703' right after 'So.*other answers are text"),
        (
            "correct_idx,wrong",
            "344,703",
            r"mine.csv: column 'incorrect_idx' is missing; .* has clean, corrupted, correct_idx, incorrect_idx$",
        ),
        ("right,incorrect_idx", "344,703", r"mine.csv: column 'correct_idx' is missing"),
        ("right,corrupted_word_idx", "344,703", r"mine.csv: column 'word_idx' is missing"),
        ("right,wrong", "344,703", r"mine.csv: column 'answers' is missing"),
    ],
)
def test_tables_that_mix_ids_and_text_are_refused_with_the_row(write, header, row, reason):
    first = "So John is such a good cook,So Anna is such a good cook," + (
        " he, she" if "answers" in header else "344,703"
    )
    path = write(f"clean,corrupted,{header}", first, f"So Paul is such a good cook,So Mary is such a good cook,{row}")
    with pytest.raises(UserError, match=reason):
        build(path, n=2, tokenizer=pythia())


def test_rows_that_all_mix_ids_and_text_are_refused(write, caplog):
    path = write(HEADER, "So John is such a good cook,So Anna is such a good cook, he,703")
    with pytest.raises(UserError, match=r"row 1 .*'703' right after 'So.*other answers are text"):
        build(path, n=1, tokenizer=pythia())
    assert not caplog.text


def test_ids_that_are_read_as_text_are_told(write, caplog):
    build(path := write(HEADER, IDS), tokenizer=pythia())
    assert f"{path}: all answers are numbers without a space; if they are token ids, pass answers_as=ids" in caplog.text
    caplog.clear()
    build(write(HEADER, "from 1732 to 17,from 1701 to 17,33;34,31;32"), tokenizer=pythia())
    assert not caplog.text


def test_ids_of_another_tokenizer_are_told_by_the_text_beside_them(write):
    path = write("clean,corrupted,he_idx,corrupted_he_idx,he,corrupted_he", f"{IDS},he,they")
    with pytest.raises(
        UserError, match=r"corrupted_he_idx: 703 is ' she' under this tokenizer, but corrupted_he is 't"
    ):
        build(path, tokenizer=pythia())
    path = write("clean,corrupted,he_idx,corrupted_he_idx,correct_idx,incorrect_idx", f"{IDS},344,703")
    with pytest.raises(UserError, match=r"he_idx and correct_idx may both be the answers"):
        build(path, tokenizer=pythia())


def test_tables_in_memory_hold_answers_in_arrays_and_none_may_be_empty():
    def task(answers, answers_as):
        table = {"clean": ["So Paul is such a good cook"], "corrupted": ["So Mary is such a good cook"]}
        return table_task(table | {"answers": [answers], "wrong_answers": [[]]}, "mine", "logit_diff", answers_as)

    for answers, answers_as in (
        (np.array([344, 345]), "ids"),
        ([np.int64(344)], "ids"),
        (np.array([" he", " it"]), "text"),
    ):
        with pytest.raises(UserError, match=r"^mine: row 1: wrong_answers is empty$"):
            task(answers, answers_as)
    for answers in ([], np.array([], int)):
        with pytest.raises(UserError, match=r"^mine: row 1: answers is empty$"):
            task(answers, "ids")
