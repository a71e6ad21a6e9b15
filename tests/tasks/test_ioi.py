"""The IOI task."""

import re

import pytest
import torch

from circuits_over_time.utils.tasks import build_prompts, ioi
from tests.support.task_tokenizers import TOKENIZERS, pythia, words


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


def names_in(text):
    return [word for word in re.findall(r"\w+", text) if word in ioi.NAMES]


def test_every_word_is_one_token_of_pythia():
    for word in (*ioi.NAMES, *ioi.PLACES, *ioi.OBJECTS):
        assert len(pythia()(f" {word}")["input_ids"]) == 1, word
    assert len(set(ioi.NAMES)) == len(ioi.NAMES)
    assert len(set(ioi.TEMPLATES)) >= 8


def test_orders_alternate_and_templates_come_equally_often():
    meta = build_prompts("ioi", words(), 2 * 28, 0).meta
    assert meta["order"].tolist() == ["ABBA", "BABA"] * 28
    assert (meta.groupby(["template", "order"]).size() == 2).all()


def test_the_answer_is_the_name_that_comes_once(tokenizer):
    prompts = build_prompts("ioi", tokenizer, 100, 0)
    for row, fact in enumerate(prompts.meta.itertuples()):
        order = [fact.io, fact.s] if fact.order == "ABBA" else [fact.s, fact.io]
        assert names_in(prompts.texts[row][0]) == [*order, fact.s]
        assert tokenizer.decode(prompts.answers.right[row]).strip() == fact.io
        assert tokenizer.decode(prompts.answers.wrong[row]).strip() == fact.s


def test_swap_replaces_s2_by_io_and_nothing_else(tokenizer):
    prompts = build_prompts("ioi", tokenizer, 100, 0)
    rows = torch.arange(100)
    expected = prompts.clean.clone()
    expected[rows, prompts.positions["s2"]] = prompts.answers.right[:, 0]
    assert torch.equal(prompts.corrupted, expected)


def test_abc_replaces_the_names_by_three_others_and_nothing_else(tokenizer):
    prompts = build_prompts("ioi", tokenizer, 100, 0, ioi_corruption="abc")
    assert prompts.clean.equal(build_prompts("ioi", tokenizer, 100, 0).clean)
    for clean, corrupted in prompts.texts:
        assert len({*names_in(clean), *names_in(corrupted)}) == 5
    changed = prompts.clean != prompts.corrupted
    expected = torch.zeros_like(changed)
    for name in ("io", "s1", "s2"):
        expected[torch.arange(100), prompts.positions[name]] = True
    assert torch.equal(changed, expected)


def test_positions_point_at_the_names(tokenizer):
    prompts = build_prompts("ioi", tokenizer, 100, 0)
    assert set(prompts.positions) == {"io", "s1", "s1_next", "s2", "end"}
    at = {name: prompts.clean[torch.arange(100), position] for name, position in prompts.positions.items()}
    assert torch.equal(at["io"], prompts.answers.right[:, 0])
    assert torch.equal(at["s1"], prompts.answers.wrong[:, 0])
    assert torch.equal(at["s2"], prompts.answers.wrong[:, 0])
    assert (prompts.positions["s1"] < prompts.positions["s2"]).all()
    assert torch.equal(prompts.positions["s1_next"], prompts.positions["s1"] + 1)
    first = (prompts.positions["io"] < prompts.positions["s1"]).tolist()
    assert first == (prompts.meta["order"] == "ABBA").tolist()
    assert [tokenizer.decode(token).strip() for token in at["end"]] == ["to"] * 100


def test_positions_of_a_prompt_counted_by_hand():
    prompts = build_prompts("ioi", words(), 56, 0)
    row = prompts.meta.query("template == 0 and order == 'BABA'").index[0]
    # When S and IO went to the PLACE , S gave a OBJECT to
    expected = {"io": 3, "s1": 1, "s1_next": 2, "s2": 9, "end": 13}
    assert {name: int(position[row]) for name, position in prompts.positions.items()} == expected


@pytest.mark.parametrize("prepend_bos", [False, True])
def test_signal_variants_change_token_and_order_separately(tokenizer, prepend_bos):
    prompts = build_prompts("ioi", tokenizer, 60, 0, prepend_bos=prepend_bos).select(slice(5, 45))
    variants = ioi.signal_variants(prompts, tokenizer, seed=1)
    rows = torch.arange(40)
    io, s1, s2 = (prompts.positions[name] for name in ("io", "s1", "s2"))
    io_token, s_token = prompts.answers.right[:, 0], prompts.answers.wrong[:, 0]
    names = {token for name in ioi.NAMES for token in tokenizer(f" {name}", add_special_tokens=False)["input_ids"]}
    third = variants["other_token_same_order"][rows, s2]
    assert set(third.tolist()) <= names
    assert not ((third == io_token) | (third == s_token)).any()
    assert list(variants) == [f"{t}_token_{o}_order" for t in ("same", "other") for o in ("same", "opposite")]
    for key, variant in variants.items():
        repeated = third if key.startswith("other") else s_token
        io_at, s1_at = (s1, io) if "opposite" in key else (io, s1)
        assert torch.equal(variant[rows, io_at], io_token)
        assert torch.equal(variant[rows, s1_at], repeated)
        assert torch.equal(variant[rows, s2], repeated)
        changed = variant != prompts.clean
        for position in (io, s1, s2):
            changed[rows, position] = False
        assert not changed.any()
    assert torch.equal(variants["same_token_same_order"], prompts.clean)


def test_signal_variants_read_as_prompts():
    prompts = build_prompts("ioi", pythia(), 28, 0)
    row = prompts.meta.query("template == 0 and order == 'ABBA'").index[0]
    fact, length = prompts.meta.iloc[row], int(prompts.lengths[row])
    flipped = ioi.signal_variants(prompts, pythia())["same_token_opposite_order"][row, :length]
    assert pythia().decode(flipped) == ioi.TEMPLATES[0].format(
        first=fact["s"], second=fact["io"], subject=fact["s"], place=fact["place"], object=fact["object"]
    )


def test_signal_variants_repeat_with_the_seed_and_need_ioi_prompts():
    prompts = build_prompts("ioi", words(), 30, 0)
    one, again, other = (ioi.signal_variants(prompts, words(), seed)["other_token_same_order"] for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="positions missing: \\['io', 's1', 's2'\\]"):
        ioi.signal_variants(build_prompts("greater_than", words(), 3, 0), words())
