"""The IOI algorithm: effects against brute force, and a hand-built transformer and the toy family explained."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from edge_attribution_patching.paths import Receivers
from edge_attribution_patching.weights import read_weights
from get_circuits_over_time import ANALYSIS as CIRCUITS
from get_ioi_consistency import ANALYSIS
from tests.support import ioi_transformer
from tests.support.path_patching_reference import Hooked, path_patched_logits, swapped_at_end
from tests.support.paths import CONFIGS, TOY_IOI, TOY_IOI_STEP, TOY_STEPS
from tests.support.random_models import HOOKED, random_model
from tests.support.synthetic_results import write
from tests.support.task_tokenizers import words
from utils.config.keys import load_config
from utils.heads.attention_and_copy import attention_scores, copy_scores, ordinary_tokens, repeated_blocks
from utils.ioi.consistency import (
    LEVELS,
    ioi_consistency,
    reading_roles,
    writing_roles,
)
from utils.ioi.effects import NAMES, LogitDifference, PairedRuns, name_attention
from utils.ioi.handover import role_handover
from utils.ioi.inputs import HeadFacts
from utils.ioi.keys import IoiConsistencyConfig, Thresholds
from utils.models.family import LocalFamily, resolve_family
from utils.results.kinds import IOI_CONSISTENCY, IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS
from utils.results.record import RunRecord
from utils.results.store import Store
from utils.runner import main
from utils.tasks import TASKS, Prompts, build_prompts
from utils.tasks.ioi import signal_variants
from utils.tasks.metrics import METRICS, Answers

VARIANTS = ["same_token_same_order", "same_token_opposite_order", "other_token_same_order"]
VARIANTS += ["other_token_opposite_order"]


def config_of(**keys) -> IoiConsistencyConfig:
    return IoiConsistencyConfig(model="any", **({"n_prompts": 6} | keys))


def prompts_of(config: IoiConsistencyConfig, tokenizer) -> tuple:
    """The prompts that effects are measured on, and their signal variants."""
    prompts = TASKS["ioi"].build(tokenizer, config.n_prompts, config.seed, config)
    return prompts, signal_variants(prompts, tokenizer, config.seed)


def turned_around(prompts: Prompts) -> Prompts:
    """The same prompts with right and wrong answers exchanged."""
    answers = prompts.answers
    return replace(prompts, answers=Answers(answers.wrong, answers.wrong_mask, answers.right, answers.right_mask))


def random_setup(architecture: str, **keys) -> tuple:
    """A random model of three layers that prefers the right answer, its IOI prompts and variants."""
    tokenizer = words()
    model = random_model(architecture, n_layers=3, n_heads=4, d_model=32, vocab=len(tokenizer))
    config = config_of(**keys)
    prompts, variants = prompts_of(config, tokenizer)
    weights = read_weights(model)
    if float(PairedRuns(weights, prompts, prompts.corrupted, 4, 1.0).clean().mean()) < 0:
        prompts = turned_around(prompts)
    return model, weights, prompts, variants, config


def pair(prompts: Prompts, others: torch.Tensor, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    n = int(prompts.lengths[row])
    return prompts.clean[row, :n], others[row, :n]


def logit_diff(logits: torch.Tensor, prompts: Prompts, row: int) -> float:
    return float(logits[prompts.answers.right[row, 0]] - logits[prompts.answers.wrong[row, 0]])


def facts_of(shape: tuple[int, int], **scores: dict[tuple[int, int], float]) -> HeadFacts:
    """Head facts with given scores, 0 elsewhere; all heads are in the circuit."""
    planted = {name: torch.zeros(shape) for name in ("copy", "induction", "duplicate_token", "cspa")}
    for name, heads in scores.items():
        for head, value in heads.items():
            planted[name][head] = value
    return HeadFacts(torch.ones(shape, dtype=torch.bool), "found", **planted, sources={})


# --- effects against brute force


@pytest.mark.parametrize("architecture", HOOKED)
def test_logit_differences_equal_the_metric_of_the_models_own_logits(architecture: str) -> None:
    model, weights, prompts, _, _ = random_setup(architecture)
    logits = model(prompts.clean).logits[torch.arange(len(prompts)), prompts.lengths - 1]
    expected = METRICS["logit_diff"](logits, prompts.answers)
    found = PairedRuns(weights, prompts, prompts.corrupted, 4, 1.0).clean()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_an_output_bias_counts() -> None:
    _, weights, prompts, _, _ = random_setup("gpt2")
    bias = torch.randn(weights.d_vocab)
    rows = torch.arange(len(prompts))
    finals = torch.randn(len(prompts), weights.d_model)
    without = LogitDifference(weights, prompts)(finals, rows)
    with_bias = LogitDifference(replace(weights, unembed_bias=bias), prompts)(finals, rows)
    expected = bias[prompts.answers.right[:, 0]] - bias[prompts.answers.wrong[:, 0]]
    torch.testing.assert_close(with_bias - without, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("corruption", ["swap", "abc"])
@pytest.mark.parametrize("architecture", HOOKED)
def test_direct_effects_in_closed_form_equal_the_mask_evaluation(architecture: str, corruption: str) -> None:
    _, weights, prompts, _, _ = random_setup(architecture, ioi_corruption=corruption)
    runs = PairedRuns(weights, prompts, prompts.corrupted, 4, 1.0)
    senders = [(layer, head) for layer in range(3) for head in range(4)]
    direct, by_masks = runs.direct(senders), runs.along_paths(senders)
    torch.testing.assert_close(direct, by_masks, rtol=1e-5, atol=1e-5)
    assert float((direct - runs.clean()).abs().max()) > 1e-3


@pytest.mark.parametrize("through_mlps", [False, True])
@pytest.mark.parametrize("architecture", HOOKED)
def test_effects_of_the_first_two_levels_equal_brute_force(architecture: str, through_mlps: bool) -> None:
    model, weights, prompts, variants, config = random_setup(architecture, through_mlps=through_mlps, n_prompts=3)
    movers = ((1, 0), (2, 1), (2, 3))
    facts = facts_of((3, 4), copy=dict.fromkeys(movers, 90.0))
    heads = ioi_consistency(weights, prompts, variants, facts, config).heads
    effects = heads.set_index(["level", "layer", "head"]).sort_index()["effect"]
    clean = [logit_diff(Hooked(model).run(prompts.clean[i, : prompts.lengths[i]]).logits, prompts, i) for i in range(3)]
    for level, stages in (("name_movers", ()), ("s_inhibition", (Receivers(movers, "q"),))):
        for sender in [(0, 0), (0, 3), (1, 0), (1, 2), (2, 1)]:
            patched = [
                logit_diff(path_patched_logits(model, *texts, sender, stages, through_mlps=through_mlps), prompts, i)
                for i, texts in enumerate(pair(prompts, prompts.corrupted, i) for i in range(3))
            ]
            change = np.mean(patched) - np.mean(clean)
            assert effects[(level, *sender)] == pytest.approx(change / np.mean(clean), abs=1e-5), (level, sender)


@pytest.mark.parametrize("architecture", HOOKED)
def test_effects_on_values_equal_brute_force(architecture: str) -> None:
    model, weights, prompts, _, _ = random_setup(architecture, n_prompts=3)
    runs = PairedRuns(weights, prompts, prompts.corrupted, 2, 1.0)
    stages = [Receivers(((1, 1), (1, 2)), "v"), Receivers(((2, 0), (2, 3)), "q")]
    senders = [(0, 0), (0, 2), (1, 1)]
    found = runs.along_paths(senders, stages)
    for row, sender in enumerate(senders):
        for i in range(3):
            logits = path_patched_logits(model, *pair(prompts, prompts.corrupted, i), sender, tuple(stages))
            assert float(found[row, i]) == pytest.approx(logit_diff(logits, prompts, i), abs=1e-5)
    torch.testing.assert_close(found[2], runs.clean())  # (1, 1) cannot write to its own layer


@pytest.mark.parametrize("architecture", HOOKED)
def test_swaps_equal_a_hook_at_the_answer(architecture: str) -> None:
    model, weights, prompts, variants, _ = random_setup(architecture, n_prompts=3)
    others = variants["same_token_opposite_order"]
    senders, movers = [(0, 1), (1, 2)], [(1, 0), (2, 1)]
    names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
    swap = PairedRuns(weights, prompts, others, 2, 1.0).swapped(senders, movers, names)
    for row, sender in enumerate(senders):
        attended = []
        for i in range(3):
            logits, record = swapped_at_end(model, *pair(prompts, others, i), sender)
            assert float(swap.logit_difference[row, i]) == pytest.approx(logit_diff(logits, prompts, i), abs=1e-5)
            above = [mover for mover in movers if mover[0] > sender[0]]
            attended.append([record.attention[at][head, -1, names[i]] for at, head in above])
        expected = torch.stack([torch.stack(of_prompt) for of_prompt in attended]).mean(dim=(0, 1))
        torch.testing.assert_close(swap.mean_attention()[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", HOOKED)
def test_attention_equals_the_models_own(architecture: str) -> None:
    model, weights, prompts, _, _ = random_setup(architecture)
    names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
    queries = torch.stack([prompts.positions[name] for name in ("end", "s2")], dim=1)
    found = name_attention(weights, prompts.clean, prompts.lengths, queries, names, batch_size=4)
    own = torch.stack(model(prompts.clean, output_attentions=True).attentions)  # [layer, prompt, head, query, key]
    for row in range(2):
        for name in range(3):
            seen = [own[:, i, :, queries[i, row], names[i, name]] for i in range(len(prompts))]
            torch.testing.assert_close(found[row, name], torch.stack(seen).mean(0), rtol=1e-5, atol=1e-6)


# --- roles and levels


def test_percentages_are_shares_of_the_circuits_effect() -> None:
    _, weights, prompts, variants, config = random_setup("neox-parallel")
    facts = facts_of((3, 4), copy={(2, 0): 11.0, (1, 1): 10.0}, cspa={(0, 2): 0.2, (2, 0): 0.9, (1, 3): 0.1})
    facts.in_circuit[2, 3] = False
    found = ioi_consistency(weights, prompts, variants, facts, config)
    assert list(found.levels) == list(IOI_CONSISTENCY.columns)
    assert list(found.heads) == list(IOI_CONSISTENCY_HEADS.columns)
    heads = found.heads[found.heads["level"] == "name_movers"].set_index(["layer", "head"])
    assert len(heads) == 11
    assert (2, 3) not in heads.index
    roles = heads.loc[heads["passes"], "role"].to_dict()
    assert roles == {(0, 2): "copy_suppression", (2, 0): "name_mover"}  # exactly on a threshold is not above it
    level = found.levels.set_index("level").loc["name_movers"]
    sizes = heads["effect"].abs()
    assert level["total_effect"] == pytest.approx(sizes.sum())
    assert level["percent"] == pytest.approx(100 * sizes[heads["passes"]].sum() / sizes.sum())
    assert level["n_heads"] == 2
    assert level["n_measured"] == 11
    assert level["percent_se"] > 0


def test_standard_errors_are_those_of_the_mean_where_the_effect_is_a_mean() -> None:
    _, weights, prompts, variants, config = random_setup("neox-parallel", n_prompts=40)
    found = ioi_consistency(weights, prompts, variants, facts_of((3, 4)), config)
    clean = PairedRuns(weights, prompts, prompts.corrupted, 32, 1.0).clean().double()
    assert found.levels["logit_diff"][0] == pytest.approx(float(clean.mean()), rel=1e-5)
    assert found.levels["logit_diff_se"][0] == pytest.approx(float(clean.std() / 40**0.5), rel=0.1)


def test_batches_and_memory_change_nothing() -> None:
    _, weights, prompts, variants, config = random_setup(
        "neox-parallel", thresholds=Thresholds(s_inhibition_effect=1.0)
    )
    facts = facts_of((3, 4), copy={(2, 0): 50.0, (1, 1): 50.0}, induction={(0, 1): 0.5})
    found = ioi_consistency(weights, prompts, variants, facts, config)
    small = config.model_copy(update={"batch_size": 2, "memory_budget_gb": 1e-6})
    again = ioi_consistency(weights, prompts, variants, facts, small)
    for name in ("levels", "heads", "signals"):
        pd.testing.assert_frame_equal(getattr(found, name), getattr(again, name), rtol=1e-3, atol=1e-5)


def test_no_cspa_score_is_no_copy_suppression_and_both_scores_make_a_name_mover() -> None:
    facts = facts_of((1, 3), copy={(0, 1): 50.0}, cspa={(0, 0): torch.nan, (0, 1): 0.9, (0, 2): 0.9})
    roles = writing_roles([(0, 0), (0, 1), (0, 2)], facts, Thresholds())
    assert {head: role.name for head, role in roles.items()} == {(0, 1): "name_mover", (0, 2): "copy_suppression"}


def test_induction_and_duplicate_token_heads_need_the_score_and_the_effect() -> None:
    facts = facts_of((1, 4), induction={(0, 0): 0.9, (0, 2): 0.5}, duplicate_token={(0, 1): 0.8, (0, 2): 0.6})
    effects = np.array([-0.0009, -0.5, -0.5, -0.5])
    roles = reading_roles([(0, head) for head in range(4)], effects, facts, Thresholds())
    assert {head: (role.name, role.passes) for (_, head), role in roles.items()} == {
        0: ("induction", False),
        1: ("duplicate_token", True),
        2: ("duplicate_token", True),  # 0.6 is 1.7 times its mean, 0.5 is 1.4 times its own
    }


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"status": "task not learned"}, ["no circuit: task not learned"] * 3),
        ({"in_circuit": torch.zeros(3, 4, dtype=torch.bool)}, ["no circuit: it holds no heads"] * 3),
        (
            {},
            [
                None,
                "no name movers: no head of the circuit has a copy score above 10%",
                "no S-inhibition heads: there are no name movers to inhibit",
            ],
        ),
    ],
)
def test_levels_without_receivers_are_empty_and_say_why(change: dict, reasons: list) -> None:
    _, weights, prompts, variants, config = random_setup("neox-parallel")
    found = ioi_consistency(weights, prompts, variants, replace(facts_of((3, 4)), **change), config)
    assert list(found.levels["level"]) == list(LEVELS)
    assert [None if pd.isna(reason) else reason for reason in found.levels["reason"]] == reasons
    empty = found.levels["reason"].notna()
    assert found.levels.loc[empty, ["percent", "n_heads", "total_effect"]].isna().all(axis=None)
    assert found.levels.loc[~empty, ["percent", "n_heads", "total_effect"]].notna().all(axis=None)
    assert set(found.heads["level"]) == set(found.levels.loc[~empty, "level"])


def test_nothing_can_be_lost_of_a_negative_logit_difference() -> None:
    _, weights, prompts, variants, config = random_setup("neox-parallel")
    prompts = turned_around(prompts)
    found = ioi_consistency(weights, prompts, variants, facts_of((3, 4)), config)
    assert found.levels["reason"].str.fullmatch(r"the logit difference is -\S+, not above 0: nothing can be lost").all()
    assert found.levels["percent"].isna().all()


def test_without_s_inhibition_heads_the_third_level_says_why() -> None:
    _, weights, prompts, variants, config = random_setup("neox-parallel")
    facts = facts_of((3, 4), copy={(2, 0): 90.0})
    none_below = config.model_copy(update={"thresholds": Thresholds(s_inhibition_effect=-9.0)})
    found = ioi_consistency(weights, prompts, variants, facts, none_below).levels
    assert found["reason"][2] == "no S-inhibition heads: no effect on name movers' queries is below -9"
    assert found["percent"][1] == 0  # measured: the circuit's heads do reach the name mover
    none_passes = config.model_copy(update={"thresholds": Thresholds(s_inhibition_effect=9.0, attention_s1_change=2.0)})
    found = ioi_consistency(weights, prompts, variants, facts, none_passes).levels
    assert found["reason"][2] == "no S-inhibition heads: none of 12 candidates passes the signal test"


# --- the hand-built transformer


def hand_built(**keys) -> tuple:
    tokenizer = ioi_transformer.tokenizer()
    weights = read_weights(ioi_transformer.ioi_transformer())
    config = config_of(**({"n_prompts": 24} | keys))
    prompts, variants = prompts_of(config, tokenizer)
    blocks = repeated_blocks(ordinary_tokens(tokenizer, weights.d_vocab), 20, 10, seed=0)
    names = torch.stack([prompts.positions[name] for name in NAMES], dim=1)
    scores = attention_scores(weights, blocks, 32)
    scores |= copy_scores(weights, prompts.clean, prompts.lengths, names, 32)
    facts = facts_of((4, 3), cspa={(3, 1): 0.9})
    facts = replace(
        facts, copy=scores["copy"], induction=scores["induction"], duplicate_token=scores["duplicate_token"]
    )
    return weights, prompts, variants, facts, config


@pytest.mark.parametrize("through_mlps", [False, True])
def test_the_hand_built_algorithm_is_recovered_wholly(through_mlps: bool) -> None:
    found = ioi_consistency(*hand_built(through_mlps=through_mlps))
    assert found.levels["percent"].to_list() == pytest.approx([100, 100, 100], abs=1e-4)
    assert found.levels["n_heads"].to_list() == [2, 1, 2]
    assert found.levels["reason"].isna().all()
    passing = found.heads[found.heads["passes"]]
    roles = {role: set(zip(group["layer"], group["head"], strict=True)) for role, group in passing.groupby("role")}
    assert roles == ioi_transformer.ROLES
    effects = passing.set_index("role")["effect"]
    assert (effects.drop("copy_suppression") < -1).all()  # a swap turns the answer around
    assert effects["copy_suppression"] > 1  # it lowers the name it attends to, and now that is S
    assert effects["induction"] == pytest.approx(
        effects["duplicate_token"], rel=0.01
    )  # each gives half of the position
    attention = passing.set_index("role")
    assert attention.loc["name_mover", "attention_io"] > 0.99
    assert attention.loc["s_inhibition", "attention_s2"] > 0.99
    assert attention.loc["duplicate_token", "attention_s1"] > 0.99


def test_the_hand_built_head_inhibits_by_position_and_not_by_token() -> None:
    signals = ioi_consistency(*hand_built()).signals
    assert list(signals) == list(IOI_CONSISTENCY_SIGNALS.columns)
    assert set(zip(signals["layer"], signals["head"], strict=True)) == {(2, 0)}
    by_variant = signals.set_index("variant")
    assert list(by_variant.index) == VARIANTS
    clean = by_variant.loc["same_token_same_order"]
    for name in VARIANTS:
        values = by_variant.loc[name, ["logit_diff", "attention_io", "attention_s1", "attention_s2"]].to_numpy(float)
        flipped = name.endswith("opposite_order")
        expected = [-clean["logit_diff"], 0, 1, 0] if flipped else [clean["logit_diff"], 1, 0, 0]
        assert values == pytest.approx(expected, abs=1e-4), name


def test_a_head_that_does_not_move_the_name_movers_attention_fails() -> None:
    weights, prompts, variants, facts, config = hand_built()
    unmoved = dict.fromkeys(variants, prompts.clean)  # every variant is the prompt itself
    found = ioi_consistency(weights, prompts, unmoved, facts, config)
    row = found.heads.set_index(["level", "layer", "head"]).loc[("s_inhibition", 2, 0)]
    assert (row["role"], row["passes"]) == ("s_inhibition", False)
    assert found.levels["percent"].to_list()[1] == 0


# --- roles over time


def test_handover_tells_who_follows_whom() -> None:
    held = {10: {(1, 0)}, 20: {(1, 0), (2, 1)}, 30: {(2, 1)}, 40: set(), 50: {(2, 1)}}
    rows = [
        {"step": step, "tokens": 5 * step, "level": "name_movers", "layer": layer, "head": head, "role": "name_mover",
         "effect": -step / 100, "passes": (layer, head) in heads}
        for step, heads in held.items() for layer, head in ((1, 0), (2, 1))
    ]  # fmt: skip
    rows.append(rows[0] | {"layer": 0, "head": 3, "role": "s_inhibition", "passes": False})
    rows.append(rows[0] | {"layer": 0, "head": 2, "role": "duplicate_token", "step": 50, "tokens": 250, "passes": True})
    table = role_handover(pd.DataFrame(rows[::-1]), [0, 10, 20, 30, 40, 50])
    assert table[["role", "layer", "head", "first_step", "last_step", "n_held", "n_between"]].to_numpy().tolist() == [
        ["name_mover", 1, 0, 10, 20, 2, 2],
        ["name_mover", 2, 1, 20, 50, 3, 4],
        ["duplicate_token", 0, 2, 50, 50, 1, 1],
    ]
    assert table["first_tokens"].to_list() == [50, 100, 250]
    assert table["peak_step"].to_list() == [20, 50, 50]
    assert table["peak_effect"].to_list() == [-0.2, -0.5, -0.1]


def test_handover_without_any_role_has_no_rows() -> None:
    assert role_handover(pd.DataFrame(columns=["step", "tokens", *IOI_CONSISTENCY_HEADS.columns]), [0, 1]).empty


# --- the script


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
    found = ["circuit.n_prompts=8", "circuit.evaluate_on=same"]
    return [f"model={family}", "n_prompts=12", f"results_dir={results}", "device=cpu", *scores, *found, *more]


def test_the_script_finds_the_algorithm_and_its_handover(family: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert main(ANALYSIS, given(family, results, "circuit.heads=all")) == 0
    store = Store(results)
    for step in (0, 10, 20):
        levels = store.folder("ioi_consistency", "hand").read_table(step)
        assert list(levels) == ["model", "step", "tokens", *IOI_CONSISTENCY.columns]
        for kind in (IOI_CONSISTENCY_HEADS, IOI_CONSISTENCY_SIGNALS):
            assert list(store.folder(kind, "hand").read_table(step))[3:] == list(kind.columns)
    levels = store.read_tables("ioi_consistency", "hand").set_index(["step", "level"])
    assert levels.loc[0, "percent"].isna().all()
    assert levels.loc[0, "reason"].str.contains("not above 0").all()
    for step in (10, 20):
        assert levels.loc[step, "percent"].to_list() == pytest.approx([100, 100, 100], abs=1e-4)
    handover = (
        store.folder("ioi_consistency", "hand").read_summary("role_handover").set_index(["role", "layer", "head"])
    )
    spans = handover[["first_step", "last_step"]].apply(tuple, axis=1).to_dict()
    assert spans["name_mover", 3, 0] == (10, 10)
    assert spans["name_mover", 3, 2] == (20, 20)
    assert spans["s_inhibition", 2, 0] == (10, 20)
    assert handover.loc[("s_inhibition", 2, 0), "first_tokens"] == 100
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
    circuit = set(zip(heads["layer"], heads["head"], strict=True))
    assert circuit <= set.union(*ioi_transformer.ROLES.values(), {(0, 0)})  # the uniform heads are not in it
    assert store.folder("ioi_consistency", "hand").read_json(10)["inputs"]["circuit"] == "computed"


def store_inputs(keys: list[str], step: int) -> Store:
    """Stored scores that say another head is the name mover, as a run with these keys would take them."""
    config = load_config(IoiConsistencyConfig, None, keys)
    store = Store(config.results_dir)
    cells = [(layer, head) for layer in range(4) for head in range(3)]
    rows = [
        {"score": score, "layer": layer, "head": head, "value": 50.0 if (score, layer, head) == ("copy", 3, 1) else 0.0}
        for score in ("copy", "induction", "duplicate_token") for layer, head in cells
    ]  # fmt: skip
    write(store, "components", "hand", None, step, pd.DataFrame(rows), 100)
    cspa = [{"layer": layer, "head": head, "score": 0.5 if (layer, head) == (3, 0) else None} for layer, head in cells]
    write(store, "cspa", "hand", None, step, pd.DataFrame(cspa[6:]), 100)  # from layer 2 up
    family = resolve_family(str(config.model), config.cache_dir)
    for kind, of_kind in (("components", config.components_config()), ("cspa", config.cspa_config())):
        folder = store.folder(kind, "hand")
        RunRecord(folder).begin(folder.kind.script.removesuffix(".py"), of_kind, family, [step])
        RunRecord(folder).add(step, family.load(step, device="cpu").provenance)
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
    assert roles == {(3, 0): "copy_suppression", (3, 1): "name_mover"}
    assert first["cspa"].isna().sum() == 11
    assert sources(store) == {"circuit": "all heads", "components": "stored", "cspa": "stored"}


@pytest.mark.parametrize(
    ("override", "kind", "says"),
    [
        ("components.seq_len=9", "components", "components/hand holds seq_len=10, this run asks 9"),
        ("components.n_prompts=21", "components", "components/hand holds n_prompts=20, this run asks 21"),
        ("cspa.k_unembeddings=0.1", "cspa", "cspa/hand holds k_unembeddings=0.05, this run asks 0.1"),
        ("seed=1", "components", "components/hand holds seed=0, this run asks 1"),
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


def test_a_stored_circuit_is_taken_only_where_it_is_the_one_this_run_would_find(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    found = [f"model={family}", "task=ioi", "checkpoints=[10]", f"results_dir={results}", "device=cpu", "n_prompts=8"]
    keys = given(family, results, "checkpoints=[10]")
    asked = [*found, "evaluate_on=same", "ioi_corruption=abc", "search.threshold=0.95"]
    assert main(CIRCUITS, asked) == 0
    assert main(ANALYSIS, [*keys, "require_stored=true"]) == 2
    assert f"{results}/graphs/hand/ioi holds ioi_corruption=abc, this run asks swap" in capsys.readouterr().err
    assert main(ANALYSIS, keys) == 0
    assert any("holds ioi_corruption=abc, this run asks swap" in record.getMessage() for record in caplog.records)
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
    keys = given(other, store.root, "circuit.heads=all", "checkpoints=[10]")
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
    assert "sequences of 20 tokens, but 100010 are needed" in line


def test_without_a_text_cspa_cannot_be_computed(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [key for key in given(family, tmp_path / "results", "circuit.heads=all") if not key.startswith("cspa=")]
    assert main(ANALYSIS, keys) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line == "cspa: no scores are stored and no text is named to compute them; pass cspa.corpus=FILE"


# --- the trained toy families


def test_the_toy_familys_levels_are_found_and_explained_and_step_0_is_empty(toy_family: Path, tmp_path: Path) -> None:
    last = TOY_STEPS[-1]
    overrides = [f"model={toy_family}", f"checkpoints=[0, {last}]", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, ["-c", str(CONFIGS / "ioi_consistency_toy.yml"), *overrides]) == 0
    store = Store(tmp_path)
    name = toy_family.name
    start = store.folder("ioi_consistency", name).read_table(0)
    assert start["percent"].isna().all()
    assert start["n_heads"].isna().all()
    assert set(start["reason"]) == {"no circuit: task not learned"}
    assert store.folder("ioi_consistency_heads", name).read_table(0).empty
    end = store.folder("ioi_consistency", name).read_table(last).set_index("level")
    assert end.loc["name_movers", "percent"] > 70
    assert (end["percent"].notna() | end["reason"].notna()).all()
    heads = store.folder("ioi_consistency_heads", name).read_table(last)
    for row in heads[(heads["level"] == "name_movers") & heads["passes"]].itertuples():
        assert row.copy_score > 10 if row.role == "name_mover" else row.cspa > 0.10
    handover = store.folder("ioi_consistency", name).read_summary("role_handover")
    assert set(handover["first_step"]) == {last}


def test_the_algorithm_of_a_checkpoint_that_knows_positions_is_found_at_all_levels(tmp_path: Path) -> None:
    overrides = [f"model={TOY_IOI}", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, ["-c", str(CONFIGS / "ioi_consistency_toy.yml"), *overrides]) == 0
    store = Store(tmp_path)
    levels = store.folder("ioi_consistency", "toy_ioi").read_table(TOY_IOI_STEP).set_index("level")
    assert levels["reason"].isna().all()
    assert levels.loc["name_movers", "percent"] > 50
    assert levels.loc["s_inhibition", "percent"] > 90
    assert levels.loc["induction", "percent"] > 90
    heads = store.folder("ioi_consistency_heads", "toy_ioi").read_table(TOY_IOI_STEP)
    held = heads[heads["passes"]].set_index(["level", "layer", "head"])
    movers = held.loc["name_movers"]
    assert movers.loc[(4, 0), "role"] == "name_mover"
    assert movers.loc[(4, 0), "attention_io"] > 0.8
    assert movers.loc[(3, 3), "role"] == "copy_suppression"
    # The strongest S-inhibition head looks at the repeated name; what it reads comes from induction heads below it.
    inhibitors = held.loc["s_inhibition"]
    assert inhibitors["effect"].idxmin() == (3, 2)
    assert inhibitors.loc[(3, 2), "attention_s2"] > 0.4
    assert set(held.loc["induction"]["role"]) == {"induction"}
    assert {layer for layer, _ in held.loc["induction"].index} == {2}
    signals = store.folder("ioi_consistency_signals", "toy_ioi").read_table(TOY_IOI_STEP)
    of_head = signals[(signals["layer"] == 3) & (signals["head"] == 2)].set_index("variant")
    clean, opposite = of_head.loc["same_token_same_order"], of_head.loc["same_token_opposite_order"]
    assert opposite["logit_diff"] < clean["logit_diff"] - 0.5
    assert opposite["attention_io"] < clean["attention_io"] - 0.1
    assert opposite["attention_s1"] > clean["attention_s1"] + 0.1
