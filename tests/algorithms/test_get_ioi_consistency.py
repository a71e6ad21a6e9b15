"""The script: the hand-built transformer as a family, stored inputs, and the trained toy families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.config.keys import for_model, load_config
from circuits_over_time.utils.models.family import LocalFamily, resolve_family
from circuits_over_time.utils.results.kinds import (
    IOI_BACKUP,
    IOI_CONSISTENCY,
    IOI_CONSISTENCY_HEADS,
    IOI_CONSISTENCY_SIGNALS,
)
from circuits_over_time.utils.results.record import RunRecord
from circuits_over_time.utils.results.store import Store, read_csv
from circuits_over_time.utils.sweep.runner import main
from circuits_over_time.utils.tasks import build_prompts
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_full_model_components_over_time import ANALYSIS as COMPONENTS
from get_ioi_consistency import ANALYSIS
from get_model_cspa import ANALYSIS as CSPA
from tests.support import ioi_transformer
from tests.support.paths import CONFIGS, TOY, TOY_IOI, TOY_IOI_STEP, TOY_STEPS
from tests.support.synthetic_results import write

QUICK = ("circuit.eap.ig_steps=3", "circuit.n_prompts=40", "backup=false")
"""On trained models: fewer prompts and steps for the circuit than the config has, and nothing that is not asked for."""


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Step 0 knows nothing, steps 10 and 20 are the hand-built transformer, in 20 with another name mover's weights."""
    folder = tmp_path_factory.mktemp("families") / "hand"
    tokenizer = ioi_transformer.tokenizer()
    for step in (0, 10, 20):
        model = ioi_transformer.ioi_transformer()
        if step == 0:
            model.lm_head.weight.zero_()
        if step == 20:
            ioi_transformer.exchange_heads(model, 3, 0, 2)
        model.save_pretrained(folder / f"step{step}")
        tokenizer.save_pretrained(folder / f"step{step}")
    (folder / "family.json").write_text('{"tokens_per_step": 10}')
    return folder


def given(family: Path, results: Path, *more: str) -> list[str]:
    corpus = results.parent / "text.txt"
    sentences = build_prompts("ioi", ioi_transformer.tokenizer(), 60, seed=1)
    texts = [clean for clean, _ in sentences.texts]
    corpus.write_text("\n\n".join(f"{text} {io}" for text, io in zip(texts, sentences.meta["io"], strict=True)))
    cspa = f"cspa={{corpus: {corpus}, seq_len: 20, n_sequences: 10, n_mean_sequences: 30}}"
    scores = ["components.seq_len=10", "components.n_prompts=20", cspa]
    found = ["circuit.n_prompts=8", "circuit.evaluate_on=same", "backup=false"]
    return [f"model={family}", "n_prompts=12", f"results_dir={results}", "device=cpu", *scores, *found, *more]


