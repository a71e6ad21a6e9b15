"""The succession score against a hand-built successor head and against a slow second implementation."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.heads.keys import Definition
from circuits_over_time.utils.heads.succession import (
    Succession,
    chance_level,
    succession,
)
from circuits_over_time.utils.heads.successor_words import CLASSES, Pairs, successor_pairs
from circuits_over_time.utils.results.store import Store
from circuits_over_time.utils.sweep.runner import main
from get_new_successor_head_scores_over_time import ANALYSIS
from tests.support.hand_built import COPY, OUT, VOCAB, Head, successor_model
from tests.support.paths import PYTHIA_TOKENIZER, TOY_STEPS
from tests.support.random_models import (
    HOOKED,
    random_model,
    tiny_tokenizer,
    value_projection,
    without_biases,
)
from tests.support.task_tokenizers import word_level, words
from tests.support.word_family import word_model


def roman(number: int) -> str:
    """A number as a roman numeral, for numbers below 40."""
    tens, ones = divmod(number, 10)
    return "X" * tens + ("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")[ones]


# --- hand-built


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hand_built_successor_head_scores_one_and_no_other_head_anything(tmp_path, dtype: torch.dtype) -> None:
    pairs = successor_pairs(tiny_tokenizer(tmp_path, vocab=VOCAB))
    result = succession(read_weights(successor_model().to(dtype)), pairs)
    assert result.pairs("numbers") == VOCAB - 2  # the words are 1 .. 23
    assert result.share("numbers").tolist() == [[0, 0, 0], [1, 0, 0]]
    assert result.overall().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_under_the_studys_definition_a_head_that_writes_nothing_is_right_because_all_its_logits_tie(tmp_path) -> None:
    pairs = successor_pairs(tiny_tokenizer(tmp_path, vocab=VOCAB), "study")
    result = succession(read_weights(successor_model()), pairs, "study")
    assert result.pairs("numbers") == 4 * (VOCAB - 2)  # two spellings, each twice; the tokenizer drops the space
    # 1.0 writes the successor. 1.1 writes the word itself, and word 1 is nobody's successor: there all tie.
    assert result.share("numbers").tolist() == [[1, 1, 1], [1, pytest.approx(1 / (VOCAB - 2)), 1]]


@pytest.mark.parametrize("definition", ["standard", "study"])
def test_ties_of_half_precision_are_right_under_the_studys_definition_alone(tmp_path, definition: Definition) -> None:
    """1.0 prefers the successor by less than bfloat16 can tell."""
    model = successor_model()
    Head(model, 1, 0).moves(COPY, OUT, 1 + 1e-3 * torch.eye(VOCAB).roll(1, dims=1))
    pairs = successor_pairs(tiny_tokenizer(tmp_path, vocab=VOCAB))
    assert succession(read_weights(model), pairs, definition).share("numbers")[1, 0] == 1
    in_half = succession(read_weights(model.bfloat16()), pairs, definition).share("numbers")[1, 0]
    assert in_half == (1 if definition == "study" else 0)


def test_biases_of_attention_and_norms_do_not_matter(tmp_path) -> None:
    """They are the same for every token, however much they favour one successor."""
    model = successor_model()
    Head(model, 1, 0).v_bias[5] = 100.0
    model.transformer.h[1].attn.c_proj.bias.normal_()
    model.transformer.h[1].ln_1.bias.normal_()
    model.transformer.ln_f.bias.normal_()
    pairs = successor_pairs(tiny_tokenizer(tmp_path, vocab=VOCAB))
    assert succession(read_weights(model), pairs).share("numbers").tolist() == [[0, 0, 0], [1, 0, 0]]


def test_the_hand_built_model_needs_its_first_mlp(tmp_path) -> None:
    model = successor_model()
    model.transformer.h[0].mlp.c_proj.weight.zero_()
    pairs = successor_pairs(tiny_tokenizer(tmp_path, vocab=VOCAB))
    assert succession(read_weights(model), pairs).overall().max() == 0


# --- a slow second implementation


def slow_succession(model, pairs: Pairs, definition: Definition = "standard") -> torch.Tensor:
    """One head and one pair at a time, with the model's own first MLP; share of the pairs of one list."""
    weights = read_weights(model)
    if hasattr(model, "transformer"):
        block, final_norm = model.transformer.h[0], model.transformer.ln_f
        embedding, norm = model.transformer.wte.weight, block.ln_2
    else:
        block, final_norm = model.gpt_neox.layers[0], model.gpt_neox.final_layer_norm
        embedding, norm = model.gpt_neox.embed_in.weight, block.post_attention_layernorm
    effective = block.mlp(embedding if definition == "study" else norm(embedding))
    scores = torch.zeros(weights.n_layers, weights.n_heads)
    for index, layer in enumerate(weights.layers):
        for head in range(weights.n_heads):
            W_V, _ = value_projection(model, index, head)
            for token, successor in pairs:
                if definition == "study":
                    logits = model.lm_head.weight @ (effective[token] @ W_V @ layer.W_O[head])
                    rivals = [logits[other].item() for _, other in pairs]
                    scores[index, head] += float(logits[successor].item() >= max(rivals)) / len(pairs)
                    continue
                x = effective[token] - effective[token].mean()
                written = x * layer.attn_norm.gain @ W_V @ layer.W_O[head]
                logits = model.lm_head.weight @ ((written - written.mean()) * final_norm.weight)
                best = max((other for _, other in pairs), key=lambda other: logits[other].item())
                scores[index, head] += float(best == successor) / len(pairs)
    return scores


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("architecture", HOOKED)
@pytest.mark.parametrize("definition", ["standard", "study"])
def test_succession_equals_the_slow_reference(definition: Definition, architecture: str, biases: bool) -> None:
    model = random_model(architecture, seed=5)
    if not biases:
        model = without_biases(model)
    lists: dict[str, list[Pairs]] = {
        "a": [((3, 4), (4, 5), (5, 3)), ((90, 4), (7, 8))],
        "b": [tuple((token, token + 1) for token in range(20, 26))],
        "c": [],
    }
    result = succession(read_weights(model), lists, definition)
    slow_a, slow_rest, slow_b = (slow_succession(model, part, definition) for part in (*lists["a"], *lists["b"]))
    slow_a = (3 * slow_a + 2 * slow_rest) / 5
    torch.testing.assert_close(result.share("a"), slow_a, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.share("b"), slow_b, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.overall(), (5 * slow_a + 6 * slow_b) / 11, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.class_mean(), (slow_a + slow_b) / 2, rtol=0, atol=1e-5)
    assert 0 < slow_a.max() < 1 or 0 < slow_b.max() < 1


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)])
@pytest.mark.parametrize("architecture", HOOKED)
def test_the_stored_value_projection_is_told_from_the_folded_one(
    architecture: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = random_model(architecture, seed=5).to(dtype)
    for index, layer in enumerate(read_weights(model).layers):
        stored = torch.stack([value_projection(model, index, head)[0].T for head in range(4)]).float()
        told = layer.stored_W_V()
        assert told.dtype == torch.float32
        # Folding rounds to the weights' format at the size of gain * W.
        gain = layer.attn_norm.gain.float()
        torch.testing.assert_close(
            told * gain, stored * gain, rtol=0, atol=tolerance * float((stored * gain).abs().max())
        )


@pytest.mark.parametrize("architecture", ["llama-grouped", "olmo", "olmo2-grouped", "gemma2"])
def test_stored_projections_of_other_blocks_and_grouped_heads_give_the_studys_score(architecture: str) -> None:
    """Key-value heads that several heads share, norms without gains, behind the sublayer, or with 1 + gain."""
    model = random_model(architecture, seed=5)
    weights, body = read_weights(model), model.model
    pairs: Pairs = ((3, 4), (4, 5), (5, 3), (90, 4), (7, 8))
    effective = body.layers[0].mlp(body.embed_tokens(torch.arange(97)))
    expected = torch.zeros(weights.n_layers, weights.n_heads)
    for index, (block, layer) in enumerate(zip(body.layers, weights.layers, strict=True)):
        W_V = block.self_attn.v_proj.weight.view(-1, weights.d_head, weights.d_model)
        W_O = block.self_attn.o_proj.weight.T.view(weights.n_heads, weights.d_head, weights.d_model)
        torch.testing.assert_close(layer.stored_W_V(), W_V, rtol=1e-4, atol=1e-5)
        for head in range(weights.n_heads):
            of_group = W_V[head * len(W_V) // weights.n_heads]
            for token, successor in pairs:
                logits = model.lm_head.weight @ (effective[token] @ of_group.T @ W_O[head])
                right = logits[successor] >= max(logits[other] for _, other in pairs)
                expected[index, head] += float(right) / len(pairs)
    result = succession(weights, {"a": [pairs]}, "study")
    torch.testing.assert_close(result.share("a"), expected, rtol=0, atol=1e-5)


def test_a_norm_that_hides_the_stored_projection_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = word_model(5)
    model.gpt_neox.layers[1].input_layernorm.weight[3] = 0
    model.save_pretrained(tmp_path / "zero" / "step5")
    words().save_pretrained(tmp_path / "zero" / "step5")
    given = [f"model={tmp_path / 'zero'}", f"results_dir={tmp_path}", "device=cpu", "tokens_per_step=1"]
    assert main(ANALYSIS, given) == 0
    assert main(ANALYSIS, [*given, "head_scores=study", "overwrite=true"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "head_scores" in line]
    assert (
        "head_scores: study: step 5: a gain of the norm before attention is 0, and what it multiplied is lost" in line
    )


# --- words and pairs


def test_roman_numerals_run_from_one_to_twenty_without_a_mistake() -> None:
    (numerals,) = CLASSES["roman_numerals"]
    assert numerals.words == tuple(roman(number) for number in range(1, 21))


def test_every_class_holds_its_words_once_and_in_full() -> None:
    lengths = {name: [len(word_list.words) for word_list in lists] for name, lists in CLASSES.items()}
    assert lengths == {
        "numbers": [200],
        "number_words": [20],
        "ordinals": [20],
        "days": [7, 7],
        "months": [12, 12],
        "letters": [26],
        "roman_numerals": [20],
    }
    for lists in CLASSES.values():
        for word_list in lists:
            assert len(set(word_list.words)) == len(word_list.words)
            assert word_list.cyclic == (word_list in (*CLASSES["days"], *CLASSES["months"]))


@pytest.mark.parametrize("faults", [False, True])
def test_the_studys_numerals_have_xvii_twice_with_its_faults_alone(faults: bool) -> None:
    tokenizer = word_level([roman(number) for number in range(1, 21)])
    spaced, plain = successor_pairs(tokenizer, "study", faults=faults)["roman_numerals"]
    assert spaced == plain
    last = [tokenizer.decode(list(pair)).replace(" ", "->") for pair in plain[-4:]]
    sound = ["XVI->XVII", "XVII->XVIII", "XVIII->XIX", "XIX->XX"]
    assert last == (["XVI->XVII", "XVII->XVII", "XVII->XIX", "XIX->XX"] if faults else sound)
    assert len(plain) == 19


def test_spellings_vary_case_and_leading_space() -> None:
    (letters,), (words,), (numbers,) = CLASSES["letters"], CLASSES["number_words"], CLASSES["numbers"]
    assert [spelling[0] for spelling in letters.spellings()] == [" A", "A", " a", "a"]
    assert [spelling[1] for spelling in words.spellings()] == [" Two", "Two", " two", "two", " TWO", "TWO"]
    assert [spelling[1] for spelling in numbers.spellings()] == [" 2", "2"]


def study_lists() -> dict[str, list[list[str]]]:
    """The study's lists by its own rule: as it writes them and with the first letter's case changed, spaced or not."""
    written = {
        "numbers": [[str(number) for number in range(1, 201)]],
        "number_words": [[word.lower() for word in CLASSES["number_words"][0].words]],
        "ordinals": [[word.lower() for word in CLASSES["ordinals"][0].words[:10]]],
        "days": [[*part.words, part.words[0]] for part in CLASSES["days"]],
        "months": [[*part.words, part.words[0]] for part in CLASSES["months"]],
        "letters": [list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")],
        "roman_numerals": [[roman(number) for number in range(1, 21)]],
    }
    lists: dict[str, list[list[str]]] = {}
    for name, parts in written.items():
        both = [(False, True), (False,)][name in ("letters", "roman_numerals")]
        lists[name] = [
            [space + (word[0].swapcase() if changed else word[0]) + word[1:] for word in part]
            for part in parts
            for changed in both
            for space in ("", " ")
        ]
    return lists


@pytest.mark.skipif(not PYTHIA_TOKENIZER.is_dir(), reason="needs the tokenizer in ../shared/pythia_tokenizer")
def test_pairs_of_the_study_are_those_of_its_own_rule() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PYTHIA_TOKENIZER)
    found = successor_pairs(tokenizer, "study")
    for name, lists in study_lists().items():
        expected = []
        for part in lists:
            ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in part]
            expected += [(a[0], b[0]) for a, b in itertools.pairwise(ids) if len(a) == len(b) == 1]
        assert sorted(pair for part in found[name] for pair in part) == sorted(expected), name
    assert sum(len(part) for parts in found.values() for part in parts) == 1033


def test_a_spelling_of_the_study_with_one_pair_counts(tmp_path) -> None:
    """Tokens 1, 2 and no more: one pair, which the standard definition leaves out."""
    tokenizer = tiny_tokenizer(tmp_path, vocab=3)
    assert successor_pairs(tokenizer)["numbers"] == []
    assert successor_pairs(tokenizer, "study")["numbers"] == [((1, 2),)] * 4


def test_spellings_that_are_the_same_tokens_count_once(tmp_path) -> None:
    """The small tokenizer drops the leading space."""
    assert [len(parts) for parts in successor_pairs(tiny_tokenizer(tmp_path))["numbers"]] == [95]


def test_a_class_without_single_token_pairs_is_empty_and_its_score_absent(tmp_path) -> None:
    pairs = successor_pairs(tiny_tokenizer(tmp_path, vocab=VOCAB))
    assert {name: len(parts) for name, parts in pairs.items() if parts} == {"numbers": 1}
    result = succession(read_weights(successor_model()), pairs)
    assert result.pairs("days") == 0
    assert result.share("days").shape == (2, 3)
    assert result.share("days").isnan().all()


def test_models_without_any_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="no class has a pair"):
        succession(read_weights(successor_model()), {"days": []})


@pytest.mark.skipif(not PYTHIA_TOKENIZER.is_dir(), reason="needs the tokenizer in ../shared/pythia_tokenizer")
def test_pairs_under_the_pythia_tokenizer_decode_to_neighbours() -> None:
    tokenizer = AutoTokenizer.from_pretrained(PYTHIA_TOKENIZER)
    pairs = successor_pairs(tokenizer)
    texts = {
        name: [(tokenizer.decode(a), tokenizer.decode(b)) for part in parts for a, b in part]
        for name, parts in pairs.items()
    }
    assert {(" Sunday", " Monday"), ("Sat", "Sun")} <= set(texts["days"])
    assert {(" May", " June"), (" May", " Jun"), ("December", "January")} <= set(texts["months"])
    assert {(f" {n}", f" {n + 1}") for n in range(1, 200)} <= set(texts["numbers"])
    assert (" II", " III") in texts["roman_numerals"]
    assert (" Z", " A") not in texts["letters"]
    assert {name: len(found) for name, found in texts.items()} == {
        "numbers": 398,
        "number_words": 49,
        "ordinals": 28,
        "days": 35,
        "months": 66,
        "letters": 100,
        "roman_numerals": 34,
    }
    for name, found in texts.items():
        order = [
            {word: position for position, word in enumerate(words)} | {None: len(words)}
            for word_list in CLASSES[name]
            for words in word_list.spellings()
        ]
        for a, b in found:
            assert any(a in o and b in o and (o[b] - o[a]) % o[None] == 1 for o in order), (a, b)


# --- the script


def test_the_script_writes_a_row_a_head_and_leaves_absent_classes_empty(word_family: Path, tmp_path: Path) -> None:
    given = [f"model={word_family}", f"results_dir={tmp_path}", "device=cpu"]
    assert main(ANALYSIS, [*given, "checkpoints=[5]"]) == 0
    store = Store(tmp_path)
    before = store.folder("successor", "words").file(5).stat().st_mtime_ns
    assert main(ANALYSIS, given) == 0
    assert store.folder("successor", "words").file(5).stat().st_mtime_ns == before
    assert store.folder("successor", "words").steps() == [0, 5]
    table = store.folder("successor", "words").read_table(5)
    classes = [column for name in CLASSES for column in (name, f"{name}_pairs")]
    assert list(table) == [
        "model",
        "step",
        "tokens",
        "layer",
        "head",
        "value",
        "pairs",
        "se",
        "low",
        "high",
        "chance",
        "class_mean",
        "class_mean_se",
        *classes,
    ]
    assert list(zip(table["layer"], table["head"], strict=True)) == [(i, j) for i in range(2) for j in range(4)]
    # The tokenizer knows all two-digit numbers and no days.
    assert set(table["numbers_pairs"]) == set(table["pairs"]) == {89}
    assert set(table["days_pairs"]) == {0}
    assert table["days"].isna().all()
    expected = succession(read_weights(word_model(5)), successor_pairs(words())).share("numbers")
    assert table["numbers"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-6)
    assert table["value"].tolist() == table["numbers"].tolist()
    assert table["chance"].tolist() == pytest.approx([1 / 89] * len(table))
    assert table["se"].tolist() == pytest.approx((table["value"] * (1 - table["value"]) / 89) ** 0.5)
    assert table["class_mean_se"].tolist() == pytest.approx(table["se"].tolist(), abs=1e-6)  # of one class
    # Wilson's interval: the shares that the observed one is 1.96 of their own standard errors away from.
    for end in ("low", "high"):
        error = (table[end] * (1 - table[end]) / 89) ** 0.5
        away = (table["value"] - table[end]).abs() / error.where(error > 0)
        assert away.dropna().tolist() == pytest.approx([1.959964] * away.notna().sum(), rel=1e-4)
    assert (table["high"] > table["value"]).all()  # also of heads that get no pair right


def test_the_error_of_a_mean_over_classes_weights_every_class_alike() -> None:
    """Against draws of as many pairs of every class, with the shares as they are."""
    classes = {"many": (40, 12), "few": (10, 7), "none": (0, 0)}
    right = {name: (torch.arange(n) < n_right).expand(1, 1, -1) for name, (n, n_right) in classes.items()}
    rng = np.random.default_rng(0)
    draws = [rng.binomial(n, n_right / n, 50_000) / n for n, n_right in classes.values() if n]
    expected = np.mean(draws, axis=0).std()
    assert Succession(right).class_mean_error().item() == pytest.approx(expected, rel=0.02)


def test_chance_is_what_random_rankings_of_a_lists_successors_score() -> None:
    # Three pairs with three successors; three of which two have the same.
    pairs: dict[str, list[Pairs]] = {"a": [((0, 1), (1, 2), (2, 3))], "b": [((0, 5), (1, 5), (5, 0))], "c": []}
    rng = np.random.default_rng(0)
    right = [
        rng.random(len(among)).argmax() == among.index(successor)
        for _ in range(4000)
        for of_list in (pairs["a"][0], pairs["b"][0])
        for among in [sorted({other for _, other in of_list})]
        for _, successor in of_list
    ]
    assert chance_level(pairs) == pytest.approx((3 / 3 + 3 / 2) / 6)
    assert np.mean(right) == pytest.approx(chance_level(pairs), abs=0.01)


def test_the_script_writes_the_studys_scores(word_family: Path, tmp_path: Path) -> None:
    given = [f"model={word_family}", f"results_dir={tmp_path}", "device=cpu", "checkpoints=[5]", "head_scores=study"]
    assert main(ANALYSIS, given) == 0
    table = Store(tmp_path).folder("successor", "words").read_table(5)
    expected = succession(read_weights(word_model(5)), successor_pairs(words(), "study"), "study")
    assert set(table["pairs"]) == {sum(expected.pairs(name) for name in CLASSES)}
    assert table["value"].tolist() == pytest.approx(expected.overall().flatten().tolist(), abs=1e-6)


def test_a_tokenizer_without_pairs_is_refused_in_one_line(
    tiny_family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(ANALYSIS, [f"model={tiny_family}", f"results_dir={tmp_path}", "device=cpu"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("model: no class of words (numbers, number_words,")
    assert not list(tmp_path.rglob("*.csv"))


# --- the trained toy family


def test_the_toy_family_ends_with_a_successor_head_and_begins_with_none(toy_family: Path, tmp_path: Path) -> None:
    last = TOY_STEPS[-1]
    given = [f"model={toy_family}", f"results_dir={tmp_path}", "device=cpu", f"checkpoints=[0, {last}]"]
    assert main(ANALYSIS, given) == 0
    best = Store(tmp_path).read_tables("successor", "toy").groupby("step").max(numeric_only=True)
    assert best["value"][0] < 0.06
    assert best["value"][last] > 0.15
    # Of seven days, chance gets one right.
    assert best["days"][last] > 3 / 7
