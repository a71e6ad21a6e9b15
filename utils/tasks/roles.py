"""What each token of a prompt is to its task: the roles by which `positions: true` tells edges apart.

A role is a word of the prompt (of a template the words of a slot), `end` its last token, and `rest` all others. In IOI
they are the named positions of the prompts. A table of prompts says its roles in columns `role_NAME`: the word itself,
its characters `4:8`, or its token counted from the end, `-2`. Without such columns a role is a token's place from the
end: `end`, `end-1`, ..., and the first tokens of a long prompt are `rest`.

Both prompts of a pair have the same roles, token by token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError
from ..config.keys import SLOT
from .prompts import Pair, Prompts, Span

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from circuits_over_time.edge_attribution_patching.model.pairs import TokenRoles

PLACES = 8
"""Where nobody names roles, so many tokens at the end of a prompt have one each."""
COLUMN = re.compile(r"role_(\w+)")


def slot_spans(template: str, words: Mapping[str, str]) -> tuple[Span, ...]:
    """Where the words stand in a template that is filled with them; the role is the slot's name."""
    spans, shift = [], 0
    for slot in SLOT.finditer(template):
        start, word = slot.start() + shift, words[slot[1]]
        spans.append((slot[1], start, start + len(word)))
        shift += len(word) - len(slot[0])
    return tuple(spans)


def token_roles(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], prompts: Prompts) -> TokenRoles:
    """The role of every token; a UserError for roles of what is not there, or tokens without known characters."""
    import torch

    from circuits_over_time.edge_attribution_patching.model.pairs import TokenRoles

    lengths, rows = prompts.lengths.cpu(), torch.arange(len(pairs))
    spans = [pair.roles or tuple(_of_columns(pair, n)) for pair, n in zip(pairs, lengths.tolist(), strict=True)]
    if taken := {name for of_prompt in spans for name, _, _ in of_prompt} & {"rest", "end"}:
        raise UserError(
            f"positions: {min(taken)} is the role of other tokens; give a column role_{min(taken)} or a slot "
            "of that name another one"
        )
    named = [name for name in prompts.positions if name != "end"]
    named = list(dict.fromkeys([*named, *(name for of_prompt in spans for name, _, _ in of_prompt)]))
    places = [] if named else [f"end-{back}" for back in range(1, PLACES)]
    names = ["rest", *named, *places, "end"]
    of_token = torch.zeros(prompts.clean.shape, dtype=torch.long)
    for name, positions in prompts.positions.items():
        of_token[rows, positions.cpu()] = names.index(name)
    for row, (n, of_prompt) in enumerate(zip(lengths.tolist(), spans, strict=True)):
        ends = _ends_of_tokens(tokenizer, pairs[row].clean) if of_prompt else []
        for name, start, stop in of_prompt:
            held = [at - len(ends) for at, (a, b) in enumerate(ends) if a < stop and b > start]
            for back in [start] if start < 0 else held:  # From the end: before the first may be a start token.
                if (before := names[int(of_token[row, n + back])]) not in ("rest", "end"):
                    both = f"{before} and {name} are roles of one token; leave one of them out"
                    raise UserError(f"positions: {pairs[row].where}: {both}")
                of_token[row, n + back] = names.index(name)
        for back in range(1, min(len(places), n - 1) + 1):
            of_token[row, n - 1 - back] = names.index(f"end-{back}")
    of_token[rows, lengths - 1] = len(names) - 1
    return TokenRoles.of(names, of_token, lengths)


def _ends_of_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """The characters of every token, without the space before it."""
    try:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    except NotImplementedError:
        raise UserError(
            "positions: this tokenizer does not say where its tokens stand in a text; leave it out"
        ) from None
    spaces = [len(text[a:b]) - len(text[a:b].lstrip()) for a, b in offsets]
    return [(a + space, b) for (a, b), space in zip(offsets, spaces, strict=True)]


def _of_columns(pair: Pair, n_tokens: int) -> Iterator[Span]:
    """The roles that the columns of a table of prompts give; an empty cell gives none."""
    for column, cell in pair.meta.items():
        text, role = str(cell), COLUMN.fullmatch(str(column))
        if role is None and str(column).startswith("role_"):
            raise UserError(f"positions: {pair.where}: {column}: a role is called by letters, digits and _ alone")
        if role is None or cell is None or cell != cell or not text.strip():
            continue
        if between := re.fullmatch(r"(\d+):(\d+)", text):
            start, stop = map(int, between.groups())
            found: Any = start < stop <= len(pair.clean)
        elif found := re.fullmatch(r"-\d{1,6}(\.0)?", text):
            start = stop = int(float(text))
            found = 0 < -start <= n_tokens
        else:
            start, found = pair.clean.find(text), pair.clean.count(text) == 1
            stop = start + len(text)
        if not found:
            raise UserError(
                f"{pair.where}: {column}: {text!r} is not at one place of {pair.clean!r}; write a word that is "
                "there once, its characters as 4:8, or its token from the end as -2"
            )
        yield role[1], start, stop
