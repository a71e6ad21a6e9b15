"""Backup behaviour against forward passes of the Hugging Face model with hooks, and its identities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.utils.algorithms import backup
from circuits_over_time.utils.algorithms.backup import Ablation, backup_table, direct_effects, without_backup
from circuits_over_time.utils.algorithms.keys import ablated_sets
from circuits_over_time.utils.algorithms.roles import Role
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.results.kinds import IOI_BACKUP
from tests.support.ioi_setup import HEADS, Setup, facts_of, random_setup
from tests.support.path_patching_reference import Hooked, Record, ReplacedAtEnd
from tests.support.random_models import ARCHITECTURES, HOOKED

MOVERS = [(0, 1), (1, 0), (1, 2)]
ROLES = {head: Role("name_mover", True) for head in MOVERS} | {(2, 0): Role("copy_suppression", True)}


def table_of(setup: Setup, ablation: Ablation) -> pd.DataFrame:
    levels = setup.levels(facts_of(Graph.of(setup.weights)))
    return backup_table(levels.runs, ROLES, ablation, levels.scale)


class Parts:
    """Direct effects from the raw weights of the model: what is written, through the final norm at a given scale."""

    def __init__(self, setup: Setup, row: int, final: Tensor) -> None:
        self.model = setup.model
        hooked = Hooked(self.model)
        norm, unembed = hooked.final_norm, self.model.get_output_embeddings().weight
        answers = setup.prompts.answers
        self.direction = norm.weight * (unembed[answers.right[row, 0]] - unembed[answers.wrong[row, 0]])
        self.scale = (final.var(unbiased=False) + norm.eps).sqrt()

    def of(self, written: Tensor) -> float:
        return float((written - written.mean()) @ self.direction / self.scale)

    def of_head(self, record: Record, layer: int, head: int) -> float:
        hooked = Hooked(self.model)
        z = record.z[layer][-1, head]
        of_head = slice(head * len(z), (head + 1) * len(z))
        if hooked.neox:
            return self.of(hooked.blocks[layer].attention.dense.weight[:, of_head] @ z)
        return self.of(z @ hooked.blocks[layer].attn.c_proj.weight[of_head])

    def of_mlps(self, record: Record) -> float:
        return sum(self.of(out[-1]) for out in record.mlp)


@pytest.mark.parametrize("ablation", ["mean", "corrupted"])
@pytest.mark.parametrize("architecture", HOOKED)
def test_direct_effects_before_and_after_equal_runs_with_hooks(architecture: str, ablation: Ablation) -> None:
    setup = random_setup(architecture, n_prompts=3)
    hooked = Hooked(setup.model)
    pairs = [setup.pair(setup.prompts.corrupted, row) for row in range(3)]
    clean, corrupted = ([hooked.run(texts[i]) for texts in pairs] for i in range(2))
    means = {(layer, head): torch.stack([run.z[layer][-1, head] for run in clean]).mean(0) for layer, head in MOVERS}
    rows = {name: [] for name in ("heads", "heads_after", "mlps", "mlps_after", "whole", "whole_after", "rescaled")}
    for row, (texts, before, other) in enumerate(zip(pairs, clean, corrupted, strict=True)):
        values = {(layer, head): other.z[layer][-1, head] for layer, head in MOVERS}
        after = hooked.run(texts[0], ReplacedAtEnd(means if ablation == "mean" else values))
        parts = Parts(setup, row, before.final)
        for record, end in ((before, ""), (after, "_after")):
            rows[f"heads{end}"].append([parts.of_head(record, *head) for head in HEADS])
            rows[f"mlps{end}"].append(parts.of_mlps(record))
            rows[f"whole{end}"].append(setup.logit_diff(record.logits, row))
        rows["rescaled"].append(parts.of(after.final - before.final))
    expected = {name: np.mean(values, axis=0) for name, values in rows.items()}

    table = table_of(setup, ablation)
    heads = table[table["part"] == "head"]
    assert list(zip(heads["layer"], heads["head"], strict=True)) == HEADS
    np.testing.assert_allclose(heads["direct_effect"], expected["heads"], atol=1e-5)
    np.testing.assert_allclose(heads["direct_effect_ablated"], expected["heads_after"], atol=1e-5)
    parts = table.set_index("part")
    for name, effect in (("mlps", "mlps"), ("all", "whole")):
        assert parts.loc[name, "direct_effect"] == pytest.approx(expected[effect], abs=1e-5)
        assert parts.loc[name, "direct_effect_ablated"] == pytest.approx(expected[f"{effect}_after"], abs=1e-5)
    norm = expected["whole_after"] - expected["whole"] - expected["rescaled"]
    assert parts.loc["final_norm", "change"] == pytest.approx(norm, abs=1e-5)

    change = expected["heads_after"] - expected["heads"]
    ablated = np.array([head in MOVERS for head in HEADS])
    assert max(abs(change[~ablated])) > 1e-3  # the others do respond
    lost = -change[ablated].sum()
    assert parts.loc["name_movers", "change"] == pytest.approx(-lost, abs=1e-5)
    if lost > 0:
        back = 100 * (expected["whole_after"] - expected["whole"] + lost) / lost
        assert parts.loc["all", "came_back"] == pytest.approx(back, rel=1e-3, abs=0.01)
        found = heads["came_back"].to_numpy()
        np.testing.assert_allclose(found[~ablated], 100 * change[~ablated] / lost, rtol=1e-3, atol=0.01)
        assert np.isnan(found[ablated]).all()
    else:
        assert parts.loc["all", "reason"] == "ablating the name movers loses nothing directly"
        assert table["came_back"].isna().all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_changes_of_the_parts_add_up_to_the_whole_on_every_block(architecture: str) -> None:
    setup = random_setup(architecture)
    found = direct_effects(setup.runs(), MOVERS, "corrupted")
    parts = found.heads[1].sum(dim=(0, 1)) + found.mlps[1] + found.final_norm[1]
    torch.testing.assert_close(parts, found.logit_diff[1])
    below = [head for head in HEADS if head[0] == 0 and head not in MOVERS]
    assert all(bool((found.heads[1][head] == 0).all()) for head in below)


def test_what_came_back_is_the_sum_over_the_parts_that_stay() -> None:
    setup = next(setup for setup in map(random_setup, HOOKED) if table_of(setup, "mean")["reason"].isna().all())
    table = table_of(setup, "mean")
    assert list(table) == list(IOI_BACKUP.columns)
    parts = table[table["part"] != "head"].set_index("part")
    assert parts.loc[["heads", "mlps", "final_norm"], "came_back"].sum() == pytest.approx(parts.loc["all", "came_back"])
    heads = table[table["part"] == "head"]
    assert heads["came_back"].sum() == pytest.approx(parts.loc["heads", "came_back"])
    assert heads.set_index(["layer", "head"])["role"].to_dict()[2, 0] == "copy_suppression"
    assert (table["n_ablated"] == 3).all()
    assert (parts["came_back_low"].dropna() <= parts["came_back"].dropna()).all()
    assert (parts["came_back_high"].dropna() >= parts["came_back"].dropna()).all()


def test_every_head_is_ablated_in_three_passes_and_its_backup_is_that_of_runs_with_hooks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setup = random_setup("gpt2", n_prompts=3)
    levels, passes = setup.levels(facts_of(Graph.of(setup.weights))), []
    evaluate = backup.evaluate_masks_final

    def counted(weights: Any, runs: Any, masks: Tensor, **keys: Any) -> Tensor:
        passes.extend([runs.layout.n_tokens / runs.layout.n_prompts] * len(masks))
        return evaluate(weights, runs, masks, **keys)

    monkeypatch.setattr(backup, "evaluate_masks_final", counted)
    table = backup_table(levels.runs, {}, "mean", levels.scale, ["every_head", ["a0.h1", "a1.h0"]])
    n_batches = len(list(levels.runs))
    assert set(passes) == {1.0}  # the last tokens alone
    assert len(passes) <= 3 * n_batches * (len(HEADS) + 1)
    assert table["ablated"].nunique() == len(HEADS) + 1
    assert set(table["part"]) == {"all", "ablated", "heads", "mlps", "final_norm", "head"}

    hooked = Hooked(setup.model)
    texts = [setup.pair(setup.prompts.corrupted, row)[0] for row in range(3)]
    clean = [hooked.run(text) for text in texts]
    frozen = table[table["from_head"].notna()]
    assert len(frozen) >= 4
    for row in frozen.itertuples():
        heads = [(int(name[1]), int(name[4])) for name in row.ablated.split("+")]
        back = int(row.layer), int(row.head)
        means = {(layer, head): torch.stack([run.z[layer][-1, head] for run in clean]).mean(0) for layer, head in heads}
        ends, held = [], []
        for number, text in enumerate(texts):
            ends.append(setup.logit_diff(hooked.run(text, ReplacedAtEnd(means)).logits, number))
            stays = {back: clean[number].z[back[0]][-1, back[1]]}
            held.append(setup.logit_diff(hooked.run(text, ReplacedAtEnd(means | stays)).logits, number))
        lost = -table[(table["ablated"] == row.ablated) & (table["part"] == "ablated")]["change"].item()
        assert row.from_head == pytest.approx(100 * (np.mean(ends) - np.mean(held)) / lost, rel=1e-3, abs=0.02)
        assert row.from_head_low <= row.from_head <= row.from_head_high


def test_sets_that_the_model_has_not_got_are_refused_by_name() -> None:
    graph = Graph.of(random_setup("gpt2").weights)
    movers = {"name_mover": MOVERS}
    assert ablated_sets(["name_mover", ["name_mover", "a2.h3"]], graph, movers) == {
        "name_mover": MOVERS,
        "name_mover+a2.h3": [*MOVERS, (2, 3)],
    }
    with pytest.raises(UserError, match=r"backup_of: 'a9\.h0' is neither a head of the model nor a role of level 1"):
        ablated_sets(["a9.h0"], graph, {})


def test_without_name_movers_or_without_being_asked_the_table_says_why() -> None:
    setup = random_setup("gpt2")
    levels = setup.levels(facts_of(Graph.of(setup.weights)))
    for table, reason in (
        (backup_table(levels.runs, {}, "mean", levels.scale), "there are no name movers to ablate"),
        (without_backup("not measured: backup is false"), "not measured: backup is false"),
    ):
        assert list(table) == list(IOI_BACKUP.columns)
        assert table["reason"].to_list() == [reason]
        assert table["came_back"].isna().all()
