"""Names of families, and what is known of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.config.schedules import SCHEDULES, select_steps
from circuits_over_time.utils.models.family import HubFamily, resolve_family
from circuits_over_time.utils.models.known_families import FAMILIES, SHORT_NAMES, known_model
from tests.support.hub_server import Files, HubServer
from tests.support.loading import error_of, loads_weights_of
from tests.support.recipes import copy_of_repository


def test_a_repository_without_checkpoints_is_refused(served: HubServer, tmp_path: Path) -> None:
    assert error_of("lab/plain", tmp_path) == (
        "model: lab/plain has no branches or tags that name a step (step{n}, checkpoint-{n}, iter_{n}, global_step{n}) "
        r"on the hub; name a repository of checkpoints, or pass revisions='...(?P<step>\d+)' for other names"
    )


def test_a_hub_family_that_does_not_say_its_tokens_needs_the_key(served: HubServer, tmp_path: Path) -> None:
    assert error_of("lab/run", tmp_path) == (
        "tokens_per_step: lab/run does not say how many tokens a step has; pass tokens_per_step=N"
    )
    assert resolve_family("lab/run", tmp_path, tokens_per_step=10).tokens[3000] == 30_000


# Short name; for each repository the names it serves; step of the whole training -> (revision, tokens) by default.
PUBLISHED = [
    (
        "pythia-160m",
        {"EleutherAI/pythia-160m": ["main", "step0", "step512"]},
        {0: ("step0", 0), 512: ("step512", 2**30)},
    ),
    ("pythia-160m-alldropout", {"EleutherAI/pythia-160m-alldropout": ["step1"]}, {1: ("step1", 2_097_152)}),
    (
        "OLMo-1B-hf",
        {"allenai/OLMo-1B-hf": ["main", "step0-tokens0B", "step20000-tokens84B"]},
        {0: ("step0-tokens0B", 0), 20_000: ("step20000-tokens84B", 84 * 10**9)},
    ),
    (
        "OLMo-2-0425-1B",
        {
            "allenai/OLMo-2-0425-1B": [
                *("stage1-step0-tokens0B", "stage1-step10000-tokens21B"),
                *("stage2-ingredient1-step1000-tokens3B", "stage2-ingredient2-step1000-tokens3B"),
            ],
            "allenai/OLMo-2-0425-1B-early-training": ["stage1-step0-tokens0B", "stage1-step1000-tokens3B"],
        },
        {
            0: ("stage1-step0-tokens0B", 0),
            1000: ("stage1-step1000-tokens3B", 1000 * 2_097_152),
            10_000: ("stage1-step10000-tokens21B", 10_000 * 2_097_152),
        },
    ),
    (
        "OLMo-2-0325-32B",
        {"allenai/OLMo-2-0325-32B": ["stage1-step1000-tokens9B", "stage2-ingredient1-step1000-tokens9B"]},
        {1000: ("stage1-step1000-tokens9B", 1000 * 8_388_608)},
    ),
    (
        "Olmo-3-1025-7B",
        {"allenai/Olmo-3-1025-7B": ["stage1-step1000", "stage2-step1000", "stage3-step1000"]},
        {1000: ("stage1-step1000", 1000 * 4_194_304)},
    ),
    (
        "SmolLM2-135M",
        {"HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints": ["main", "step-240000"]},
        {240_000: ("step-240000", 240_000 * 1_048_576)},
    ),
    (
        "SmolLM3-3B",
        {"HuggingFaceTB/SmolLM3-3B-checkpoints": ["main", "stage1-step-40000", "lc-4k-to-32k-step-4000"]},
        {40_000: ("stage1-step-40000", 40_000 * 2_359_296)},
    ),
    (
        "Amber",
        {"IFM/Amber": ["ckpt_000", "ckpt_358"]},
        {0: ("ckpt_000", 3_500_000_000), 358: ("ckpt_358", 1_256_500_000_000)},
    ),
    (
        "comma-v0.1-1t",
        {"common-pile/comma-v0.1-1t": ["stage1-step010000-tokens21B", "stage2-step001000-tokens2B"]},
        {10_000: ("stage1-step010000-tokens21B", 10_000 * 2_097_152)},
    ),
    (
        "alias-gpt2-small-x21",
        {"stanford-crfm/alias-gpt2-small-x21": ["main", "tag:checkpoint-0", "tag:checkpoint-400000"]},
        {0: ("checkpoint-0", 0), 400_000: ("checkpoint-400000", 400_000 * 524_288)},
    ),
    (
        "Apertus-8B-2509",
        {"swiss-ai/Apertus-8B-2509": ["main", "step50000-tokens210B", "step1194000-tokens5.0T"]},
        {50_000: ("step50000-tokens210B", 210 * 10**9), 1_194_000: ("step1194000-tokens5.0T", 5 * 10**12)},
    ),
    (
        "TinyLlama",
        {"TinyLlama/tinyLlama-intermediate-checkpoints": ["main", "step-480k-token-1007B"]},
        {480_000: ("step-480k-token-1007B", 1007 * 10**9)},
    ),
]


def publish(served: HubServer, repositories: dict[str, list[str]], files: Files) -> None:
    """Serve the same files under every name; those that begin with `tag:` as tags."""
    for repository, names in repositories.items():
        served.repositories[repository] = dict.fromkeys([name.removeprefix("tag:") for name in names], files)
        served.tags |= {name.removeprefix("tag:") for name in names if name.startswith("tag:")}


@pytest.mark.parametrize(("name", "repositories", "expected"), PUBLISHED, ids=[name for name, _, _ in PUBLISHED])
def test_a_family_is_read_from_the_names_it_gives_its_checkpoints(
    name: str,
    repositories: dict[str, list[str]],
    expected: dict[int, tuple[str, int]],
    served: HubServer,
    branches: dict[str, Files],
    tmp_path: Path,
) -> None:
    publish(served, repositories, branches["step0"])
    for model in (name, *repositories):
        family = resolve_family(model, tmp_path)
        assert isinstance(family, HubFamily)
        assert (family.name, family.source) == (name, next(iter(repositories)))
        assert family.steps == tuple(expected)
        assert {step: (family.revisions[step].name, family.tokens[step]) for step in family.steps} == expected
    first = family.steps[0]
    assert family.load(first, device="cpu").provenance["revision"] == expected[first][0]


def test_every_record_is_tested() -> None:
    tested = {id(known.family) for name, _, _ in PUBLISHED if (known := known_model(name)) is not None}
    alike = ("OLMo-2-1124-7B", "Olmo-3-1125-32B", "SmolLM2-360M", "SmolLM2-1.7B")  # other constants, the same names
    tested |= {id(known.family) for name in alike if (known := known_model(name)) is not None}
    assert {id(family) for family in FAMILIES} == tested


def test_short_names_and_repositories_are_unique() -> None:
    repositories = [repository for family in FAMILIES for names in family.models.values() for repository in names]
    assert len(set(SHORT_NAMES)) == len(SHORT_NAMES)
    assert len(set(repositories)) == len(repositories)


def test_damage_names_models_that_exist() -> None:
    for family in FAMILIES:
        for damage in family.damage:
            assert set(damage.models) <= set(family.models)


def test_known_damage_comes_with_the_family(served: HubServer, tmp_path: Path) -> None:
    served.status = 503
    problems = [damage.problem for damage in resolve_family("pythia-2.8b", tmp_path).damage]
    assert problems == [
        "holds the weights of the end of training on 86 of 154 branches",
        "holds the same weights",
    ]
    assert resolve_family("pythia-12b", tmp_path).damage[0].steps == [50_000, 58_000]


def test_bos_habits_are_those_of_training(served: HubServer, branches: dict[str, Files], tmp_path: Path) -> None:
    publish(served, {"IFM/Amber": ["ckpt_000"], "lab/own": ["step1"]}, branches["step0"])
    assert resolve_family("pythia-70m", tmp_path).prepend_bos is False
    assert resolve_family("Amber", tmp_path).prepend_bos is True
    assert resolve_family("lab/own", tmp_path, tokens_per_step=1).prepend_bos is None


def test_later_stages_count_on_from_the_first(served: HubServer, branches: dict[str, Files], tmp_path: Path) -> None:
    names = ["stage1-step1000", "stage2-step2000", "stage2-step46684", "stage3-step1000"]
    publish(served, {"allenai/Olmo-3-1025-7B": names}, branches["step0"])
    family = resolve_family("Olmo-3-1025-7B", tmp_path, stages=(2, 3))
    # Stage 1 took 1,413,814 steps, whatever is published of it; the offsets are the family's own.
    assert dict(family.tokens) == {
        1_415_814: 5_929_965_715_456 + 2000 * 2_097_152,
        1_460_498: 6_027_869_159_424,
        1_461_498: 6_027_869_159_424 + 1000 * 4_194_304,
    }
    both = resolve_family("Olmo-3-1025-7B", tmp_path, stages=(1, 2, 3))
    assert both.steps == (1000, *family.steps)


def test_a_stages_step_0_is_the_end_of_the_stage_before(
    served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    names = ["stage1-step1000", "stage2-step0", "stage2-step500"]
    publish(served, {"lab/own": names}, branches["step0"])
    family = resolve_family("lab/own", tmp_path, tokens_per_step=2, stages=(1, 2))
    assert isinstance(family, HubFamily)
    assert {step: one.name for step, one in family.revisions.items()} == {
        1000: "stage1-step1000",
        1500: "stage2-step500",
    }
    assert resolve_family("lab/own", tmp_path, tokens_per_step=2, stages=(2,)).steps == (1000, 1500)


def test_steps_that_count_on_across_stages_are_kept(
    served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    names = ["stage1-step-3440000", "stage2-step-3480000", "stage3-step-4240000"]
    publish(served, {"HuggingFaceTB/SmolLM3-3B-checkpoints": names}, branches["step0"])
    family = resolve_family("SmolLM3-3B", tmp_path, stages=(1, 2, 3))
    assert dict(family.tokens) == {step: step * 2_359_296 for step in (3_440_000, 3_480_000, 4_240_000)}


def test_a_stage_that_is_not_published_is_refused(served: HubServer, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve_family("pythia-70m", tmp_path, stages=(1, 2))
    assert str(caught.value) == "stages: EleutherAI/pythia-70m has no stage 2 (there: 1)"


def test_which_of_several_runs_of_a_stage_is_meant_must_be_said(
    served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    names = ["stage1-step2000-tokens5B"]
    names += [f"stage2-ingredient{run}-step{step}-tokens{step // 500}B" for run in (1, 2) for step in (1000, 2000)]
    publish(served, {"allenai/OLMo-2-0425-1B": names}, branches["step0"])
    publish(served, {"allenai/OLMo-2-0425-1B-early-training": ["stage1-step0-tokens0B"]}, branches["step0"])
    with pytest.raises(UserError) as caught:
        resolve_family("OLMo-2-0425-1B", tmp_path, stages=(1, 2))
    message, example = str(caught.value).split("for example revisions=")
    assert message == "stages: stage 2 of allenai/OLMo-2-0425-1B was run 2 times (1, 2); choose one by its names, "
    family = resolve_family("OLMo-2-0425-1B", tmp_path, revisions=example.strip("'"), stages=(1, 2))
    assert isinstance(family, HubFamily)
    assert {step: one.name for step, one in family.revisions.items()} == {
        0: "stage1-step0-tokens0B",
        2000: "stage1-step2000-tokens5B",
        3000: "stage2-ingredient1-step1000-tokens2B",
        4000: "stage2-ingredient1-step2000-tokens4B",
    }
    assert family.tokens[4000] == 4000 * 2_097_152


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["step0", "step10"], (0, 10)),
        (["step-1", "step_2"], (1, 2)),
        (["tag:checkpoint-500", "checkpoint-1000"], (500, 1000)),
        (["iter_0000100", "iteration-200"], (100, 200)),
        (["global_step5", "global-step-6", "globalstep7"], (5, 6, 7)),
        (["ckpt_001", "ckpt-2"], (1, 2)),
        (["step-10k", "step20k-tokens1T"], (10_000, 20_000)),
        (["stage1-step1", "stage2-step1"], (1,)),
        (["step1", "main", "v1.0", "my-step2", "step3-final", "epoch4"], (1,)),
    ],
)
def test_an_unknown_repository_is_read_by_the_general_rules(
    names: list[str], steps: tuple[int, ...], served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    publish(served, {"lab/own": names}, branches["step0"])
    family = resolve_family("lab/own", tmp_path, tokens_per_step=3)
    assert (family.name, family.steps) == ("own", steps)
    assert family.tokens[steps[0]] == steps[0] * 3


def test_names_that_tell_tokens_need_no_key(served: HubServer, branches: dict[str, Files], tmp_path: Path) -> None:
    names = ["step1000-tokens4B", "stage1-step1000-tokens5B", "stage1-step2000-tokens8.5B", "stage2-step7-tokens1B"]
    publish(served, {"lab/own": names}, branches["step0"])
    family = resolve_family("lab/own", tmp_path)
    assert isinstance(family, HubFamily)
    assert family.tokens == {1000: 4 * 10**9, 2000: 85 * 10**8}  # Of two names the plainer counts.
    assert [one.name for one in family.revisions.values()] == ["step1000-tokens4B", "stage1-step2000-tokens8.5B"]
    later = resolve_family("lab/own", tmp_path, stages=(2,))
    assert later.tokens == {2007: 95 * 10**8}


def test_a_users_own_rule_reads_other_names(served: HubServer, branches: dict[str, Files], tmp_path: Path) -> None:
    publish(served, {"lab/own": ["main", "main-0500-v2", "main-1000-v2", "main-1000-v3"]}, branches["step0"])
    family = resolve_family("lab/own", tmp_path, 2, revisions=r"main-(?P<step>\d+)-v2")
    assert isinstance(family, HubFamily)
    assert {step: one.name for step, one in family.revisions.items()} == {500: "main-0500-v2", 1000: "main-1000-v2"}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("main-(", "'main-(' is not a regular expression (missing ), unterminated subpattern at position 5)"),
        (r"main-(\d+)", r"'main-(\d+)' does not say which part is the step; write it as (?P<step>\d+)"),
        ("(?P<step>.*)", "'main': its step is 'main', not a number; narrow the expression"),
        (r"run-(?P<step>\d+)", r"no branch or tag of lab/run is named like 'run-(?P<step>\d+)' (it has main, step0, "),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused(rule: str, told: str, served: HubServer, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve_family("lab/run", tmp_path, 1, revisions=rule)
    assert str(caught.value).startswith(f"revisions: {told}")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["alias-gpt2-small-x21", "Amber"])
def test_schedules_pick_from_any_family(
    name: str, schedule: str, served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    checkpoints = [0, *range(10, 100, 10), *range(100, 2000, 50), *range(2000, 20_001, 1000)]
    publish(served, {"stanford-crfm/alias-gpt2-small-x21": [f"tag:checkpoint-{n}" for n in checkpoints]}, {})
    publish(served, {"IFM/Amber": [f"ckpt_{n:03}" for n in range(359)]}, {})
    family = resolve_family(name, tmp_path)
    steps = select_steps(schedule, family.steps, family.name)
    assert set(steps) <= set(family.steps)
    assert steps[-1] == family.steps[-1] or schedule.endswith("_study")


def test_a_renamed_repository_is_recorded_under_its_name_of_today(
    served: HubServer, branches: dict[str, Files], tmp_path: Path
) -> None:
    publish(served, {"new-lab/run": ["step1"]}, branches["step1000"])
    served.renamed["old-lab/run"] = "new-lab/run"
    family = resolve_family("old-lab/run", tmp_path, tokens_per_step=1)
    assert loads_weights_of(family, 1, 1)
    assert family.load(1, device="cpu").provenance["repository"] == "new-lab/run"
    publish(served, {"IFM/Amber": ["ckpt_000"]}, branches["step0"])
    assert resolve_family("LLM360/Amber", tmp_path).source == "IFM/Amber"


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ("m-a-p/neo_7b", "its checkpoints are Megatron's own files, which transformers does not load"),
        ("EuroLLM-1.7B", "it publishes no checkpoints of its training"),
        ("LLM360/Crystal", "it needs its own code, which this suite does not run"),
        ("allenai/Olmo-Hybrid-7B", "not all of its layers are attention"),
        ("pico-lm/pico-decoder-tiny", "it needs its own code, which this suite does not run"),
        ("bigscience/bloom-560m", "its attention is biased by distance (ALiBi), which this suite does not compute"),
        ("DataDecide-dolma1_7-1B", "its format is too old for transformers 5"),
    ],
)
def test_a_family_that_cannot_be_measured_is_refused_with_the_reason(
    model: str, why: str, served: HubServer, tmp_path: Path
) -> None:
    assert error_of(model, tmp_path) == f"model: {model} cannot be measured: {why}; name another family"
    assert served.requests == []


@pytest.mark.parametrize(
    "name", ["pythia-14m", "pythia-6.9b-deduped", "pythia-160m-seed3", "pythia-410m-data-seed1", "EleutherAI/pythia-1b"]
)
def test_pythia_names_are_eleutherais_repositories(name: str, served: HubServer, tmp_path: Path) -> None:
    served.status = 503
    assert resolve_family(name, tmp_path).source == f"EleutherAI/{name.removeprefix('EleutherAI/')}"


@pytest.mark.parametrize(("typed", "meant"), [("pythia-16om", "pythia-160m"), ("SmolLM2-135", "SmolLM2-135M")])
def test_a_misspelt_name_gets_a_suggestion(typed: str, meant: str, tmp_path: Path) -> None:
    assert error_of(typed, tmp_path) == (
        f"model: '{typed}' is not a known model, a hub id (organisation/name) or a folder; did you mean '{meant}'?"
    )


def test_a_name_like_no_other_gets_an_example_of_each_family(tmp_path: Path) -> None:
    message = error_of("zzz", tmp_path)
    assert "; known models are, among others: pythia-14m, OLMo-1B-hf, OLMo-2-0425-1B, " in message
    assert len(message) < 400


@pytest.mark.parametrize("model", ["model_cache/toy", "./toy", "a/b/c"])
def test_a_missing_folder_is_not_looked_for_on_the_hub(
    model: str, served: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert error_of(model, Path("model_cache")).startswith(f"model: the folder {model} does not exist; train a small")
    assert served.requests == []


RECORD = """[[families]]
organisation = "owls"
models = ["Owl-1B"]
revisions = "owl-{step}"
tokens = { per_step = [1000] }
prepend_bos = true

