"""The kinds of results: what their tables hold, which files come with them, and which command makes them.

`kinds.toml` lists them; to add one, write it there. The store refuses tables with other columns, and `make docs` takes
the meanings over into docs/results.md.
"""

from __future__ import annotations

import tomllib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from ..base.errors import suggest


@dataclass(frozen=True)
class ResultSchema:
    """One kind of result."""

    name: str  # of its folder, `results/<name>/...`
    columns: Mapping[str, str]  # those of its tables after `model, step, tokens`: name -> meaning
    script: str  # the root script that writes it
    config: str = ""  # how the names of that script's configs start; empty if they start with the task's name
    companions: Mapping[str, str] = field(default_factory=dict)  # files next to a checkpoint's table: suffix -> meaning
    # Tables about all checkpoints of a model: file name without ending -> column (after `model`) -> meaning.
    summaries: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    added: Sequence[str] = ()  # columns that tables of earlier versions lack: they are read as empty
    optional: Sequence[str] = ()  # the last columns, which only some tables have
    texts: Sequence[str] | None = None  # columns of text; the others hold numbers or true and false. None: nobody says
    may_be_empty: Sequence[str] = ()  # of `layer` and `head`, those that are empty in rows that are not about a head
    never_empty: bool = False  # whether a table has at least one row
    one_row: bool = False  # whether it has at most one
    # Of the definitions of its numbers. Raise it by one when a change to the code moves them, or adds to them: results
    # of another version are then refused.
    version: int = 1

    def columns_of(self, table: Container[str]) -> list[str]:
        """The columns that a table must have: all but those optional ones that it lacks."""
        return [name for name in self.columns if name in table or name not in self.optional]


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_ALL = {name: ResultSchema(name, **entries) for name, entries in _FILE.items()}
WITHOUT_STEPS = (_ALL.pop("checks"),)
"""Kinds of results about all checkpoints at once: they have summaries only, and the report has no use for them."""
KINDS: dict[str, ResultSchema] = _ALL
"""The kinds of results that have a table for each checkpoint, by name."""

Status = Literal["found", "found, not confirmed", "given", "task not learned", "threshold not reached"]
"""Whether there is a circuit, or why not: the words of the column `status`, the console, figures and the report."""
STATUSES: tuple[Status, ...] = get_args(Status)
FOUND, UNCONFIRMED, GIVEN, NOT_LEARNED, NOT_REACHED = STATUSES
WITH_CIRCUIT = (FOUND, UNCONFIRMED, GIVEN)

ROLES = ("name_mover", "copy_suppression", "negative_name_mover", "s_inhibition", "induction", "duplicate_token")
"""What heads do in IOI: the words of the column `role`, in the order of the algorithm's levels."""

GRAPHS = KINDS["graphs"]
FAITHFULNESS = KINDS["faithfulness"]
BASELINES = KINDS["baselines"]
CONTROLS = KINDS["controls"]
PROMPT_GROUPS = KINDS["prompt_groups"]
HYPOTHESIS_TESTS = KINDS["hypothesis_tests"]
TRANSFER = KINDS["transfer"]
IOI_CONSISTENCY = KINDS["ioi_consistency"]
IOI_CONSISTENCY_HEADS = KINDS["ioi_consistency_heads"]
IOI_CONSISTENCY_SIGNALS = KINDS["ioi_consistency_signals"]
IOI_BACKUP = KINDS["ioi_backup"]


def find_kind(kind: str | ResultSchema) -> ResultSchema:
    """A kind by its name; a ValueError if there is none."""
    if isinstance(kind, ResultSchema):
        return kind
    if kind not in KINDS:
        raise ValueError(f"'{kind}' is not a kind of result{suggest(kind, KINDS)}")
    return KINDS[kind]
