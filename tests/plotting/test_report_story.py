"""The sentences of the first screen against hand-made tables, one for every way in which a task may turn out."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from circuits_over_time.plotting.parts.tables import Results
from circuits_over_time.plotting.plot_circuits import selected_circuits
from circuits_over_time.plotting.report.page import _story_html
from circuits_over_time.plotting.report.story import Sentence, sentence, story
from circuits_over_time.utils.results.store import Store
from tests.support.synthetic_comparison import CHANGED_AT, EMERGED
from tests.support.synthetic_comparison import STEPS as COMPARED

NAN = float("nan")
FOUND = {"n_edges": 12, "n_edges_low": 10, "n_edges_high": 14, "status": "found"}
UNLEARNED, UNREACHED = (
    {"n_edges": NAN, "n_edges_low": NAN, "n_edges_high": NAN, "status": status}
    for status in ("task not learned", "threshold not reached")
)
ONSET = {"step": 450, "after_step": 300, "low_step": 300, "high_step": 450, "reason": NAN}


def told(
    *circuits: dict[str, Any],
    onset: dict[str, Any] | None = ONSET,
    changed: tuple[bool, ...] = (),
    noise_low: float = 1.0,
    n_random: int = 20,
    n_beaten: int | None = 20,
    measured: bool = True,
) -> Sentence:
    """The sentence about circuits of the checkpoints 150, 300, ...; `changed` about their last ones."""
    rows = [row | {"step": 150 * (place + 1)} for place, row in enumerate(circuits)]
    compared = [row["step"] for row in rows][len(rows) - len(changed) :]
    changes = [
        {"step": step, "other_step": step - 150, "changed": flag, "noise_low": noise_low}
        for step, flag in zip(compared, changed, strict=True)
    ]
    random = (
        [] if n_beaten is None else [{"step": row["step"], "n_random": n_random, "n_beaten": n_beaten} for row in rows]
    )
    given = [] if onset is None else [onset]
    return sentence("toy", "sva", rows, given, pd.DataFrame(changes), pd.DataFrame(random), measured)


def test_a_learned_task_has_its_onset_size_chance_and_stability() -> None:
    said = told(UNLEARNED, FOUND, FOUND, FOUND, FOUND, changed=(False, True, False))
    assert said.text == (
        "Subject-verb agreement is learned between steps 300 and 450; its circuit has 12 edges (95%: 10 to 14), "
        "beats all 20 random circuits, and does not change by more than noise from step 600 on."
    )
    assert said.unsure == []
    assert (said.learned, said.changed) == ((300, 450), [600])


@pytest.mark.parametrize(
    ("circuits", "onset", "expected"),
    [
        ([UNLEARNED] * 3, None, "is never learned."),
        (
            [UNLEARNED] * 3,
            ONSET | {"step": NAN, "reason": "stays at or below chance"},
            "is never learned: its metric stays",
        ),
        ([FOUND, UNLEARNED], None, "is not learned at the last checkpoint, yet its circuit has 12 edges"),
    ],
)
def test_a_task_that_is_never_learned_says_so(
    circuits: list[dict[str, Any]], onset: dict[str, Any] | None, expected: str
) -> None:
    said = told(*circuits, onset=onset)
    assert said.text.startswith(f"Subject-verb agreement {expected}")
    assert said.learned is None


def test_a_task_learned_without_a_circuit_says_so() -> None:
    said = told(UNLEARNED, UNREACHED, UNREACHED)
    assert said.text.endswith("450; at no checkpoint does a circuit reach the threshold of faithfulness.")
    assert said.unsure == []


def test_a_circuit_no_better_than_chance_says_so() -> None:
    said = told(UNLEARNED, FOUND, n_beaten=17)
    assert said.text.endswith("is not shown to be better than chance: 3 of 20 random circuits do at least as well.")
    assert said.unsure == []
    few = told(UNLEARNED, FOUND, n_random=5, n_beaten=5)
    assert few.text.endswith("beats all 5 random circuits.")
    assert few.unsure == ["5 random circuits are too few to rule out chance"]
    assert told(UNLEARNED, FOUND, n_random=100, n_beaten=97).text.endswith("beats 97 of 100 random circuits.")
    alone = told(UNLEARNED, FOUND, n_beaten=None)
    assert "random" not in alone.text
    assert alone.unsure == ["the circuit was not compared with random ones"]


def test_a_circuit_that_changes_at_the_end_says_so() -> None:
    said = told(UNLEARNED, FOUND, FOUND, FOUND, changed=(False, True), noise_low=0.5)
    assert said.text.endswith("and still changes at the end, between steps 450 and 600.")
    assert said.unsure == []


def test_without_comparisons_the_status_says_when_a_task_is_learned() -> None:
    said = told(UNLEARNED, FOUND, UNLEARNED, FOUND, onset=None)
    assert "is learned between steps 450 and 600;" in said.text
    assert "change" not in said.text
    assert said.unsure == ["when it is learned has no interval; compare_circuits.py works one out"]
    first = told(UNLEARNED, FOUND, onset=None, measured=False)
    scripts = "get_model_task_performance.py, then compare_circuits.py work one out"
    assert first.unsure == [f"when it is learned has no interval; {scripts}"]
    assert told(FOUND, onset=None).text.startswith(
        "Subject-verb agreement is learned by the first checkpoint (step 150)"
    )


def test_what_is_unsure_has_its_interval() -> None:
    wide = told(UNLEARNED, FOUND | {"n_edges_high": 40}, onset=ONSET | {"low_step": 150, "high_step": NAN})
    assert wide.unsure == [
        "it is learned between step 150 and the last checkpoint or later (95%)",
        "the circuit may have 10 or 40 edges",
    ]
    open_ended = told(UNLEARNED, FOUND | {"n_edges_high": NAN})
    assert open_ended.unsure == ["the circuit's size has no interval"]
    alone = told(UNLEARNED, FOUND | {"status": "found, not confirmed"})
    assert alone.unsure == ["no larger circuit was tried to confirm the circuit's size"]
    noisy = told(FOUND, FOUND, FOUND, changed=(False, False), noise_low=0.6)
    assert "does not change by more than noise from step 150 on" in noisy.text
    assert noisy.unsure == ["prompts alone move its edges to an overlap of 0.60 (Jaccard); smaller changes do not show"]


def test_a_circuit_that_the_last_checkpoint_lacks_is_the_last_there_is() -> None:
    said = told(FOUND, FOUND, UNREACHED)
    assert (
        "its circuit has 12 edges (95%: 10 to 14) at step 300, the last at which there is one, beats all" in said.text
    )


def test_the_story_says_what_the_tables_hold(compared: Store) -> None:
    results = Results(compared, in_report=True)
    ioi, sva = story(results)
    # IOI's metric has no row of emergence there, so its status counts, which is empty: it is learned from the start.
    assert ioi.learned == (None, 0)
    place = EMERGED["sva prob_diff"]
    assert sva.learned == (COMPARED[place - 1], COMPARED[place])
    assert "(95%)" in sva.unsure[0]
    chosen = selected_circuits(results.table("faithfulness"), results.table("baselines"))
    for one in (ioi, sva):
        last = chosen[chosen["task"] == one.task].iloc[-1]
        assert f"its circuit has {last['n_edges']:.0f} edges" in one.text
        assert "1 of 5 random circuits do at least as well" in one.text
        assert one.changed == [step for step in CHANGED_AT if step > COMPARED[3]]
        assert f"does not change by more than noise from step {max(CHANGED_AT)} on" in one.text


def test_of_several_models_the_first_with_a_circuit_is_told_first() -> None:
    told = [Sentence(model, "sva", "Agreement", "Agreement is here.", [], None, []) for model in ("early", "later")]
    records = [{"model": model, "steps": [{"edges": edges}]} for model, edges in (("early", []), ("later", [[0, 1]]))]
    assert [
        part.partition("</summary>")[0] for part in _story_html(told, records).split("<details class='fold model'")
    ][1:] == ["><summary><h2>early</h2>", " open><summary><h2>later</h2>"]
    assert "early</h2>" in _story_html(told, records[:1]).partition(" open>")[2].partition("</details>")[0]
