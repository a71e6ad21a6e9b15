"""The tasks of the Mechanistic Interpretability Benchmark (MIB, arXiv 2504.13151), from its data sets on the hub.

| task | data set | corrupted prompt | answers |
|---|---|---|---|
| `mib_ioi` | `mib-bench/ioi` | subject and indirect object swapped | the two names |
| `mib_mcqa` | `mib-bench/copycolors_mcqa` | other letters for the choices | the letters |
| `mib_arithmetic_addition`, `mib_arithmetic_subtraction` | `mib-bench/arithmetic_...` | another problem | the results |
| `mib_arc_easy`, `mib_arc_challenge` | `mib-bench/arc_...` | other letters for the choices | the letters |

Prompts are drawn from the split `train`. Rows whose answers are not one token each, and different ones, or whose two
prompts are not equally long are left out. The benchmark takes the first token of a longer answer, and pads.

`meta` column: row, its number in the data set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from ..base.errors import UserError, one_line
from ..config.keys import USUAL_PROMPTS, PromptOptions
from .prompts import Pair, Task
from .sampling import draw
from .vocabulary import encode, say_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "mib_"
MOST = 2 * USUAL_PROMPTS
"""Of prompts, if nobody says how many: a circuit takes half of them to score edges, and half to evaluate."""
Cells = Mapping[str, Any]


class DataSet(NamedTuple):
    """Where a task's rows are, the column of the corrupted prompt, and (row, this column's cells) -> the answers."""

    name: str
    config: str | None
    corrupted: str
    answers: Callable[[Cells, Cells], tuple[str, str]]


def _names(row: Cells, _: Cells) -> tuple[str, str]:
    return f" {row['metadata']['indirect_object']}", f" {row['metadata']['subject']}"


def _letters(row: Cells, corrupted: Cells) -> tuple[str, str]:
    first, second = (str(one["choices"]["label"][one["answerKey"]]) for one in (row, corrupted))
    return first, second


def _results(row: Cells, corrupted: Cells) -> tuple[str, str]:
    return str(row["label"]), str(corrupted["label"])


DATA_SETS = {
    "ioi": DataSet("mib-bench/ioi", None, "s2_io_flip_counterfactual", _names),
    "mcqa": DataSet("mib-bench/copycolors_mcqa", "4_answer_choices", "symbol_counterfactual", _letters),
    "arithmetic_addition": DataSet("mib-bench/arithmetic_addition", None, "random_counterfactual", _results),
    "arithmetic_subtraction": DataSet("mib-bench/arithmetic_subtraction", None, "random_counterfactual", _results),
    "arc_easy": DataSet("mib-bench/arc_easy", None, "symbol_counterfactual", _letters),
    "arc_challenge": DataSet("mib-bench/arc_challenge", None, "symbol_counterfactual", _letters),
}


def pairs(
    task: str, tokenizer: PreTrainedTokenizerBase, n: int | None, seed: int, options: PromptOptions
) -> list[Pair]:
    """n distinct prompts, or all, at most `MOST`; a UserError for no such data set, or too few usable rows."""
    source, name = DATA_SETS[task], PREFIX + task
    usable, n_rows = [], 0
    for number, row in enumerate(_rows(source, name)):
        n_rows += 1
        if not row.get(source.corrupted) or row[source.corrupted]["prompt"] is None:
            continue  # Some problems of arithmetic have no other one.
        try:
            corrupted = row[source.corrupted]
            texts = (row["prompt"], corrupted["prompt"], *source.answers(row, corrupted))
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(f"task: {name}: row {number} of {source.name} has no {one_line(error)}") from None
        usable.append((number, texts))
    tokens = encode(tokenizer, [text for _, texts in usable for text in texts])
    found = []
    for place, (number, texts) in enumerate(usable):
        clean, other, right, wrong = tokens[4 * place : 4 * place + 4]
        if len(clean) == len(other) and len(right) == len(wrong) == 1 and right != wrong:
            where = f"{name}: row {number}"
            found.append(Pair(texts[0], texts[1], tuple(right), tuple(wrong), {"row": number}, where))
    if len(found) < n_rows:
        line = f"{name}: {len(found)} of {n_rows} rows can be used with this tokenizer; the others are left out"
        say_once(tokenizer, line)
    if not found:
        raise UserError(f"task: {name}: none of the {n_rows} rows can be used with this tokenizer; use another model")
    drawn = draw(name, [[len(found)]], min(len(found), MOST) if n is None else n, seed)
    return [found[number] for _, _, number in drawn]


@cache
def _rows(source: DataSet, name: str) -> Any:
    import datasets  # Slow to import.

    try:
        return datasets.load_dataset(source.name, source.config, split="train")
    except Exception as error:  # The library passes on errors of several others.
        raise UserError(
            f"task: {name}: the data set {source.name} cannot be loaded ({one_line(error)[:200]}); connect to the hub "
            f"once, or put a copy into the folder {source.name}"
        ) from error


TASKS: dict[str, Task] = {
    PREFIX + name: Task(
        PREFIX + name, partial(pairs, name), "logit_diff", label=f"{name.replace('_', ' ')} (MIB)", usual=None
    )
    for name in DATA_SETS
}
