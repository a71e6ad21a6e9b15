"""Every config that comes with the project loads with the schema of the script that it names."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import pytest

from check_checkpoints import CheckConfig
from circuits_over_time.edge_attribution_patching.circuits.formats import MIB_MODELS
from circuits_over_time.edge_attribution_patching.circuits.mib import MIB_SHARES
from circuits_over_time.utils.comparison.keys import ComparisonConfig
from circuits_over_time.utils.config.keys import BaseConfig, TaskConfig, for_model, load_config, result_settings
from circuits_over_time.utils.config.schedules import PYTHIA_STEPS, select_steps
from circuits_over_time.utils.models.known_families import known_model
from circuits_over_time.utils.sweep.estimate import needed_of_known
from circuits_over_time.utils.sweep.plan import Job
from circuits_over_time.utils.sweep.suite import SuiteConfig, jobs_of
from circuits_over_time.utils.tasks import TASKS
from circuits_over_time.utils.toy.keys import FamilyConfig
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_component_swaps import ANALYSIS as SWAPS
from get_full_model_components_over_time import ANALYSIS as COMPONENTS
from get_greater_than_consistency import ANALYSIS as GREATER_THAN_CONSISTENCY
from get_head_signatures import ANALYSIS as SIGNATURES
from get_ioi_consistency import ANALYSIS as IOI_CONSISTENCY
from get_learning_coefficients_over_time import ANALYSIS as LEARNING_COEFFICIENTS
from get_model_cspa import ANALYSIS as CSPA
from get_model_task_performance import ANALYSIS as PERFORMANCE
from get_new_successor_head_scores_over_time import ANALYSIS as SUCCESSOR
from tests.support.mib_submission import MODELS
from tests.support.paths import CONFIGS, ROOT

# How the name of a script's configs starts. A config of circuits is called after its task, or after its family.
ANALYSES = {
    "components": COMPONENTS,
    "successor": SUCCESSOR,
    "cspa": CSPA,
    "performance": PERFORMANCE,
    "ioi_consistency": IOI_CONSISTENCY,
    "greater_than_consistency": GREATER_THAN_CONSISTENCY,
    "swaps": SWAPS,
    "signatures": SIGNATURES,
    **dict.fromkeys((*TASKS, "tasks", "toy", "real"), CIRCUITS),
}
COMPARES = ("compare_toy", "compare", "compare_pythia_seeds")
MAKES_FAMILIES = ("toy_family", "toy_ioi_family")
SUITES = ("suite_toy", "suite_160m", "suite_pythia", "all")
FILES = sorted(CONFIGS.rglob("*.yml"))
STUDY = CONFIGS / "study"
STUDY_MODELS = ["pythia-70m", "pythia-160m", "pythia-410m", "pythia-1.4b", "pythia-2.8b"]


def analysis_of(path: Path) -> Any:
    known = {**ANALYSES, "learning_coefficients": LEARNING_COEFFICIENTS}  # No suite has it: it needs another package.
    starts = [start for start in known if path.stem == start or path.stem.startswith(f"{start}_")]
    return known[max(starts, key=len)]


def suite_of(path: Path) -> list[Job]:
    with contextlib.chdir(ROOT):  # The paths of its configs are relative to the repository.
        return jobs_of(load_config(SuiteConfig, path, []))


@pytest.mark.parametrize(("name", "ending"), [("suite_toy", "toy"), ("suite_160m", "160m"), ("suite_pythia", "160m")])
def test_a_suite_has_every_analysis_with_the_settings_of_its_own_config(name: str, ending: str) -> None:
    jobs = suite_of(CONFIGS / f"{name}.yml")
    assert {job.analysis.name for job in jobs} == {analysis.name for analysis in ANALYSES.values()}
    others = ("suite_", "check_", "compare_", "tasks_", "learning_")  # these measure nothing themselves, or in no suite
    own = [path for path in CONFIGS.glob(f"*{ending}.yml") if not path.stem.startswith(others)]
    settings = [(analysis_of(path).name, load_config(analysis_of(path).schema, path, [])) for path in own]
    for job in jobs:
        asked = (job.analysis.name, result_settings(job.config), job.config.checkpoints)
        found = [(script, result_settings(config), config.checkpoints) for script, config in settings]
        assert asked in found, job.analysis.name
    assert len(jobs) == len(own)
    assert [job.analysis.name for job in jobs[-3:]] == [
        "get_greater_than_consistency",
        "get_component_swaps",
        "get_head_signatures",
    ]


def study(name: str) -> Any:
    path = STUDY / f"{name}.yml"
    return load_config(analysis_of(path).schema, path, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_every_config_loads_with_its_scripts_schema(path: Path) -> None:
    if path.stem in MAKES_FAMILIES:
        load_config(FamilyConfig, path, [])
        return
    if path.stem in COMPARES:
        load_config(ComparisonConfig, path, [])
        return
    if path.stem in SUITES:
        assert suite_of(path)
        return
    schema = CheckConfig if path.stem.startswith("check_") else analysis_of(path).schema
    config: BaseConfig = load_config(schema, path, [])
    for model in config.models:
        assert known_model(model) or model.startswith("model_cache/"), model


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_a_command_in_a_config_names_that_config_and_its_script(path: Path) -> None:
    for script, named in re.findall(r"python (\S+\.py) -c (\S+)", path.read_text().partition("\nmodel")[0]):
        assert (ROOT / named).is_file()
        if ROOT / named == path and path.stem in SUITES:
            assert script == "run_suite.py"
        elif ROOT / named == path and path.stem not in (*MAKES_FAMILIES, *COMPARES):
            assert script == f"{analysis_of(path).name}.py"


def test_the_study_has_a_config_of_every_script_and_task() -> None:
    configs = {path.stem for path in STUDY.glob("*.yml")} - {"all", "compare"}
    variants = [f"pythia-160m-{kind}seed{n}" for kind in ("", "data-", "weight-") for n in (1, 2, 3)]
    variants += [f"pythia-160m-{kind}dropout" for kind in ("all", "attn", "hidden")]
    assert [f"configs/study/{name}.yml" for name in sorted(configs)] == sorted(
        entry["config"] for entry in load_config(SuiteConfig, STUDY / "all.yml", []).analyses
    )
    assert load_config(SuiteConfig, STUDY / "all.yml", []).models == STUDY_MODELS + variants
    assert {name for name in configs if not name.startswith("swaps_")} == set(ANALYSES) - {
        "toy",
        "real",
        "tasks",
        "signatures",
    }  # It matched no heads.


@pytest.mark.parametrize("name", sorted(set(ANALYSES) - {"toy", "real", "tasks", "signatures"}))
def test_configs_of_the_study_share_models_seed_and_number_format(name: str) -> None:
    config: BaseConfig = study(name)
    assert (config.model, config.seed) == (STUDY_MODELS, 42)
    assert config.dtype == ("float32" if name == "cspa" else "bfloat16")
    assert config.dtype_of == ({"pythia-410m": "float32"} if name == "ioi" else {})
    entry = next(job for job in suite_of(STUDY / "all.yml") if result_settings(job.config) == result_settings(config))
    assert (entry.config.dtype, entry.config.dtype_of) == (config.dtype, config.dtype_of)


def test_circuits_of_the_study_have_its_settings() -> None:
    numbers = {"ioi": 70, "greater_than": 200, "gendered_pronoun": 100, "sva": 200}
    for name, n_prompts in numbers.items():
        config = study(name)
        assert (config.task_names, config.n_prompts) == ([name], n_prompts)
        assert (config.eap.ig_steps, config.eap.quadrature) == (30, "left")
        search = config.search
        assert (search.threshold, search.criterion, search.grid, search.order) == (0.8, "raw", "study", "greedy")
        assert config.evaluate_on == "same"
        assert config.prepend_bos is False
        assert config.ioi_corruption == "swap"


def test_every_measurement_of_the_study_has_a_time() -> None:
    jobs = suite_of(STUDY / "all.yml")
    operations = needed_of_known(jobs, "pythia-160m").operations
    assert all(operations.get((job, task and task.name), 0) > 0 for job in jobs for task in job.tasks)


def test_swaps_of_the_study_are_of_circuits_that_it_measures() -> None:
    for path in STUDY.glob("swaps*.yml"):
        swaps = load_config(SWAPS.schema, path, [])
        circuits = study(swaps.task)
        found = next(
            job for job in suite_of(STUDY / "all.yml") if result_settings(job.config) == result_settings(circuits)
        )
        assert set(swaps.checkpoints) <= set(select_steps(found.config.checkpoints, PYTHIA_STEPS, "pythia-160m")), path
        assert swaps.n_prompts == circuits.n_prompts


def test_head_scores_of_the_study_have_its_settings() -> None:
    components, successor, cspa = (study(name) for name in ("components", "successor", "cspa"))
    assert {config.head_scores for config in (components, successor, cspa)} == {"study"}
    assert (components.n_sequences, components.seq_len, components.n_prompts) == (2, 100, 70)
    assert (cspa.n_sequences, cspa.seq_len, cspa.n_mean_sequences, cspa.start_layer) == (17, 61, 100, "study")
    firsts = [cspa.of_model(name).start_layer for name in (*STUDY_MODELS, "pythia-160m-seed1")]
    assert firsts == [2, 6, 3, 4, 6, 2]
    assert cspa.prepend_bos


def test_the_studys_consistency_asks_for_what_its_other_configs_measure() -> None:
    """Otherwise it would compute circuits and scores again that are stored."""
    config = study("ioi_consistency")
    asked = {"ioi": config.circuits_config(), "components": config.components_config(), "cspa": config.cspa_config()}
    for name, of_consistency in asked.items():
        for model in STUDY_MODELS:
            own, resolved = (for_model(one, None, model) for one in (study(name), config))
            again = {"ioi": resolved.circuits_config, "cspa": resolved.cspa_config}
            asked_again = again.get(name, resolved.components_config)()
            assert result_settings(asked_again) == result_settings(own), (name, model)
            assert result_settings(for_model(of_consistency, None, model)) == result_settings(own), (name, model)
        measured = select_steps(study(name).checkpoints, PYTHIA_STEPS, "pythia-160m")
        assert set(select_steps(config.checkpoints, PYTHIA_STEPS, "pythia-160m")) <= set(measured)


@pytest.mark.parametrize("family", ["toy", "real", "160m"])
def test_the_consistency_of_a_family_asks_for_what_its_other_configs_measure(family: str) -> None:
    config = load_config(IOI_CONSISTENCY.schema, CONFIGS / f"ioi_consistency_{family}.yml", [])
    asked = {f"components_{family}": config.components_config(), f"cspa_{family}": config.cspa_config()}
    asked[f"ioi_{family}" if family == "160m" else family] = config.circuits_config()
    for name, of_consistency in asked.items():
        other = load_config(analysis_of(CONFIGS / f"{name}.yml").schema, CONFIGS / f"{name}.yml", [])
        of_other = result_settings(other.of_task("ioi") if isinstance(other, TaskConfig) else other)
        differing = [key for key, value in result_settings(of_consistency).items() if of_other[key] != value]
        assert set(differing) <= {"search.mib", "n_random", "hypothesis_tests"}, name  # which only fill columns


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(CONFIGS).as_posix())
def test_the_consistency_of_greater_than_asks_for_the_circuits_of_another_config(path: Path) -> None:
    if not path.stem.startswith("greater_than_consistency"):
        return
    config = load_config(GREATER_THAN_CONSISTENCY.schema, path, [])
    family = path.stem.removeprefix("greater_than_consistency").removeprefix("_")
    own = path.with_name(f"greater_than_{family}.yml" if family == "160m" else f"{family or 'greater_than'}.yml")
    settings = result_settings(load_config(CIRCUITS.schema, own, []).of_task("greater_than"))
    asked = result_settings(config.circuits_config())
    differing = {key for key, value in asked.items() if settings[key] != value}
    assert differing <= {"search.mib", "n_random"}, differing  # which only fill columns


@pytest.mark.parametrize("name", MODELS)
def test_configs_of_mib_have_its_settings_for_their_model(name: str) -> None:
    config = load_config(CIRCUITS.schema, CONFIGS / "mib" / f"tasks_{name}.yml", [])
    assert MIB_MODELS[Path(config.model).name] == name
    assert config.search.sizes == [int(share * MODELS[name].n_edges) for share in MIB_SHARES]
    assert (config.search.order, config.search.mib, config.prepend_bos) == ("top_n", True, True)
    assert (config.eap.method, config.eap.ig_steps, config.eap.quadrature) == ("eap_ig", 5, "left")
    assert config.dtype == ("float32" if name == "gpt2" else "bfloat16")
    assert config.formats == ["mib_folder"]
