"""The succession score against a hand-built successor head and against a slow second implementation."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from edge_attribution_patching.weights import read_weights
from get_new_successor_head_scores_over_time import ANALYSIS
from tests.support.hand_built import VOCAB, Head, successor_model
from tests.support.paths import PYTHIA_TOKENIZER, TOY_STEPS
from tests.support.random_models import (
    HOOKED,
    random_model,
    tiny_tokenizer,
    value_projection,
    without_biases,
)
from tests.support.task_tokenizers import words
from tests.support.word_family import word_model
from utils.heads.succession import CLASSES, Pairs, succession, successor_pairs
from utils.results.store import Store
from utils.runner import main


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


def test_biases_of_attention_and_norms_do_not_matter(tmp_path) -> None:
    """They are the same whatever the token, however much they favour one successor."""
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


def slow_succession(model, pairs: Pairs) -> torch.Tensor:
    """One head and one pair at a time, with the model's own first MLP; share of the pairs of one list."""
    weights = read_weights(model)
    if hasattr(model, "transformer"):
        block, final_norm = model.transformer.h[0], model.transformer.ln_f
        effective = block.mlp(block.ln_2(model.transformer.wte.weight))
    else:
        block, final_norm = model.gpt_neox.layers[0], model.gpt_neox.final_layer_norm
        effective = block.mlp(block.post_attention_layernorm(model.gpt_neox.embed_in.weight))
    scores = torch.zeros(weights.n_layers, weights.n_heads)
    for index, layer in enumerate(weights.layers):
        for head in range(weights.n_heads):
            W_V, _ = value_projection(model, index, head)
            for token, successor in pairs:
                x = effective[token] - effective[token].mean()
                written = x * layer.attn_norm.gain @ W_V @ layer.W_O[head]
                logits = model.lm_head.weight @ ((written - written.mean()) * final_norm.weight)
                best = max((other for _, other in pairs), key=lambda other: logits[other].item())
                scores[index, head] += float(best == successor) / len(pairs)
    return scores


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("architecture", HOOKED)
def test_succession_equals_the_slow_reference(architecture: str, biases: bool) -> None:
    model = random_model(architecture, seed=5)
    if not biases:
        model = without_biases(model)
    lists: dict[str, list[Pairs]] = {
        "a": [((3, 4), (4, 5), (5, 3)), ((90, 4), (7, 8))],
        "b": [tuple((token, token + 1) for token in range(20, 26))],
        "c": [],
    }
    result = succession(read_weights(model), lists)
    slow_a = (3 * slow_succession(model, lists["a"][0]) + 2 * slow_succession(model, lists["a"][1])) / 5
    slow_b = slow_succession(model, lists["b"][0])
    torch.testing.assert_close(result.share("a"), slow_a, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.share("b"), slow_b, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.overall(), (5 * slow_a + 6 * slow_b) / 11, rtol=0, atol=1e-5)
    torch.testing.assert_close(result.class_mean(), (slow_a + slow_b) / 2, rtol=0, atol=1e-5)
    assert 0 < slow_a.max() < 1 or 0 < slow_b.max() < 1


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


def test_spellings_vary_case_and_leading_space() -> None:
    (letters,), (words,), (numbers,) = CLASSES["letters"], CLASSES["number_words"], CLASSES["numbers"]
    assert [spelling[0] for spelling in letters.spellings()] == [" A", "A", " a", "a"]
    assert [spelling[1] for spelling in words.spellings()] == [" Two", "Two", " two", "two", " TWO", "TWO"]
    assert [spelling[1] for spelling in numbers.spellings()] == [" 2", "2"]


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
    assert list(table) == ["model", "step", "tokens", "layer", "head", "value", "pairs", "class_mean", *classes]
    assert list(zip(table["layer"], table["head"], strict=True)) == [(i, j) for i in range(2) for j in range(4)]
    # The tokenizer knows all two-digit numbers and no days.
    assert set(table["numbers_pairs"]) == set(table["pairs"]) == {89}
    assert set(table["days_pairs"]) == {0}
    assert table["days"].isna().all()
    expected = succession(read_weights(word_model(5)), successor_pairs(words())).share("numbers")
    assert table["numbers"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-6)
    assert table["value"].tolist() == table["numbers"].tolist()


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
