"""A task from a CSV of prompt pairs, or from such a table in memory. It has all rows, unless a number is asked for.

The columns are `clean, corrupted, answers, wrong_answers`; the last two hold one or more answers separated by ";". An
answer is taken literally and must continue the clean prompt as exactly one token: a new word has its leading space
(" he; she"), and an answer without one continues the last word ("Q" after "(BB"). Any other column becomes a column of
`meta`. Every row is checked, even those that a run does not draw. One that says the same as an earlier one is dropped.

With `answers_as: ids` answers are token ids. So are those of files made for EAP-IG, whose columns are `correct_idx,
incorrect_idx` or named by a word (`country_idx, corrupted_country_idx`; `clean_answer_idx, corrupted_answer_idx`).
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError, closest, did_you_mean, shortened
from ..config.keys import AnswersAs, PromptOptions
from .metrics import DIFFERENTIABLE
from .prompts import MetricFunction, Pair, Task, token_rows
from .sampling import draw
from .vocabulary import encode, refuse, unknown_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS: tuple[str, ...] = ("clean", "corrupted", "answers", "wrong_answers")

log = logging.getLogger(__name__)
_already_logged: set[str] = set()


@dataclass(frozen=True)
class Row:
    """One row of the file: where it is, its cells, its answers as text or all as token ids, and its other columns."""

    where: str
    clean: str
    corrupted: str
    answers: tuple[Any, ...]
    wrong_answers: tuple[Any, ...]
    meta: dict[str, Any]
    columns: tuple[str, str]  # of the answers


def csv_task(path: Path, metric: str, answers_as: AnswersAs = "text") -> Task:
    """The task of a prompts CSV, which is read when prompts are built; a UserError for no such file or metric."""
    if metric not in DIFFERENTIABLE:
        if not path.exists():
            raise UserError(_no_such(path))
        ways = " or ".join(DIFFERENTIABLE)
        raise UserError(f"metric: {metric!r} cannot be used for the prompts of {path}; set it to {ways}")
    read = partial(read_rows, path, answers_as)
    return Task(path.stem, partial(pairs, path.name, read), metric, source=path, usual=None)


def table_task(
    table: Mapping[str, Sequence[Any]], name: str, metric: str | MetricFunction, answers_as: AnswersAs = "text"
) -> Task:
    """The same task from columns in memory, where an answer may also be a list of answers. It draws the rows that
    `<name>.csv` with these rows would. It is a UserError if a column is missing, or a row cannot be used.
    """
    n = len(next(iter(table.values()), ()))
    if unequal := [column for column in table if len(table[column]) != n]:
        raise UserError(f"{name}: {unequal[0]} has {len(table[unequal[0]])} rows, the column before it {n}")
    # None is a missing value, as in a data frame: only a row of a CSV can have too few cells.
    filled = {column: [nan if value is None else value for value in values] for column, values in table.items()}
    cells = [(f"row {row + 1}", {column: values[row] for column, values in filled.items()}) for row in range(n)]
    rows = check_rows(name, list(table), cells, answers_as)
    return Task(name, partial(pairs, f"{name}.csv", lambda: rows), metric, usual=None)


def pairs(
    name: str,
    read: Callable[[], list[Row]],
    tokenizer: PreTrainedTokenizerBase,
    n: int | None,
    seed: int,
    options: PromptOptions,
) -> list[Pair]:
    """n distinct rows, or all, in seeded order, the first k those of k; a UserError names a bad row, and why."""
    rows = read()
    chosen = [number for _, _, number in draw(name, [[len(rows)]], len(rows) if n is None else n, seed)]
    right = _tokens(tokenizer, rows, "answers")
    wrong = _tokens(tokenizer, rows, "wrong_answers")
    every = [
        Pair(row.clean, row.corrupted, a, w, row.meta, row.where) for row, a, w in zip(rows, right, wrong, strict=True)
    ]
    token_rows(tokenizer, every, options.prepend_bos)  # Also those that are not drawn.
    return [every[number] for number in chosen]


def read_rows(path: Path, answers_as: AnswersAs = "text") -> list[Row]:
    """Read and check the file, with rows from 1 below the header; a UserError for none, or as `check_rows`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or [])
            cells = [(reader.line_num, row) for row in reader]
    except FileNotFoundError:
        raise UserError(_no_such(path)) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a UTF-8 CSV: {error}") from None
    rows = [(f"row {n} (line {line})", row) for n, (line, row) in enumerate(cells, 1)]
    return check_rows(str(path), header, rows, answers_as)


def _no_such(path: Path) -> str:
    return f"task: {path}: no such file{near_files(path) or '; a task is a built-in one or a prompts CSV'}"


