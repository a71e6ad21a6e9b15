"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593).

"When Mary and John went to the store, John gave a drink to" -> " Mary", not " John". The name that comes once is IO;
the repeated one is S, first as S1, then as S2. ABBA prompts begin with IO and BABA prompts with S; they alternate.

Corruptions: `swap` replaces S2 with IO, so that the answer flips (Tigges et al. 2024, arXiv 2407.10827); `abc` replaces
the names with three others, all different, so that there is no answer (Wang et al. 2022).

`meta` columns: io, s (names), template (index into TEMPLATES), order (ABBA or BABA), place, object.
`positions` (the same in both prompts of a pair): io, s1, s1_next (the token after S1), s2, end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base.errors import UserError
from ..config.keys import SLOT, PromptOptions
from .prompts import Pair, Prompts, Task
from .sampling import draw, draw_any, seeded, unravel
from .vocabulary import known_texts, single_tokens
from .word_lists import NAMES_BY_GENDER, STANDARD, STUDY, words

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

NAMES: tuple[str, ...] = (*NAMES_BY_GENDER["male"], *NAMES_BY_GENDER["female"])
TEMPLATES: tuple[str, ...] = tuple(STANDARD["ioi"]["templates"])
PLACES, OBJECTS = words(STANDARD["ioi"]["places"]), words(STANDARD["ioi"]["objects"])
ORDERS: tuple[str, ...] = ("ABBA", "BABA")
LEAST_NAMES = 5  # IO, S and three others


def pairs(tokenizer: PreTrainedTokenizerBase, n: int, seed: int, options: PromptOptions) -> list[Pair]:
    """n distinct prompts, the same clean ones for both corruptions; a UserError for too few words or prompts."""
    drawing, templates, all_names, all_places, all_objects = draw, TEMPLATES, NAMES, PLACES, OBJECTS
    if options.prompt_set == "study":
        drawing = draw_any
        bare = {SLOT.sub("", text): text for text in STUDY["ioi"]["templates"]}
        templates = tuple(bare[text] for text in known_texts(tokenizer, list(bare), "ioi", "templates"))
        all_names, all_places, all_objects = (words(STUDY["ioi"][kind]) for kind in ("names", "places", "objects"))
    tokens = single_tokens(tokenizer, all_names, "ioi", "names", LEAST_NAMES)
    places = list(single_tokens(tokenizer, all_places, "ioi", "places", 1))
    objects = list(single_tokens(tokenizer, all_objects, "ioi", "objects", 1))
    names = list(tokens)
    sizes = (len(names), len(names) - 1, len(places), len(objects))
    size = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    others = seeded("ioi", seed, "abc")
    made: list[Pair] = []
    for group, template, number in drawing("ioi", [[size] * len(templates)] * len(ORDERS), n, seed):
        first, second, place, object_ = unravel(number, sizes)
        io = names[first]
        s = names[second + (second >= first)]  # any name but IO
        # Drawn prompt by prompt, whatever the corruption, so that the first prompts do not depend on n.
        strangers = [name for name in others.sample(names, LEAST_NAMES) if name not in (io, s)][:3]
        order = ORDERS[group]
        clause = (io, s) if order == "ABBA" else (s, io)
        corrupted = (*clause, io) if options.ioi_corruption == "swap" else tuple(strangers)
        filled = [
            templates[template].format(first=a, second=b, subject=c, place=places[place], object=objects[object_])
            for a, b, c in ((*clause, s), corrupted)
        ]
        meta = {"io": io, "s": s, "template": template, "order": order}
        meta |= {"place": places[place], "object": objects[object_]}
        made.append(Pair(filled[0], filled[1], (tokens[io],), (tokens[s],), meta, f"ioi prompt {len(made)}"))
    return made


def _name_positions(prompts: Prompts) -> dict[str, Int[Tensor, n]]:
    is_io = prompts.clean == prompts.answers.right[:, :1]
    is_s = prompts.clean == prompts.answers.wrong[:, :1]
    odd = (is_io.sum(dim=1) != 1) | (is_s.sum(dim=1) != 2)
    if odd.any():
        text = prompts.texts[int(odd.nonzero()[0])][0]
        raise UserError(f"ioi: the names are not the same tokens in the prompt as in the answers: {text!r}")
    width = prompts.clean.shape[1]
    s1 = is_s.int().argmax(dim=1)
    s2 = width - 1 - is_s.flip(1).int().argmax(dim=1)
    return {"io": is_io.int().argmax(dim=1), "s1": s1, "s1_next": s1 + 1, "s2": s2}


def signal_variants(
    prompts: Prompts, tokenizer: PreTrainedTokenizerBase, seed: int = 0
) -> dict[str, Int[Tensor, "n width"]]:
    """The clean prompts, with the two signals of S-inhibition heads changed one by one (Wang et al. 2022, section 3.2).

    S-inhibition heads tell the name movers which name to avoid, by two signals: which token S is (the token signal) and
    where it is in the first clause (the position signal). Every variant is a valid IOI prompt that differs in its names
    alone, so activations can be swapped position by position. For the clean prompt "When Mary and John .., John ..":

    - `same_token_same_order`: the clean prompt itself.
    - `same_token_opposite_order`: IO and S1 change places, S2 stays: "When John and Mary .., John ..".
    - `other_token_same_order`: S1 and S2 become a third name: "When Mary and Paul .., Paul ..".
    - `other_token_opposite_order`: both: "When Paul and Mary .., Paul ..".

    IO is the same token in all four, and the third name of a prompt the same in both variants that have one. In the
    variants with the opposite order, S1 is at position `io` of the clean prompt and IO at `s1`. It is a ValueError if
    the prompts have no positions io, s1, s2, and a UserError if too few names are single tokens.
    """
    import torch

    if missing := {"io", "s1", "s2"} - prompts.positions.keys():
        raise ValueError(f"signal variants need IOI prompts; positions missing: {sorted(missing)}")
    names = single_tokens(tokenizer, NAMES, "ioi", "names", LEAST_NAMES)
    third_name = seeded("ioi", seed, "signal variants")
    device = prompts.clean.device
    rows = torch.arange(len(prompts), device=device)
    io, s1, s2 = (prompts.positions[name] for name in ("io", "s1", "s2"))
    io_token, s_token = prompts.clean[rows, io], prompts.clean[rows, s1]
    # Of three different names, one at least is neither of the prompt's.
    taken = zip(io_token.tolist(), s_token.tolist(), strict=True)
    drawn = [
        next(token for token in third_name.sample(list(names.values()), 3) if token not in (a, b)) for a, b in taken
    ]
    variants = {}
    for token_signal, repeated in (("same", s_token), ("other", torch.tensor(drawn, device=device))):
        for order, io_at, s1_at in (("same", io, s1), ("opposite", s1, io)):
            variant = prompts.clean.clone()
            variant[rows, io_at] = io_token
            variant[rows, s1_at] = repeated
            variant[rows, s2] = repeated
            variants[f"{token_signal}_token_{order}_order"] = variant
    return variants


TASK = Task("ioi", pairs, "logit_diff", group="order", label="IOI", positions=_name_positions)