def test_the_script_finds_the_algorithm_and_its_handover(family: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert main(ANALYSIS, given(family, results, "circuit.heads=all", "backup=true")) == 0
    store = Store(results)
    for step in (0, 10, 20):
        levels = store.folder("ioi_consistency", "hand").read_table(step)
        assert list(levels) == ["model", "step", "tokens", *IOI_CONSISTENCY.columns]
        for kind in (IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS, IOI_BACKUP):
            assert list(store.folder(kind, "hand").read_table(step))[3:] == list(kind.columns)
    levels = store.read_tables("ioi_consistency", "hand").set_index(["step", "level"])
    assert levels.loc[0, "percent"].isna().all()
    assert levels.loc[0, "reason"].str.contains("nothing can be lost").all()
    for step in (10, 20):
        assert levels.loc[step, "percent"].to_list() == pytest.approx([100, 100, 100], abs=1e-3)
    handover = read_csv(store.folder("ioi_consistency", "hand").path / "role_handover.csv").set_index(
        ["role", "layer", "head"]
    )
    spans = handover[["first_step", "last_step"]].apply(tuple, axis=1).to_dict()
    assert spans["name_mover", 3, 0] == (10, 10)
    assert spans["name_mover", 3, 2] == (20, 20)
    assert spans["s_inhibition", 2, 0] == (10, 20)
    assert handover.loc[("s_inhibition", 2, 0), "first_tokens"] == 100
    backup = store.read_tables("ioi_backup", "hand").set_index(["step", "part"])
    assert backup.loc[[(0, "all")], "reason"].tolist() == ["there are no name movers to ablate"]
    assert backup.loc[[(10, "name_movers")], "change"].item() < -1
    inputs = store.folder("ioi_consistency", "hand").read_json(10)["inputs"]
    assert inputs == {"circuit": "all heads", "components": "computed", "cspa": "computed"}


def test_the_circuit_is_found_in_the_same_load_where_none_is_stored(family: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert main(ANALYSIS, given(family, results, "checkpoints=[0, 10]")) == 0
    store = Store(results)
    early = store.folder("ioi_consistency", "hand").read_table(0)
    assert set(early["reason"]) == {"no circuit: task not learned"}
    levels = store.folder("ioi_consistency", "hand").read_table(10).set_index("level")
    assert levels.loc["s_inhibition", "percent"] == pytest.approx(100, abs=1e-4)
    heads = store.folder("ioi_consistency_heads", "hand").read_table(10)
    heads = heads[heads["in_circuit"]]
    circuit = set(zip(heads["layer"], heads["head"], strict=True))
    assert circuit <= set.union(*ioi_transformer.ROLES.values(), {(0, 0)})  # the uniform heads are not in it
    assert store.folder("ioi_consistency", "hand").read_json(10)["inputs"]["circuit"] == "computed"


def store_inputs(keys: list[str], step: int) -> Store:
    """Stored scores that say the name mover is a negative one, as a run with these keys would take them."""
    config = for_model(load_config(IoiConsistencyConfig, None, keys), None)
    store = Store(config.results_dir)
    cells = [(layer, head) for layer in range(4) for head in range(3)]
    rows = [
        {"score": name, "layer": layer, "head": head, "value": 50.0 * ((name, layer, head) == ("negative_copy", 3, 0)),
         "se": 1.0, "chance": 0.1}
        for name in ("copy", "negative_copy", "induction", "duplicate_token") for layer, head in cells
    ]  # fmt: skip
    cspa = [
        {"layer": layer, "head": head, "score": 0.5 if (layer, head) == (3, 1) else None, "score_se": 0.01}
        for layer, head in cells
    ]
    tables = {"components": pd.DataFrame(rows), "cspa": pd.DataFrame(cspa[6:])}  # CSPA from layer 2 up
    family = resolve_family(str(config.model), config.cache_dir)
    for kind, of_kind in (("components", config.components_config()), ("cspa", config.cspa_config())):
        folder = store.folder(kind, "hand")
        RunRecord(folder).begin(folder.kind.script.removesuffix(".py"), of_kind, family, [step])
        RunRecord(folder).add({step: (family.load(step, device="cpu").provenance, {})})
        write(store, kind, "hand", None, step, tables[kind], 100)
    return store


def sources(store: Store) -> dict[str, str]:
    return store.folder("ioi_consistency", "hand").read_json(10)["inputs"]


def test_stored_scores_are_read(family: Path, tmp_path: Path) -> None:
    keys = given(family, tmp_path / "results", "circuit.heads=all", "checkpoints=[10]", "require_stored=true")
    store = store_inputs(keys, 10)
    assert main(ANALYSIS, keys) == 0
    heads = store.folder("ioi_consistency_heads", "hand").read_table(10)
    first = heads[heads["level"] == "name_movers"]
    roles = first[first["passes"]].set_index(["layer", "head"])["role"].to_dict()
    assert roles == {(3, 0): "negative_name_mover", (3, 1): "copy_suppression"}
    assert first["cspa"].isna().sum() == 11
    assert sources(store) == {"circuit": "all heads", "components": "stored", "cspa": "stored"}


@pytest.mark.parametrize(
    ("override", "kind", "says"),
    [
        ("components.seq_len=9", "components", "components/hand holds seq_len=10, this run asks for 9"),
        ("components.n_prompts=21", "components", "components/hand holds n_prompts=20, this run asks for 21"),
        ("cspa.k_unembeddings=0.1", "cspa", "cspa/hand holds k_unembeddings=0.05, this run asks for 0.1"),
        ("seed=1", "components", "components/hand holds seed=0, this run asks for 1"),
        ("cspa.dtype=bfloat16", "cspa", "cspa/hand holds dtype=float32, this run asks for bfloat16"),
    ],
)
def test_scores_that_depend_on_other_settings_are_measured_anew_or_refused(
    override: str,
    kind: str,
    says: str,
    family: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys = given(family, tmp_path / "results", "circuit.heads=all", "checkpoints=[10]")
    store = store_inputs(keys, 10)
    assert main(ANALYSIS, [*keys, override, "require_stored=true"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert says in line
    assert line.endswith("overwrite=true")
    assert main(ANALYSIS, [*keys, override]) == 0
    assert any(says in record.getMessage() for record in caplog.records)
    assert sources(store)[kind] == "computed"


def test_scores_that_are_measured_here_have_their_own_number_format(family: Path, tmp_path: Path) -> None:
    keys = given(family, tmp_path / "results", "circuit.heads=all", "checkpoints=[10]", "cspa.dtype=bfloat16")
    assert main(ANALYSIS, keys) == 0
    store = Store(tmp_path / "results")
    heads = store.folder("ioi_consistency_heads", "hand").read_table(10)
    own = ["seq_len=20", "n_sequences=10", "n_mean_sequences=30", f"corpus={tmp_path / 'text.txt'}", "dtype=bfloat16"]
    run = [f"model={family}", f"results_dir={tmp_path / 'results'}", "device=cpu", "checkpoints=[10]"]
    assert main(CSPA, [*run, *own]) == 0
    alone = store.folder("cspa", "hand").read_table(10).set_index(["layer", "head"])["score"]
    first = heads[heads["level"] == "name_movers"].set_index(["layer", "head"])["cspa"]
    assert first.reindex(alone.index).tolist() == pytest.approx(alone.tolist(), abs=1e-7, nan_ok=True)
    assert store.folder("ioi_consistency", "hand").read_run()["settings"]["cspa.dtype"] == "bfloat16"


def test_a_stored_circuit_is_taken_only_where_it_is_the_one_this_run_would_find(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    found = [f"model={family}", "task=ioi", "checkpoints=[10]", f"results_dir={results}", "device=cpu", "n_prompts=8"]
    keys = given(family, results, "checkpoints=[10]")
    asked = [*found, "evaluate_on=same", "ioi_corruption=abc", "search.threshold=0.95"]
    assert main(CIRCUITS, asked) == 0
    assert main(ANALYSIS, [*keys, "require_stored=true"]) == 2
    assert f"{results}/graphs/hand/ioi holds ioi_corruption=abc, this run asks for swap" in capsys.readouterr().err
    assert main(ANALYSIS, keys) == 0
    assert any("holds ioi_corruption=abc, this run asks for swap" in record.getMessage() for record in caplog.records)
    assert sources(Store(results))["circuit"] == "computed"
    assert main(CIRCUITS, [*found, "evaluate_on=same", "overwrite=true"]) == 0
    assert main(ANALYSIS, [*keys, "overwrite=true"]) == 0
    assert sources(Store(results))["circuit"] == "stored"


def test_what_has_to_be_stored_and_is_missing_is_named_with_its_command(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert main(ANALYSIS, given(family, results, "require_stored=true", "checkpoints=[10]")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert f"{results}/graphs/hand/ioi/step000010.csv is missing; run: python get_circuits_over_time.py" in line
    more = ["require_stored=true", "checkpoints=[10]", "circuit.heads=all"]
    assert main(ANALYSIS, given(family, results, *more)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "components/hand/step000010.csv is missing; run: python get_full_model_components_over_time.py" in line
    assert not list(results.rglob("ioi_consistency/hand/step*.csv"))


def test_scores_of_other_weights_are_measured_anew_or_refused(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_inputs(given(family, tmp_path / "results", "circuit.heads=all"), 10)
    other = tmp_path / "families" / "hand"
    shutil.copytree(family, other)
    ioi_transformer.exchange_heads(model := ioi_transformer.ioi_transformer(), 3, 0, 2)
    model.save_pretrained(other / "step10")
    # Exchanged heads are the weights of step 20, which a sweep would refuse.
    keys = given(other, store.root, "circuit.heads=all", "checkpoints=[10]", "on_duplicate_weights=warn")
    assert main(ANALYSIS, [*keys, "require_stored=true"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "components/hand/step000010.csv was measured on other weights; run: python" in line
    assert line.endswith("overwrite=true")
    assert main(ANALYSIS, keys) == 0
    assert sources(store) == {"circuit": "all heads", "components": "computed", "cspa": "computed"}


def test_text_that_is_too_short_is_refused_before_anything_is_loaded(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFamily, "load", None)  # Nothing may be loaded.
    assert main(ANALYSIS, given(family, tmp_path / "results", "cspa.n_mean_sequences=100000")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "cspa.corpus: " in line
    assert "sequences of 20 tokens, but 100010 are needed" in line


def test_errors_about_keys_of_a_block_name_it(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFamily, "load", None)
    for key, value in {"cspa.start_layer": 99, "components.seq_len": 4000, "circuit.search.sizes": "[99999]"}.items():
        assert main(ANALYSIS, given(family, tmp_path / "results", f"{key}={value}")) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"{key}: ")


def test_without_a_text_cspa_cannot_be_computed(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [key for key in given(family, tmp_path / "results", "circuit.heads=all") if not key.startswith("cspa=")]
    assert main(ANALYSIS, keys) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line == "cspa: no scores are stored, and no text is named to compute them; pass cspa.corpus=FILE"


def measured_once(results: Path, model: Path, checkpoints: str) -> list[str]:
    """The keys of a run whose circuit and scores, which all definitions share, are measured into a folder."""
    keys = [f"model={model}", f"checkpoints={checkpoints}", f"results_dir={results}", "device=cpu", *QUICK]
    config = load_config(IoiConsistencyConfig, CONFIGS / "ioi_consistency_toy.yml", keys)
    asked = config.circuits_config(), config.components_config(), config.cspa_config()
    for analysis, of_script in zip((CIRCUITS, COMPONENTS, CSPA), asked, strict=True):
        assert of_script is not None
        file = results / "keys.yml"
        file.write_text(json.dumps(of_script.model_dump(mode="json", exclude_defaults=True)))
        assert main(analysis, ["-c", str(file)]) == 0
    return ["-c", str(CONFIGS / "ioi_consistency_toy.yml"), *keys, "require_stored=true", "overwrite=true"]


def results_of(keys: list[str]) -> Path:
    return Path(next(key.removeprefix("results_dir=") for key in keys if key.startswith("results_dir=")))


@pytest.fixture(scope="module")
def toy_keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return measured_once(tmp_path_factory.mktemp("toy"), TOY, f"[0, {TOY_STEPS[-1]}]")


@pytest.fixture(scope="module")
def toy_ioi_keys(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return measured_once(tmp_path_factory.mktemp("toy_ioi"), TOY_IOI, f"[{TOY_IOI_STEP}]")


@pytest.mark.parametrize("definitions", ["standard", "study", "frozen"])
def test_the_toy_familys_levels_are_found_and_explained_and_step_0_is_empty(
    definitions: str, toy_keys: list[str]
) -> None:
    last = TOY_STEPS[-1]
    assert main(ANALYSIS, [*toy_keys, f"definitions={definitions}"]) == 0
    store = Store(results_of(toy_keys))
    name = TOY.name
    start = store.folder("ioi_consistency", name).read_table(0)
    assert start["percent"].isna().all()
    assert start["n_heads"].isna().all()
    assert set(start["reason"]) == {"no circuit: task not learned"}
    assert store.folder("ioi_consistency_heads", name).read_table(0).empty
    end = store.folder("ioi_consistency", name).read_table(last).set_index("level")
    if definitions != "frozen":  # There, the one head suppresses copying no more than within its error.
        assert end.loc["name_movers", "percent"] > 70
    assert (end["percent"].notna() | end["reason"].notna()).all()
    heads = store.folder("ioi_consistency_heads", name).read_table(last)
    for row in heads[(heads["level"] == "name_movers") & heads["passes"]].itertuples():
        score = {
            "name_mover": row.copy_score / 100,
            "copy_suppression": row.cspa,
            "negative_name_mover": row.negative_copy_score / 100,
        }
        assert score[row.role] > 0.10
        assert row.effect < 0 or row.role != "name_mover"
        assert definitions == "study" or (row.q_value <= 0.05 and abs(row.effect) > 2 * row.effect_se)
    handover = read_csv(store.folder("ioi_consistency", name).path / "role_handover.csv")
    assert set(handover["first_step"]) == ({last} if definitions != "frozen" else set())


@pytest.mark.parametrize(
    ("definitions", "least"), [("standard", (90, 80, 90)), ("study", (90, 80, 90)), ("frozen", (30, 90, 90))]
)
def test_the_algorithm_of_a_checkpoint_that_knows_positions_is_found_at_all_levels(
    definitions: str, least: tuple[float, ...], toy_ioi_keys: list[str]
) -> None:
    assert main(ANALYSIS, [*toy_ioi_keys, f"definitions={definitions}"]) == 0
    store = Store(results_of(toy_ioi_keys))
    levels = store.folder("ioi_consistency", "toy_ioi").read_table(TOY_IOI_STEP).set_index("level")
    assert levels["reason"].isna().all()
    for level, percent in zip(("name_movers", "s_inhibition", "induction"), least, strict=True):
        assert levels.loc[level, "percent"] > percent
    heads = store.folder("ioi_consistency_heads", "toy_ioi").read_table(TOY_IOI_STEP)
    held = heads[heads["passes"]].set_index(["level", "layer", "head"])
    movers = held.loc["name_movers"]
    assert movers.loc[(4, 0), "role"] == "name_mover"
    assert movers.loc[(4, 0), "attention_io"] > 0.8
    # By the study's rule, a CSPA score of 0.19 makes (3, 3) suppress copying; its error of 0.04 makes that unsure.
    assert movers.get("role").get((3, 3)) == {"study": "copy_suppression", "standard": "negative_name_mover"}.get(
        definitions
    )
    # The strongest S-inhibition head looks at the repeated name; what it reads comes from induction heads below it.
    inhibitors = held.loc["s_inhibition"]
    assert inhibitors["effect"].idxmin() == (3, 2)
    assert inhibitors.loc[(3, 2), "attention_s2"] > 0.4
    reading = held.loc["induction"]
    reading = reading[reading["in_circuit"]]
    assert set(reading["role"]) == {"induction"}
    assert {layer for layer, _ in reading.index} == {2}
    signals = store.folder("ioi_consistency_signals", "toy_ioi").read_table(TOY_IOI_STEP)
    of_head = signals[(signals["layer"] == 3) & (signals["head"] == 2)].set_index("variant")
    clean, opposite = of_head.loc["same_token_same_order"], of_head.loc["same_token_opposite_order"]
    assert opposite["logit_diff"] < clean["logit_diff"] - 0.5
    assert opposite["attention_io"] < clean["attention_io"] - 0.1
    assert opposite["attention_s1"] > clean["attention_s1"] + 0.1


def test_the_means_of_a_circuit_are_in_its_number_format(family: Path, tmp_path: Path) -> None:
    keys = given(family, tmp_path, "checkpoints=[10]", "circuit.ablation=mean", "circuit.dtype=bfloat16")
    assert main(ANALYSIS, keys) == 0
    assert sources(Store(tmp_path))["circuit"] == "computed"