"""


@pytest.mark.slow
def test_a_new_family_is_one_record_in_one_file(served: HubServer, tmp_path: Path) -> None:
    served.repositories["owls/Owl-1B"] = {f"owl-{step}": {"model.safetensors": b"x"} for step in (0, 1000, 2000)}
    copy = copy_of_repository(tmp_path)
    known = copy / "utils" / "models" / "known_families.toml"
    start = "[unusable]\n"
    text = known.read_text(encoding="utf-8")
    assert text.count(start) == 1
    known.write_text(text.replace(start, RECORD + start), encoding="utf-8")
    before = {path: path.read_bytes() for path in copy.rglob("*.*") if path.is_file() and path.suffix in (".py", ".md")}
    code = (
        "from pathlib import Path; from circuits_over_time.utils.models.family import resolve_family; "
        "family = resolve_family('Owl-1B', Path('cache')); print(family.tokens, family.prepend_bos); "
        "from tools.reference import main; main()"
    )
    settings = {"HF_ENDPOINT": served.endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(copy)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=os.environ | settings, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{0: 0, 1000: 1000000, 2000: 2000000} True\n"
    written = [path for path, content in before.items() if path.read_bytes() != content]
    assert [path.relative_to(copy).as_posix() for path in written] == ["docs/models.md"]
    assert "Owl-1B" in written[0].read_text(encoding="utf-8")