def near_files(path: Path) -> str:
    """The way out of the name of a prompts CSV that there is not: the CSV of the folder that looks most like it."""
    try:
        names = [item.name for item in path.parent.iterdir() if item.suffix.lower() == ".csv"]
    except OSError:
        return f"; there is no folder {path.parent}"
    return did_you_mean(name and str(path.parent / name)) if (name := closest(path.name, names)) else ""


def answer_columns(source: str, header: Sequence[str]) -> tuple[str, str]:
    """The columns of right and wrong answers, one perhaps missing; a UserError if two pairs may be them."""
    indices = [name.removeprefix("corrupted_") for name in header if name.endswith("_idx")]
    pairs = {name: f"corrupted_{name.removeprefix('clean_')}" for name in indices if name != "incorrect_idx"}
    if {"correct_idx", "incorrect_idx"} & {*header}:
        pairs["correct_idx"] = "incorrect_idx"
    found = [pair for pair in [(COLUMNS[2], COLUMNS[3]), *pairs.items()] if {*pair} <= {*header}]
    if len(found) > 1 and found[0] != COLUMNS[2:]:
        raise UserError(f"{source}: {found[0][0]} and {found[1][0]} may both be the answers; keep one pair")
    if not found and len(pairs) == 1 and not {*COLUMNS[2:]} & {*header}:
        found = list(pairs.items())
    return found[0] if found else (COLUMNS[2], COLUMNS[3])


def check_rows(
    source: str, header: Sequence[str], cells: Sequence[tuple[str, dict[str, Any]]], answers_as: AnswersAs = "text"
) -> list[Row]:
    """Rows of a table of prompts, from where each is and its column -> cell; `source` names the table in errors.

    It is a UserError if a column is missing or there twice, there are no rows, or a row has an empty cell, another
    number of cells than the header, or the prompts of another row with other answers.
    """
    columns = (*COLUMNS[:2], *(of_answers := answer_columns(source, header)))
    ids = answers_as == "ids" or columns != COLUMNS
    if missing := [column for column in columns if column not in header]:
        raise UserError(f"{source}: column {missing[0]!r} is missing; a table of prompts has {', '.join(columns)}")
    if len(set(header)) != len(header):
        raise UserError(f"{source}: has the same column twice: {', '.join(header)}")
    if not cells:
        raise UserError(f"{source}: holds no prompts")
    rows: list[Row] = []
    problems, repeats = list[str](), list[str]()
    seen: dict[tuple[str, str], tuple[int, tuple[Any, ...]]] = {}
    for number, (place, row) in enumerate(cells, start=1):
        where, pair = f"{source}: {place}", (row["clean"], row["corrupted"])
        if (problem := _problem(row, len(header), columns, ids)) is None:
            answers = (_answers(row[columns[2]], ids), _answers(row[columns[3]], ids))
            first, before = seen.setdefault(pair, (number, answers))
            if before != answers:
                problem = f"repeats the prompts of row {first} with other answers: {row['clean']!r}"
        if problem is not None:
            problems.append(f"{where}: {problem}")
        elif first != number:
            repeats.append(place)
        else:
            meta = {column: value for column, value in row.items() if column not in columns}
            rows.append(Row(where, *pair, *answers, meta, of_answers))
    bare = [] if ids else [row for row in rows if _like_ids(row)]
    if bare and not all(answer.isdecimal() for row in rows for answer in row.answers + row.wrong_answers):
        number = next(answer for answer in bare[0].answers + bare[0].wrong_answers if answer.isdecimal())
        problems.append(
            f"{bare[0].where}: {number!r} right after {bare[0].clean!r} looks like a token id, and other answers are "
            "text; write a number with its leading space, or ids everywhere with answers_as=ids"
        )
    refuse(problems)
    if bare:
        _warn_once(f"{source}: all answers are numbers without a space; if they are token ids, pass answers_as=ids")
    if repeats:
        line = f"{source}: {len(repeats)} of {len(cells)} rows repeat an earlier one and are dropped"
        _warn_once(f"{line}: {shortened(repeats, 5)}")
    return rows


def _like_ids(row: Row) -> bool:
    """Whether answers in text are rather ids: numbers that would go on right after the last letter of a prompt."""
    return row.clean[-1:].isalpha() and any(answer.isdecimal() for answer in row.answers + row.wrong_answers)


def _warn_once(line: str) -> None:
    """Log a warning, once: prompts are built more than once in a run."""
    if line not in _already_logged:
        _already_logged.add(line)
        log.warning("%s", line)


