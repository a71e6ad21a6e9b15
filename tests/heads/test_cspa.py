"""Copy-suppression-preserving ablation against its definition, on hand-built heads, and at its limits."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge

from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights, read_weights
from circuits_over_time.utils.heads import streamed_kl
from circuits_over_time.utils.heads.corpus import Corpus
from circuits_over_time.utils.heads.cspa import prepare
from circuits_over_time.utils.heads.cspa_scores import NO_EFFECT, OVERFLOW, cspa_scores, kept_sources, mean_outputs
from circuits_over_time.utils.heads.keys import Ablation, CspaConfig
from tests.support.cspa_models import COPYING, RANDOM, SUPPRESSING, copy_suppression_model, sequences
from tests.support.cspa_reference import cspa_of_head
from tests.support.random_models import HOOKED, random_model, tiny_tokenizer

FUNCTION_WORDS = torch.tensor([1, 2, 3, 4, 39])
NONE = torch.tensor([], dtype=torch.long)
SETTINGS = {
    "both": Ablation(),
    "both, wide": Ablation(k_unembeddings=0.3, keep_self_attention=False, negative_only=False),
    "ov": Ablation(interventions=["ov"]),
    "qk": Ablation(interventions=["qk"], k_unembeddings=0.2),
    "qk without self": Ablation(interventions=["qk"], keep_self_attention=False),
    "ov, both signs": Ablation(interventions=["ov"], negative_only=False),
}


def random_text(n: int, seq_len: int, seed: int, vocab: int = 40) -> torch.Tensor:
    """Few words, so that most repeat."""
    return torch.randint(0, vocab, (n, seq_len), generator=torch.Generator().manual_seed(seed))


def scores(weights: ModelWeights, tokens, others, function_words=FUNCTION_WORDS, settings=SETTINGS["both"], batch=2):
    means = mean_outputs(weights, others, settings.start_layer, batch)
    return cspa_scores(weights, tokens, means, function_words, settings, batch)


@pytest.fixture(scope="module", params=HOOKED)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def weights(architecture: str) -> ModelWeights:
    return read_weights(random_model(architecture))


@pytest.fixture(scope="module")
def bridge(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> TransformerBridge:
    folder = tmp_path_factory.mktemp(architecture)
    tokenizer = tiny_tokenizer(folder)
    return TransformerBridge.boot_transformers(
        str(folder), hf_model=random_model(architecture), tokenizer=tokenizer, device="cpu"
    )


def assert_equals_reference(bridge, weights, settings: Ablation, heads=((0, 0), (1, 2), (2, 3))) -> None:
    tokens, others = random_text(3, 23, 1), random_text(5, 23, 2)
    table = scores(weights, tokens, others, settings=settings).set_index(["layer", "head"])
    for layer, head in heads:
        expected = cspa_of_head(
            bridge,
            weights,
            tokens,
            others,
            set(FUNCTION_WORDS.tolist()),
            layer,
            head,
            interventions=tuple(settings.interventions),
            k_unembeddings=settings.k_unembeddings,
            keep_self_attention=settings.keep_self_attention,
            negative_only=settings.negative_only,
        )
        found = table.loc[(layer, head), list(expected)].to_dict()
        # A score near 0 is a difference of numbers near 1.
        assert found.pop("score") == pytest.approx(expected.pop("score"), rel=1e-4, abs=1e-6)
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_scores_equal_the_definition(bridge: TransformerBridge, weights: ModelWeights, name: str) -> None:
    assert_equals_reference(bridge, weights, SETTINGS[name])


def test_scores_under_the_studys_rule_equal_the_definition_on_its_text(bridge, weights, tmp_path) -> None:
    """The text by explicit loops, the scores by the slow reference."""
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 60, (40,), generator=generator).tolist()
    documents = [" ".join(map(str, random_text(1, size, place)[0].tolist())) for place, size in enumerate(lengths)]
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(documents))
    config = CspaConfig(
        model="any",
        corpus=str(path),
        head_scores="study",
        prepend_bos=True,
        n_sequences=3,
        n_mean_sequences=7,
        seq_len=12,
        corpus_window=30,
        start_layer=1,
        seed=5,
    )
    inputs = prepare(config, tokenizer, weights)
    means = mean_outputs(weights, inputs.others, config.start_layer, batch_size=2)
    table = cspa_scores(weights, inputs.scored, means, inputs.function_tokens, config, 2).set_index(["layer", "head"])

    beginnings: list[list[int]] = []
    for document in Corpus(str(path)).documents(5):
        ids = [tokenizer.bos_token_id, *(int(word) for word in document.split())]
        if len(ids) > 30 and len(beginnings) < 7:
            beginnings.append(ids[:12])
    text = torch.tensor(beginnings)
    assert text.shape == (7, 12)
    assert torch.equal(inputs.others, text)
    function_words = set(inputs.function_tokens.tolist())
    assert table.index.get_level_values("layer").min() == 1
    for layer, head in ((1, 2), (2, 3)):
        expected = cspa_of_head(bridge, weights, text[:3], text, function_words, layer, head)
        assert table.loc[(layer, head), list(expected)].to_dict() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("small", [0.0, math.inf])
def test_both_ways_of_exponentiating_equal_the_definition(bridge, weights, small: float, monkeypatch) -> None:
    monkeypatch.setattr(streamed_kl, "SMALL", small)
    assert_equals_reference(bridge, weights, SETTINGS["both"], heads=((1, 2),))


@pytest.mark.parametrize("block", [(5, 7), (1000, 1), (69, 97)])
def test_tiles_of_any_size_give_the_same(weights, block: tuple[int, int], monkeypatch) -> None:
    tokens, others = random_text(3, 23, 1), random_text(5, 23, 2)
    expected = scores(weights, tokens, others)
    monkeypatch.setattr(streamed_kl, "CPU_BLOCK", block)
    pd.testing.assert_frame_equal(scores(weights, tokens, others), expected, rtol=1e-4, atol=1e-6)


def test_batches_and_start_layer_change_no_score(weights: ModelWeights) -> None:
    tokens, others = random_text(5, 23, 1), random_text(5, 23, 2)
    expected = scores(weights, tokens, others, batch=5)
    pd.testing.assert_frame_equal(scores(weights, tokens, others, batch=2), expected, rtol=1e-4, atol=1e-6)
    above = scores(weights, tokens, others, settings=Ablation(start_layer=1))
    assert above["layer"].tolist() == [1] * 4 + [2] * 4
    pd.testing.assert_frame_equal(above, expected[expected["layer"] >= 1].reset_index(drop=True), rtol=1e-4, atol=1e-6)


def test_keeping_everything_loses_nothing(weights: ModelWeights) -> None:
    settings = Ablation(interventions=["qk"], k_unembeddings=1.0)
    table = scores(weights, random_text(3, 23, 1), random_text(5, 23, 2), NONE, settings)
    assert table["kl_cspa"].max() < 1e-8
    assert table["score"].to_numpy() == pytest.approx(1.0, abs=1e-6)
    assert table["loss_cspa"].to_numpy() == pytest.approx(table["loss"].to_numpy(), abs=1e-6)


def test_keeping_nothing_is_mean_ablation(weights: ModelWeights) -> None:
    table = scores(weights, random_text(3, 23, 1), random_text(5, 23, 2), torch.arange(97))
    assert table["score"].to_numpy() == pytest.approx(0.0, abs=1e-6)
    assert table["loss_cspa"].to_numpy() == pytest.approx(table["loss_ablated"].to_numpy(), abs=1e-6)


@pytest.fixture(scope="module")
def hand_built() -> pd.DataFrame:
    weights = read_weights(copy_suppression_model())
    return scores(weights, sequences(8, 40, 0), sequences(30, 40, 1), torch.tensor([0])).set_index("head")


def test_hand_built_copy_suppression_head_is_recovered(hand_built: pd.DataFrame) -> None:
    assert hand_built.loc[SUPPRESSING, "kl_ablated"] > 0.01
    assert hand_built.loc[SUPPRESSING, "score"] > 0.95


def test_random_and_copying_heads_are_not_recovered(hand_built: pd.DataFrame) -> None:
    assert hand_built.loc[[RANDOM, COPYING], "kl_ablated"].min() > 0.001
    assert hand_built.loc[[RANDOM, COPYING], "score"].max() < 0.2


def test_copying_head_is_recovered_where_positive_components_count() -> None:
    weights = read_weights(copy_suppression_model())
    settings = Ablation(negative_only=False)
    table = scores(weights, sequences(8, 40, 0), sequences(30, 40, 1), torch.tensor([0]), settings)
    assert table["score"][COPYING] > 0.95


@pytest.mark.parametrize("factor", [0.0, 1e-9])
def test_head_without_effect_has_no_score_but_a_reason(factor: float) -> None:
    model = random_model()
    model.gpt_neox.layers[1].attention.dense.weight[:, :8] *= factor  # head 0
    table = scores(read_weights(model), random_text(3, 23, 1), random_text(5, 23, 2)).set_index(["layer", "head"])
    assert math.isnan(table.loc[(1, 0), "score"])
    assert table.loc[(1, 0), "reason"] == NO_EFFECT
    assert table.drop(index=(1, 0))["score"].notna().all()
    assert (table.drop(index=(1, 0))["reason"] == "").all()


def test_head_whose_output_is_constant_has_no_score_but_a_reason() -> None:
    """Its value is a bias only: mean ablation changes nothing but rounding."""
    model = random_model()
    qkv = model.gpt_neox.layers[1].attention.query_key_value
    qkv.weight.view(4, 3, 8, 32)[0, 2] = 0
    qkv.bias.view(4, 3, 8)[0, 2] = 30.0
    table = scores(read_weights(model), random_text(3, 23, 1), random_text(5, 23, 2)).set_index(["layer", "head"])
    assert math.isnan(table.loc[(1, 0), "score"])
    assert table.loc[(1, 0), "reason"] == NO_EFFECT


def test_overflow_gives_a_reason_instead_of_a_wild_number() -> None:
    model = random_model()
    model.lm_head.weight *= 300
    table = scores(read_weights(model), random_text(3, 23, 1), random_text(5, 23, 2))
    overflowing = table[table["reason"] == OVERFLOW]
    assert len(overflowing)
    assert overflowing["score"].isna().all()
    numbers = table.drop(columns="reason").to_numpy(float)
    assert not torch.tensor(numbers).isinf().any()


def test_number_of_positions_and_columns() -> None:
    table = scores(read_weights(random_model()), random_text(3, 23, 1), random_text(5, 23, 2))
    numbers = ("score", "kl_cspa", "kl_ablated", "loss", "loss_cspa", "loss_ablated")
    with_errors = [column for name in numbers for column in (name, f"{name}_se")]
    assert list(table) == ["layer", "head", *with_errors, "n_positions", "reason"]
    assert set(table["n_positions"]) == {69}


def test_the_error_of_a_score_follows_from_the_sequences_by_themselves() -> None:
    weights, tokens, others = read_weights(random_model()), random_text(6, 23, 1), random_text(5, 23, 2)
    table = scores(weights, tokens, others)
    alone = [scores(weights, sequence[None], others) for sequence in tokens]
    assert all(one["score_se"].isna().all() for one in alone)
    for name in ("kl_cspa", "kl_ablated", "loss", "loss_cspa", "loss_ablated"):
        by_sequence = np.stack([one[name] for one in alone])
        np.testing.assert_allclose(table[f"{name}_se"], by_sequence.std(axis=0, ddof=1) / 6**0.5, rtol=1e-3)
    for number, row in enumerate(table.itertuples()):
        cspa, ablated = (np.array([one[name][number] for one in alone]) for name in ("kl_cspa", "kl_ablated"))
        squares = (cspa - (1 - row.score) * ablated) ** 2
        expected = ((squares.sum() + 3 * squares.max()) / (6 * 5)) ** 0.5 / ablated.mean()
        assert row.score_se == pytest.approx(expected, rel=1e-3)


def test_loss_is_the_models() -> None:
    model, tokens = random_model(), random_text(3, 23, 1)
    table = scores(read_weights(model), tokens, random_text(5, 23, 2))
    assert table["loss"][0] == pytest.approx(float(model(tokens, labels=tokens).loss), rel=1e-5)


def test_half_precision_weights_are_scored_in_float32() -> None:
    tokens, others = random_text(3, 23, 1), random_text(5, 23, 2)
    settings = Ablation(interventions=["qk"], k_unembeddings=1.0, keep_self_attention=False)
    full = scores(read_weights(random_model()), tokens, others, NONE, settings)
    half = scores(read_weights(random_model().bfloat16()), tokens, others, NONE, settings)
    assert half["score"].to_numpy() == pytest.approx(full["score"].to_numpy(), abs=0.05)


class TestKeptSources:
    tokens = torch.tensor([[7, 5, 7, 6, 5, 8]])
    predicted = torch.tensor([0.7, 0.5, 0.7, 0.6, 0.5, 0.8]).expand(1, 6, 6)

    def kept_at_the_end(self, function_words=NONE, **settings) -> list[int]:
        rule = Ablation(**settings)
        n_kept = torch.tensor(rule.n_kept(6))
        kept = kept_sources(self.predicted, self.tokens, torch.as_tensor(function_words), rule, n_kept)
        assert not kept[0].triu(1).any()
        return kept[0, -1].nonzero()[:, 0].tolist()

    def test_most_predicted_token_is_kept(self) -> None:
        assert self.kept_at_the_end() == [5]

    def test_repeated_token_counts_once_and_is_kept_at_each_place(self) -> None:
        assert self.kept_at_the_end(k_unembeddings=0.3) == [0, 2, 5]

    def test_own_token_is_left_out_without_self_attention(self) -> None:
        assert self.kept_at_the_end(keep_self_attention=False) == [0, 2]

    def test_function_word_gives_its_place_to_the_next(self) -> None:
        assert self.kept_at_the_end(torch.tensor([8, 7])) == [3]

    def test_ov_alone_keeps_every_source(self) -> None:
        assert self.kept_at_the_end(torch.tensor([8]), interventions=["ov"]) == [0, 1, 2, 3, 4, 5]

    def test_no_candidate_keeps_nothing(self) -> None:
        assert self.kept_at_the_end(torch.tensor([5, 6, 7, 8]), k_unembeddings=1.0) == []


def test_fraction_is_rounded_up_as_it_is_written() -> None:
    assert Ablation(k_unembeddings=0.05).n_kept(61) == [1] * 20 + [2] * 20 + [3] * 20 + [4]
    assert Ablation(k_unembeddings=0.07).n_kept(100)[-1] == 7


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="interventions"):
        Ablation(interventions=())
    with pytest.raises(ValueError, match="k_unembeddings"):
        Ablation(k_unembeddings=0)


def test_hand_built_head_lowers_the_prediction_it_attends_to() -> None:
    model, tokens = copy_suppression_model(), torch.tensor([[0, 5, 4, 3, 6]])  # 6 predicts 5, which is in the context
    with torch.no_grad():
        attention = model(tokens, output_attentions=True).attentions[0][0, SUPPRESSING, -1]
    assert int(attention.argmax()) == 1
    assert float(attention[1]) > 0.9


def test_by_the_study_all_sources_come_back_where_too_few_are_admissible() -> None:
    tokens, predicted = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[[4.0, 3.0, 2.0, 1.0]]]).expand(1, 4, 4)
    function_words = torch.tensor([5, 6])
    kept = {}
    for name in ("standard", "study"):
        rule = Ablation(k_unembeddings=0.5, head_scores=name)
        kept[name] = kept_sources(predicted, tokens, function_words, rule, torch.tensor(rule.n_kept(4)))[0].tolist()
    # K is 1, 1, 2, 2, and only tokens 7 and 8 are admissible: fewer than K at the first three positions.
    assert kept["standard"] == [[False] * 4, [False] * 4, [False, False, True, False], [False, False, True, True]]
    few = [[True, False, False, False], [True, True, False, False], [True, True, True, False]]
    assert kept["study"] == [*few, [False, False, True, True]]
