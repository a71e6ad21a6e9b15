"""What is known about public families of checkpoints: where they are, how they name a step, and which are damaged.

`known_families.toml` lists them; to add one, write it there. The steps themselves are not written down: the hub lists
them, and may list more tomorrow. A family that is not known is read by the general rules (`revisions.GENERAL`), or by
the key `revisions`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.schedules import PYTHIA_STEPS
from .revisions import RUN, STAGE, STEP, TOKENS, TokensRule
from .tokenizers import PlainShape


@dataclass(frozen=True)
class Damage:
    """Something that is wrong with published checkpoints; see `known_families.toml`."""

    models: Sequence[str]
    steps: Sequence[int]  # empty if they are not known one by one
    problem: str
    source: str
    expected: bool = False  # it follows from the training: nothing is wrong


@dataclass(frozen=True)
class FamilyRecord:
    """A family of checkpoints on the hub, as `known_families.toml` has it."""

    models: Mapping[str, Sequence[str]]  # short name -> repositories
    revisions: re.Pattern[str]
    tokens: TokensRule
    prepend_bos: bool | None = None
    names: Sequence[str] = ()  # its revisions, if they are known without asking the hub
    renamed: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    damage: Sequence[Damage] = ()


@dataclass(frozen=True)
class KnownModel:
    """A model, the repositories that hold its checkpoints, and what is known about all models of its family."""

    name: str
    repositories: Sequence[str]
    family: FamilyRecord


def _record(
    models: list[str] | dict[str, list[str]],
    revisions: str,
    organisation: str = "",
    tokens: Mapping[str, Any] = {},
    published: str = "",
    damage: Sequence[Mapping[str, Any]] = (),
    **rest: Any,
) -> FamilyRecord:
    """A family as the file has it."""
    listed = models if isinstance(models, dict) else {name: [f"{organisation}/{name}"] for name in models}
    return FamilyRecord(
        listed,
        re.compile(revisions.format(step=STEP, stage=STAGE, tokens=TOKENS, run=RUN)),
        TokensRule(**tokens),
        names=[f"step{step}" for step in PYTHIA_STEPS] if published == "pythia" else [],
        damage=[Damage(**{"models": list(listed), "steps": [], **one}) for one in damage],
        **rest,
    )


_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
FAMILIES: tuple[FamilyRecord, ...] = tuple(_record(**family) for family in _FILE["families"])
UNUSABLE: Mapping[str, str] = _FILE["unusable"]
"""Names and hub ids (whole, upper or lower case) of families that cannot be measured, and why."""

_KNOWN: dict[str, KnownModel] = {}
for _family in FAMILIES:
    for _name, _repositories in _family.models.items():
        _model = KnownModel(_name, _repositories, _family)
        _KNOWN |= dict.fromkeys((_name, *_repositories), _model)
        _KNOWN |= {old: _model for old, new in _family.renamed.items() if new in _repositories}

SHORT_NAMES: tuple[str, ...] = tuple(name for family in FAMILIES for name in family.models)
EXAMPLES: tuple[str, ...] = tuple(next(iter(family.models)) for family in FAMILIES)


def known_shape(name: str) -> PlainShape | None:
    """The sizes of a known model, as its config.json has them; None if they are not known."""
    found = re.fullmatch(r"pythia-([\d.]+[mb])(?:-.*)?", name)
    if name not in SHORT_NAMES or found is None:
        return None
    n_layers, n_heads, d_model, d_vocab = _KNOWN[name].family.shapes[found[1]]
    of_blocks = ("gpt_neox", n_heads, d_model // n_heads, 4 * d_model, True)
    return PlainShape(n_layers, n_heads, 2048, d_vocab, d_model, False, "float16", *of_blocks)


def known_size(name: str) -> tuple[int, int] | None:
    """Parameters of a known model, and bytes of the weights of one of its checkpoints; None if its shape is not known.

    Pythia's files are float16, and hold a mask of 2048 x 2048 bytes for each layer besides the parameters.
    """
    if (shape := known_shape(name)) is None:
        return None
    n_layers, d_model, d_vocab = shape.n_layers, shape.d_model, shape.d_vocab
    parameters = 2 * d_vocab * d_model + n_layers * (12 * d_model**2 + 13 * d_model) + 2 * d_model
    return parameters, 2 * parameters + n_layers * 2048**2


def known_model(model: str) -> KnownModel | None:
    """What is known about a model, by its short name or the id of one of its repositories."""
    return _KNOWN.get(model)


def unusable(model: str) -> str | None:
    """Why a model cannot be measured, or None if nothing speaks against it."""
    return next((why for name, why in UNUSABLE.items() if re.fullmatch(name, model, re.IGNORECASE)), None)
