"""One look per model, told apart with any colour vision."""

import itertools

import numpy as np
import plotly.graph_objects as go
import pytest

from circuits_over_time.plotting.parts.style import (
    finish,
    model_looks,
    model_order,
    task_order,
    within,
)
from circuits_over_time.plotting.parts.theme import SERIES, translucent
from circuits_over_time.utils.tasks import TASKS
from circuits_over_time.utils.tasks.metrics import METRICS
from circuits_over_time.utils.tasks.registry import task_label

STUDY = ("pythia-70m", "pythia-160m", "pythia-410m", "pythia-1.4b", "pythia-2.8b")
# Full deficiency, Machado, Oliveira and Fernandes 2009, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab(colour: str, vision: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of a colour as seen with a vision."""
    srgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = (vision @ linear).clip(0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ seen
    f = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISION)
def test_the_studys_models_differ_in_colour_with_any_colour_vision(vision: str) -> None:
    looks = model_looks(STUDY)
    for first, second in itertools.combinations(STUDY, 2):
        distance = np.linalg.norm(lab(looks[first].colour, VISION[vision]) - lab(looks[second].colour, VISION[vision]))
        assert distance > 12, (first, second)


def test_every_model_has_its_own_look_and_shape_tells_the_study_apart_in_grey() -> None:
    models = [*STUDY, "pythia-160m-seed1", "pythia-160m-seed2", "toy", "gpt2", *(f"own-{n}" for n in range(9))]
    looks = model_looks(models)
    assert len(set(looks.values())) == len(models)
    assert len({looks[model].symbol for model in STUDY}) == len(STUDY)


def test_a_pythia_size_looks_the_same_whatever_else_is_there() -> None:
    alone, together = model_looks(["pythia-410m"]), model_looks([*STUDY, "toy", "pythia-410m-seed9"])
    assert alone["pythia-410m"] == together["pythia-410m"]
    assert together["pythia-410m-seed9"].colour == alone["pythia-410m"].colour
    assert together["pythia-410m-seed9"].dash != alone["pythia-410m"].dash


def test_models_are_ordered_by_size_and_tasks_as_in_the_study() -> None:
    assert model_order(reversed(STUDY)) == list(STUDY)
    assert task_order(["sva", "my_prompts", "ioi", "greater_than"]) == ["ioi", "greater_than", "sva", "my_prompts"]


def test_ranges_hold_the_values_up_to_the_limits() -> None:
    limits, cut = within([0.1, 0.9, float("nan")], 0, 2)
    assert (limits[0] < 0.1, limits[1] > 0.9, cut) == (True, True, False)
    limits, cut = within([0.1, 50.0], 0, 2)
    assert (limits[1] == pytest.approx(2.095), cut) == (True, True)


def test_bands_keep_the_colour_of_their_line() -> None:
    assert translucent("#0072B2", 0.2) == "rgba(0,114,178,0.2)"
    assert len(set(SERIES)) == len(SERIES)


def test_every_task_and_metric_of_the_registries_has_its_label() -> None:
    assert [task_label(name) for name in TASKS] == ["IOI", "Greater-than", "Gendered pronoun", "Subject-verb agreement"]
    assert task_label("my_prompts") == "my prompts"
    assert METRICS["logit_diff"].label == "logit difference (logits)"
    assert all(metric.label for metric in METRICS.values())


@pytest.mark.parametrize(("n_entries", "n_rows"), [(2, 1), (4, 2), (6, 3)])
def test_a_legend_of_several_rows_gets_the_room_for_them(n_entries: int, n_rows: int) -> None:
    traces = [go.Scatter(name=f"an entry with a long name, {i}") for i in range(n_entries)]
    height = finish(go.Figure(traces), "Title", width=600, height=300).titled().layout.height
    one_row = finish(go.Figure(traces[:1]), "Title", width=600, height=300).titled().layout.height
    assert height - one_row == 30 * (n_rows - 1)
