"""How long a sweep takes by a model's shape, against numbers worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

import get_greater_than_consistency
from circuits_over_time.utils.circuits.keys import USUAL_POINTS, CircuitsConfig, EapConfig, passes
from circuits_over_time.utils.config.keys import result_settings
from circuits_over_time.utils.models.tokenizers import WordTokenizer
from circuits_over_time.utils.sweep import times
from circuits_over_time.utils.sweep.estimate import Needed, refuse_unfit
from circuits_over_time.utils.sweep.plan import Job, plan
from circuits_over_time.utils.tasks import TASKS, tasks_of
from circuits_over_time.utils.tasks.prompts import token_rows
from get_circuits_over_time import ANALYSIS
from tests.support.loading import instant_waits, point_at
from tests.support.paths import TOY
from tests.support.task_tokenizers import pythia

# The toy family has 4 layers: weights of attention and of the MLP, two norms, and biases; then the last norm.
IN_BLOCKS = 4 * (4 * 128**2 + 2 * 128 * 256 + 4 * 128 + 4 * 128 + 256 + 128) + 2 * 128
PASSES = 3 * USUAL_POINTS + 15


def sweep_of(folder: Path, **keys: object):
    fixed = {"model": str(TOY), "results_dir": str(folder), "device": "cpu", "cpus_per_checkpoint": 1}
    config = CircuitsConfig(**{**fixed, **keys})
    (sweep,) = plan([Job(ANALYSIS, config)])
    return sweep


def test_passes_are_those_of_the_benchmarks() -> None:
    def of(**keys: object) -> float:
        return passes(CircuitsConfig(model="m", task="ioi", evaluate_on="same", **keys), n_layers=2)

    assert of(n_random=0) == 3 * USUAL_POINTS + 15
    assert of(n_random=0, eap={"method": "ceap"}) == 3 * 20 + 15
    assert of(n_random=10, eap={"ig_steps": 5}, search={"mib": True}) == 15 + 15 + 7 + 7
    assert of(n_random=0, eap={"ig_steps": 20}, search={"sizes": [10, 20]}) == 60 + 1 + 0.7
    assert of(n_random=0, eap={"ig_steps": 20}, ablation="mean") == 60 + 15 + 1  # the pass over the reference prompts
    assert of(n_random=0, eap={"ig_steps": 20}, ablation="zero") == 60 + 15
    assert of(n_random=10, eap={"ig_steps": 20}, accumulate_evaluation="model") == 60 + 1 + 50 * (14 + 7)
    assert of(n_random=0, eap={"method": "exact"}) == 0
    assert of(n_random=0, eap={"method": "eap_ig_activations"}) == 3 * 5 * (2 * 2 + 1) + 15


def test_time_follows_from_parameters_tokens_and_passes(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, task=["ioi", "sva"], n_random=0, n_prompts=30)
    needed = refuse_unfit(sweep)
    operations = needed.operations
    (job,) = sweep.jobs
    for task in tasks_of(job.config):
        prompts = task.build(sweep.family.describe(0).tokenizer, 60, 0, job.config)
        # Scores take the first half of the prompts, and circuits the other.
        expected = 2 * IN_BLOCKS * PASSES * int(prompts.lengths.sum()) / 2
        assert operations[job, task.name] == pytest.approx(expected, rel=0.02)  # The file has a header.
    ioi, sva = (operations[job, name] / 35e9 for name in ("ioi", "sva"))
    total = int(3 * (ioi + sva))
    assert times.needs(sweep, needed).splitlines()[2:] == [
        f"  time: about 00:{total:02d}, from the model's shape, without loading",
        f"    a checkpoint: ioi {ioi:.1f} s, sva {sva:.1f} s",
    ]


def test_what_others_of_a_suite_measure_is_counted_once(tmp_path: Path) -> None:
    fixed = {"model": str(TOY), "results_dir": str(tmp_path), "device": "cpu"}
    reads = get_greater_than_consistency.ANALYSIS
    configs = {stored: reads.schema(**fixed, require_stored=stored) for stored in (False, True)}

    def of(*tasks: str, stored: bool = False) -> float:
        own = Job(reads, configs[stored])
        others = [Job(ANALYSIS, CircuitsConfig(**fixed, task=[*tasks]))] if tasks else []
        (sweep,) = plan([*others, own])
        return refuse_unfit(sweep).operations[sweep.jobs[-1], None]

    assert of() > 2 * of(stored=True)
    assert of("sva") == of()
    assert of("sva", "greater_than") == of(stored=True)


def test_measured_times_win(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, task=["ioi", "sva"], n_prompts=30)
    (job,) = sweep.jobs
    times.Times(job).add(sweep.family, 0, "ioi", 80)
    told = times.needs(sweep, Needed({(job, "ioi"): 35e9, (job, "sva"): 35e9 * 20}))
    assert "time: about 05:00, as measured here before or from the model's shape, without loading\n" in told
    assert "a checkpoint: ioi 01:20, sva 00:20 (shape)\n" in told
    told = times.needs(sweep, Needed())
    assert "time: about 04:00 for 3 of 6 measurements, as measured here before, without loading\n" in told


def test_a_model_of_the_same_name_elsewhere_has_other_times(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, task="ioi", n_prompts=30)
    other = tmp_path / TOY.name
    other.symlink_to(TOY)
    (job,) = sweep.jobs
    kept = times.Times(job)
    kept.add(sweep.family, 0, "ioi", 80)
    assert kept.usual(sweep.family) == {"ioi": 80}
    assert kept.usual(sweep_of(tmp_path, model=str(other), task="ioi", n_prompts=30).family) == {}


def test_a_gpu_elsewhere_has_the_speed_of_a_usual_one_and_is_said_to(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, task="ioi", executor="slurm", device="auto", gpus_per_checkpoint=1)
    (job,) = sweep.jobs
    speed = times.FLOP_PER_SECOND["cuda"]["float32"]
    told = times.needs(sweep, Needed({(job, "ioi"): 20 * speed}))
    assert "time: about 01:00, from the model's shape on a usual GPU (cuda), without loading\n" in told
    assert times.flop_per_second(job.config.model_copy(update={"dtype": "bfloat16"}))[0] > speed


def test_a_gpu_that_is_here_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = sweep_of(tmp_path, task="ioi", device="cuda")
    (job,) = sweep.jobs
    measured = times._measured_speed
    monkeypatch.setattr(times.sys, "platform", "darwin")
    monkeypatch.setattr(times, "_measured_speed", lambda device, dtype: measured("cpu", dtype))
    speed, words = times.flop_per_second(job.config)
    assert words == " and a product of matrices on this GPU"
    assert 1e8 < speed < 1e14


@pytest.mark.parametrize("task", ["ioi", "greater_than", "gendered_pronoun", "sva"])
def test_words_are_counted_about_as_pythia_counts_tokens(task: str) -> None:
    lengths = []
    for tokenizer in (WordTokenizer(), pythia()):
        pairs = TASKS[task].pairs(tokenizer, 40, 0, CircuitsConfig(model="m", task=task))
        lengths.append(sum(map(len, token_rows(tokenizer, pairs)[0])))
    assert lengths[0] == pytest.approx(lengths[1], rel=0.15)


def test_a_known_model_that_is_not_here_has_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", monkeypatch)
    instant_waits(monkeypatch)
    sweep = sweep_of(tmp_path, model="pythia-160m", task=["ioi", "sva"], checkpoints=[512, 1000], n_random=0)
    (job,) = sweep.jobs
    needed = refuse_unfit(sweep)
    operations = needed.operations
    in_blocks = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    prompts = TASKS["ioi"].pairs(pythia(), 200, 0, job.config)
    tokens = sum(map(len, token_rows(pythia(), prompts)[0])) / 2
    assert operations[job, "ioi"] == pytest.approx(2 * in_blocks * PASSES * tokens, rel=0.15)
    assert operations[job, "sva"] > 0


def test_a_dry_run_predicts_what_fits_on_usual_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_at("http://127.0.0.1:1", monkeypatch)
    instant_waits(monkeypatch)

    def cards(**keys: object) -> dict[int, tuple[float, int] | None]:
        told = refuse_unfit(sweep_of(tmp_path, task="ioi", checkpoints=[512], **keys)).cards
        found: dict[int, tuple[float, int] | None] = {}
        for card, peak, pairs in re.findall(r"(\d+) GB: (?:([\d.]+) GB, (\d+) pairs? at once|too small)", told):
            found[int(card)] = (float(peak), int(pairs)) if peak else None
        return found

    twelve = {dtype: cards(model="pythia-12b", dtype=dtype) for dtype in ("float32", "bfloat16")}
    assert [list(of_dtype) for of_dtype in twelve.values()] == [[24, 48, 80]] * 2
    assert twelve["bfloat16"][24] is None
    assert twelve["float32"][24] is None
    for of_dtype, weights in (("float32", 47.4), ("bfloat16", 23.7)):
        for card, told in twelve[of_dtype].items():
            assert told is None or weights < told[0] <= card
    (peak_48, pairs_48), (peak_80, pairs_80) = (twelve["bfloat16"][card] or (0, 0) for card in (48, 80))
    assert 0 < pairs_48 < pairs_80
    assert peak_48 < peak_80
    keys = {"model": "pythia-12b", "dtype": "bfloat16", "device": "auto", "device_map": "auto"}
    several = refuse_unfit(sweep_of(tmp_path, task="ioi", checkpoints=[512], **keys)).cards
    on_24, *others = re.findall(r"\d+ GB: (?:(\d) cards, at most )?([\d.]+) GB, \d+ pairs? at once", several)
    assert 23.7 / 2 < float(on_24[1]) <= 24
    assert on_24[0] == "2"
    assert [(n, float(peak)) for n, peak in others] == [("", peak_48), ("", peak_80)]
    for model in ("pythia-2.8b", "pythia-6.9b"):
        assert all(cards(model=model, dtype="bfloat16").values())


@pytest.mark.parametrize(
    ("keys", "steps"),
    [
        ({}, "auto"),
        ({"quadrature": "left"}, "auto"),
        ({"quadrature": "midpoint"}, 20),
        ({"accumulate": "model"}, 20),
        ({"method": "ceap"}, 20),
        ({"method": "eap_ig_activations"}, 5),
        ({"method": "eap"}, 20),
        ({"quadrature": "left", "ig_steps": 7}, 7),
    ],
)
def test_steps_are_as_many_as_it_takes_unless_something_needs_a_number(keys: dict, steps: object) -> None:
    assert EapConfig(**keys).steps("mean") == steps
    assert EapConfig(**keys).steps("zero") == (20 if steps == "auto" else steps), "there the error is not seen"
    recorded = result_settings(CircuitsConfig(model="m", task="ioi", eap=keys))
    assert recorded["eap.ig_steps"] == steps, "results depend on the number"


def test_a_method_that_is_no_word_is_refused_in_pydantics_words() -> None:
    with pytest.raises(ValidationError, match="method"):
        EapConfig(method=[])
