"""Names of checkpoints, read as points in a training: branches and tags on the hub, folders on disk.

A name tells a step. It may also tell a training stage, the tokens seen, and which of several parallel runs it is from:
`step1000`, `checkpoint-500`, `stage1-step2000-tokens5B`, `stage2-ingredient1-step1000-tokens3B`.

Steps and tokens are counted over the whole training, whichever stages you ask for, so a checkpoint always has the same
key: the steps of a later stage follow the last step of the stage before. (If its first step is already beyond that, its
names count from the start of training.) Families with one stage keep the steps of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..base.errors import UserError

STEP = r"(?P<step>\d+k?)"
STAGE = r"stage(?P<stage>\d+)"
TOKENS = r"(?P<tokens>\d+(?:\.\d+)?[KMBT]?)"
RUN = r"(?P<run>\w+)"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
GENERAL = re.compile(
    rf"(?:{STAGE}[-_])?(?:step|checkpoint|ckpt|iter|iteration|global[-_]?step)[-_]?{STEP}(?:[-_]tokens?[-_]?{TOKENS})?"
)
"""How names are read if nothing else is known."""
GENERAL_NAMES = "step{n}, checkpoint-{n}, iter_{n}, global_step{n}"


@dataclass(frozen=True)
class Named:
    """What a checkpoint's name tells."""

    name: str  # the branch, tag or folder
    step: int
    stage: int = 1  # of training, from 1
    tokens: int | None = None  # seen in training
    run: str | None = None  # which of several runs of the stage it belongs to
    repository: str = ""  # where it is, for families in several repositories


@dataclass(frozen=True)
class TokensRule:
    """How to count the tokens of training."""

    per_step: Sequence[int] = ()  # stage by stage, the last also for the stages after it; if empty, the names tell
    at_zero: int = 0  # tokens seen at step 0, if that is not an untrained model
    stage_lengths: Sequence[int] = ()  # in steps, if known; otherwise a stage ends at the last published step


def naming_rule(text: str) -> re.Pattern[str]:
    """A regular expression for names, with the group `step` and maybe `stage`, `tokens`, `run`; else a UserError."""
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"revisions: '{text}' is not a regular expression ({error})") from None
    if "step" not in pattern.groupindex:
        raise UserError(f"revisions: '{text}' does not say which part is the step; write it as (?P<step>\\d+)")
    return pattern


def read_names(names: Iterable[str], pattern: re.Pattern[str], repository: str = "") -> list[Named]:
    """What names tell that match the pattern; a UserError if it takes something else for a number."""
    found = []
    for name in names:
        if match := pattern.fullmatch(name):
            groups = match.groupdict()
            found.append(
                Named(
                    name,
                    step=_number(groups["step"], name, "step"),
                    stage=_number(groups.get("stage") or "1", name, "stage"),
                    tokens=_number(groups["tokens"], name, "tokens") if groups.get("tokens") else None,
                    run=groups.get("run"),
                    repository=repository,
                )
            )
    return found


def timeline(
    named: Sequence[Named],
    source: str,
    rule: TokensRule | None = None,
    stages: Sequence[int] = (1,),
    tokens_per_step: int | None = None,
    *,
    tokens_needed: bool = True,
) -> dict[int, tuple[Named, int | None]]:
    """Step of the whole training -> checkpoint and the tokens that it has seen in the whole training, sorted.

    If two checkpoints have the same step, the first counts. `tokens_per_step` is used if neither the rule nor the names
    tell; with `tokens_needed` somebody must tell, otherwise the tokens are None where nobody does. It is a UserError if
    a stage is not published, or the tokens are unknown.
    """
    rule = rule or TokensRule()
    by_stage: dict[int, dict[int, Named]] = {}
    for one in named:
        by_stage.setdefault(one.stage, {}).setdefault(one.step, one)
    placed: dict[int, tuple[Named, int | None]] = {}
    start, before = 0, rule.at_zero  # steps and tokens of the stages before
    for stage in range(1, max(stages) + 1):
        if stage not in by_stage:
            there = ", ".join(map(str, sorted(by_stage)))
            raise UserError(f"stages: {source} has no stage {stage} (there: {there})")
        checkpoints = dict(sorted(by_stage[stage].items()))
        per_step = rule.per_step[min(stage, len(rule.per_step)) - 1] if rule.per_step else None
        counts_on = min(checkpoints) > start > 0
        offset = 0 if counts_on else start
        end, seen = start, before
        for step, one in checkpoints.items():
            end = step + offset
            if per_step is None and one.tokens is not None:
                seen = one.tokens if counts_on else before + one.tokens
            elif (each := per_step or tokens_per_step) is not None:
                seen = before + (end - start) * each
            elif not tokens_needed and stage == max(stages):
                if stage in stages:
                    placed.setdefault(end, (one, None))
                continue
            else:
                raise UserError(
                    f"tokens_per_step: {source} does not say how many tokens a step has; pass tokens_per_step=N"
                )
            if stage in stages:
                placed.setdefault(end, (one, seen))  # A stage's step 0 is the last step of the one before.
        if stage <= len(rule.stage_lengths):
            end, seen = start + rule.stage_lengths[stage - 1], before + rule.stage_lengths[stage - 1] * (per_step or 0)
        start, before = end, seen
    return placed


def refuse_several_runs(named: Sequence[Named], pattern: re.Pattern[str], source: str, stages: Sequence[int]) -> None:
    """If a stage was run several times, the config must say which run it means; else it is a UserError."""
    for stage in stages:
        runs = sorted({one.run for one in named if one.stage == stage and one.run is not None})
        if len(runs) > 1:
            chosen = pattern.pattern.replace(RUN, runs[0])
            raise UserError(
                f"stages: stage {stage} of {source} was run {len(runs)} times ({', '.join(runs)}); choose one by its "
                f"names, for example revisions='{chosen}'"
            )


def _number(text: str | None, name: str, what: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", (text or "").upper())
    if match is None:
        raise UserError(f"revisions: '{name}': its {what} is '{text or ''}', not a number; narrow the expression")
    return round(float(match[1]) * _UNITS[match[2]])
