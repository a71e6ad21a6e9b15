"""Scores of attention heads: how figures name them, above which value a head plays a role, and all in one table."""

from typing import NamedTuple

import pandas as pd

from circuits_over_time.utils.results.commands import how_to_make

from .tables import NotMeasured, Results


class HeadScore(NamedTuple):
    """A kind of score: above the threshold a head is said to play the role.

    The threshold is the study's where it gives one (arXiv 2407.10827), else more than half of the attention, or of the
    pairs. `name` is that of the score in a sentence.
    """

    title: str
    unit: str
    threshold: float
    role: str
    name: str

    @property
    def meaning(self) -> str:
        """What a head of the role has."""
        return f"{self.name} above {self.threshold:g}{'%' if self.unit.startswith('%') else ''}"


ATTENTION, TOP_5 = "attention probability", "% of names in top 5"
# In the order of the figure.
SCORES = {
    "induction": HeadScore("Induction", ATTENTION, 0.5, "induction", "induction score"),
    "previous_token": HeadScore("Previous token", ATTENTION, 0.5, "previous token", "previous-token score"),
    "duplicate_token": HeadScore("Duplicate token", ATTENTION, 0.5, "duplicate token", "duplicate-token score"),
    "copy": HeadScore("Copying (name movers)", TOP_5, 10.0, "copying", "copy score"),
    "negative_copy": HeadScore("Negative copying", TOP_5, 10.0, "negative copying", "negative copy score"),
    "succession": HeadScore("Succession", "share of pairs", 0.5, "succession", "succession score"),
    "cspa": HeadScore("Copy suppression (CSPA)", "share of effect recovered", 0.1, "copy suppression", "CSPA score"),
}
# Tables of one score each: kind -> the score's name.
SINGLE = {"successor": "succession", "cspa": "cspa"}


def score_label(score: str) -> tuple[str, str]:
    """Title and unit of a score."""
    return SCORES[score][:2] if score in SCORES else (score.replace("_", " "), "score")


def head_scores(results: Results) -> pd.DataFrame:
    """All scores in one table: `model, step, tokens, score, layer, head, value, se, chance`, and any kind's `reason`.

    `se` is the standard error of the value, `chance` the value of a head that knows nothing.

    Raises:
        NotMeasured: if no kind of head score has results.
    """
    frames = []
    for kind in ("components", *SINGLE):
        table = results.table_if_any(kind, note=True)
        if table is None:
            continue
        if kind in SINGLE:
            table = table.rename(columns={"score": "value", "score_se": "se"}).assign(score=SINGLE[kind])
        if "chance" not in table:  # Copy suppression is 0 where nothing of the head is kept.
            table = table.assign(chance=0.0)
        columns = ["model", "step", "tokens", "score", "layer", "head", "value", "se", "chance"]
        # Results of earlier versions may lack the standard error.
        frames.append(table.reindex(columns=[*columns, "reason"] if "reason" in table else columns))
    if not frames:
        root = results.store.root
        raise NotMeasured(f"{root} holds no head scores; run: {how_to_make(root, 'components')}")
    return pd.concat(frames, ignore_index=True)