def _problem(row: dict[str, Any], n_columns: int, columns: Sequence[str], ids: bool) -> str | None:
    """What is wrong with a row's cells, if anything."""
    if None in row or any(cell is None for cell in row.values()):  # Cells may be arrays.
        return f"does not have as many cells as the header ({n_columns})"
    for column in columns:
        of_answers = column in columns[2:]
        values = _answers(row[column], ids) if of_answers else (row[column],)
        if of_answers and ids:
            if wrong := [value for value in values if isinstance(value, bool) or not isinstance(value, int)]:
                return f"{column} is {wrong[0]!r}, not a token id"
            if not values:
                return f"{column} is empty"
            continue
        if wrong := [text for text in values if not isinstance(text, str)]:
            hint = "; if it is a token id, pass answers_as=ids" if isinstance(wrong[0], int) and of_answers else ""
            return f"{column} is {wrong[0]!r}, not text{hint}"
        if not any(text.strip() for text in values):
            return f"{column} is empty"
        if not all(text.strip() for text in values):
            return f"{column}: an answer between two ';' is empty"
    return None


def _answers(cell: Any, ids: bool) -> tuple[Any, ...]:
    """The answers of a cell, each once: parts between ";", or the items of a list or an array.

    Ids may also be written as a list, "[344, 703]"; what is none stays text.
    """
    cell = cell.tolist() if hasattr(cell, "tolist") else cell
    if isinstance(cell, str):
        cell = re.split("[;,]", cell.strip("[]")) if ids else cell.split(";")
    listed = cell if isinstance(cell, list | tuple) else [cell]
    listed = [one.tolist() if hasattr(one, "tolist") else one for one in listed]
    if ids:
        listed = [int(one) if isinstance(one, str) and re.fullmatch(r" *[0-9]{1,9} *", one) else one for one in listed]
    return tuple(item for number, item in enumerate(listed) if item not in listed[:number])


def _tokens(tokenizer: PreTrainedTokenizerBase, rows: list[Row], column: str) -> list[tuple[int, ...]]:
    """The token of every answer in every row, each after its own clean prompt."""
    answers = attrgetter(column)
    if isinstance(answers(rows[0])[0], int):
        return _known_ids(tokenizer, rows, COLUMNS.index(column) - 2)
    prompts = encode(tokenizer, [row.clean for row in rows])
    joined = iter(encode(tokenizer, [row.clean + answer for row in rows for answer in answers(row)]))
    unknown = unknown_token(tokenizer)
    found, problems = [], []
    for row, prompt in zip(rows, prompts, strict=True):
        tokens: dict[int, str] = {}
        for answer in answers(row):
            whole = next(joined)
            if not prompt or not whole:
                empty = answer if prompt else row.clean
                problems.append(
                    f"{row.where}: the tokenizer produces no tokens for {empty!r}; check the model's tokenizer files"
                )
            elif whole[:-1] != prompt or whole[-1] == unknown:
                problems.append(f"{row.where}: {_not_a_token(row.clean, answer, prompt, whole)}")
            elif (other := tokens.setdefault(whole[-1], answer)) != answer:
                problems.append(f"{row.where}: {column}: {other!r} and {answer!r} are the same token; keep one")
        found.append(tuple(tokens))
    refuse(problems)
    return found


def _known_ids(tokenizer: PreTrainedTokenizerBase, rows: list[Row], side: int) -> list[tuple[int, ...]]:
    """The ids of the right (0) or wrong (1) answers in every row.

    It is a UserError if the tokenizer lacks one, or one is not how its text begins. EAP-IG's users have the text of
    `country_idx` in `country`: the ids of another model's tokenizer would give wrong numbers without a word.
    """
    known, found, problems = set(tokenizer.get_vocab().values()), [], []
    for row in rows:
        found.append((row.answers, row.wrong_answers)[side])
        beside = row.columns[side].removesuffix("_idx")
        text = row.meta.get(beside)
        for token in found[-1]:
            where = f"{row.where}: {row.columns[side]}: {token}"
            if token not in known:
                problems.append(f"{where} is no token of this tokenizer, whose ids go up to {max(known)}")
                continue
            decoded = str(tokenizer.decode([token]))
            if isinstance(text, str) and not text.strip().startswith(decoded.strip(" \ufffd")):
                problems.append(
                    f"{where} is {decoded!r} under this tokenizer, but {beside} is {text!r}; take the ids' own "
                    f"tokenizer, or rename the column {beside}"
                )
    refuse(problems)
    return found


def _not_a_token(clean: str, answer: str, prompt: list[int], whole: list[int]) -> str:
    """Why an answer cannot be asked for after a prompt, and how to write it."""
    extra = len(whole) - len(prompt)
    reason = f"{extra} tokens" if extra > 1 and whole[: len(prompt)] == prompt else "not a token of its own"
    hint = ""
    if clean[-1:].isspace():
        hint = f"; the prompt ends with a space: end it before that, and write {' ' + answer.lstrip()!r}"
    elif not answer.startswith(" "):
        hint = f"; write {' ' + answer!r}, with the leading space"
    return f"{answer!r} is {reason} after {clean!r}{hint}"
