"""What is known about public families of checkpoints: where they are, how they name a step, and which are damaged.

The steps themselves are not written here. The hub lists them, and may list more tomorrow. A family that is not here is
read by the general rules (`revisions.GENERAL`), or by the key `revisions`.

To add a family, add a record to `FAMILIES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ..config.schedules import PYTHIA_STEPS, TOKENS_PER_STEP
from .revisions import RUN, STAGE, STEP, TOKENS, TokensRule


@dataclass(frozen=True)
class Damage:
    """Something that is wrong with published checkpoints.

    Attributes:
        models: the short names that it concerns.
        steps: the steps that it concerns; empty if they are not known one by one.
        problem: what is wrong, as the predicate of a sentence.
        expected: whether that follows from the training, so that nothing is wrong after all.
    """

    models: tuple[str, ...]
    steps: tuple[int, ...]
    problem: str
    source: str
    expected: bool = False


@dataclass(frozen=True)
class FamilyRecord:
    """A family of checkpoints on the hub.

    Attributes:
        models: short name -> the repositories that hold its checkpoints. If two hold the same step, the first counts.
        revisions: how branches or tags of checkpoints are named, as in `revisions.naming_rule`.
        tokens: how to count the tokens of training.
        prepend_bos: whether it was trained with a start token before every document; None if nobody says.
        names: its revisions, if they are known without asking the hub.
        renamed: earlier ids of repositories -> today's.
        damage: what is known to be wrong.
    """

    models: Mapping[str, tuple[str, ...]]
    revisions: re.Pattern[str]
    tokens: TokensRule
    prepend_bos: bool | None = None
    names: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    damage: tuple[Damage, ...] = ()


@dataclass(frozen=True)
class KnownModel:
    """A model, the repositories that hold its checkpoints, and what is known about all models of its family."""

    name: str
    repositories: tuple[str, ...]
    family: FamilyRecord

    @property
    def damage(self) -> tuple[Damage, ...]:
        """What is known to be wrong with its checkpoints."""
        return tuple(damage for damage in self.family.damage if self.name in damage.models)


def _at(organisation: str, *names: str) -> dict[str, tuple[str, ...]]:
    """Models whose short name is their repository's."""
    return {name: (f"{organisation}/{name}",) for name in names}


# Biderman et al. 2023 (arXiv 2304.01373); seeds and dropout: PolyPythias (arXiv 2503.09543).
_SEEDED = ("14m", "31m", "70m", "160m", "410m")
_SIZES = (*_SEEDED, "1b", "1.4b", "2.8b", "6.9b", "12b")
_PYTHIAS = (
    *(f"pythia-{size}{variant}" for size in _SIZES for variant in ("", "-deduped")),
    *(f"pythia-{size}-seed{seed}" for size in _SEEDED for seed in range(1, 10)),
    *(f"pythia-{size}-{kind}-seed{seed}" for size in _SEEDED for kind in ("data", "weight") for seed in range(1, 4)),
    *(f"pythia-160m-{kind}dropout" for kind in ("all", "attn", "hidden")),
)

PYTHIA = FamilyRecord(
    _at("EleutherAI", *_PYTHIAS),
    re.compile(f"step{STEP}"),
    TokensRule((TOKENS_PER_STEP,)),
    prepend_bos=False,
    names=tuple(f"step{step}" for step in PYTHIA_STEPS),
    damage=(
        Damage(
            ("pythia-2.8b",),
            (),
            "holds the weights of the end of training on 86 of 154 branches",
            "EleutherAI/pythia issue 205",
        ),
        Damage(("pythia-12b",), (50_000, 58_000), "has one wrong shard", "EleutherAI/pythia issue 206"),
        Damage(
            ("pythia-160m-weight-seed1", "pythia-160m-weight-seed2"),
            (0,),
            "is not the start of the run that follows",
            "EleutherAI/pythia issue 203",
        ),
        Damage(("pythia-410m-seed9",), (40_000,), "misses weights", "EleutherAI/pythia issue 202"),
        Damage(("pythia-410m-seed6",), (88_000,), "misses weights", "EleutherAI/pythia issue 202"),
        Damage(("pythia-410m-seed2",), (111_000,), "misses weights", "EleutherAI/pythia issue 202"),
        Damage(
            ("pythia-410m-seed3", "pythia-410m-seed4"),
            (),
            "is an outlier: its training was unstable",
            "arXiv 2503.09543",
        ),
        # Presumably because the learning rate warms up from 0, so that the first step changes nothing.
        Damage(_PYTHIAS, (0, 1), "holds the same weights", "EleutherAI/pythia issue 198", expected=True),
    ),
)

# Groeneveld et al. 2024 (arXiv 2402.00838). Batches differ between the models, so tokens are taken from the names.
OLMO = FamilyRecord(
    _at("allenai", "OLMo-1B-hf", "OLMo-1B-0724-hf", "OLMo-7B-hf", "OLMo-7B-0424-hf", "OLMo-7B-0724-hf"),
    re.compile(f"step{STEP}-tokens{TOKENS}"),
    TokensRule(),
    damage=(Damage(("OLMo-1B-hf",), (), "has no checkpoints from step 117,000 to 330,000", "allenai/OLMo issue 879"),),
)

# OLMo 2 (arXiv 2501.00656). Stage 2 was run several times, each on other data. Its names count from its own start.
_OLMO_2_NAMES = re.compile(f"{STAGE}-(?:ingredient{RUN}-)?step{STEP}-tokens{TOKENS}")
_OLMO_2 = (
    FamilyRecord(
        {"OLMo-2-0425-1B": ("allenai/OLMo-2-0425-1B", "allenai/OLMo-2-0425-1B-early-training")},
        _OLMO_2_NAMES,
        TokensRule((2_097_152,)),
    ),
    FamilyRecord(
        _at("allenai", "OLMo-2-1124-7B"),
        _OLMO_2_NAMES,
        TokensRule((4_194_304,)),
        damage=(
            Damage(
                ("OLMo-2-1124-7B",), (101_000, 175_000, 300_000), "holds the same weights", "allenai/OLMo issue 915"
            ),
        ),
    ),
    FamilyRecord(_at("allenai", "OLMo-2-1124-13B", "OLMo-2-0325-32B"), _OLMO_2_NAMES, TokensRule((8_388_608,))),
)

_OLMO_3_NAMES = re.compile(f"{STAGE}-step{STEP}")
_OLMO_3 = (
    FamilyRecord(
        _at("allenai", "Olmo-3-1025-7B"),
        _OLMO_3_NAMES,
        TokensRule((4_194_304, 2_097_152, 4_194_304), stage_lengths=(1_413_814, 46_684)),
    ),
    FamilyRecord(_at("allenai", "Olmo-3-1125-32B"), _OLMO_3_NAMES, TokensRule((8_388_608, 4_194_304, 8_388_608))),
)


def _smollm2(size: str, tokens_per_step: int) -> FamilyRecord:
    """SmolLM2 (arXiv 2502.02737)."""
    repository = f"HuggingFaceTB/SmolLM2-{size}-intermediate-checkpoints"
    return FamilyRecord({f"SmolLM2-{size}": (repository,)}, re.compile(f"step-{STEP}"), TokensRule((tokens_per_step,)))


FAMILIES: tuple[FamilyRecord, ...] = (
    PYTHIA,
    OLMO,
    *_OLMO_2,
    *_OLMO_3,
    _smollm2("135M", 1_048_576),  # inferred from the length of its training, as for 360M
    _smollm2("360M", 1_572_864),
    _smollm2("1.7B", 2_097_152),
    FamilyRecord(
        {"SmolLM3-3B": ("HuggingFaceTB/SmolLM3-3B-checkpoints",)},
        re.compile(f"{STAGE}-step-{STEP}"),
        TokensRule((2_359_296,)),
    ),
    # LLM360 (arXiv 2312.06550): 360 chunks of about 3.5 billion tokens; `ckpt_000` has seen the first.
    FamilyRecord(
        {"Amber": ("IFM/Amber",)},
        re.compile(f"ckpt_{STEP}"),
        TokensRule((3_500_000_000,), at_zero=3_500_000_000),
        prepend_bos=True,
        renamed={"LLM360/Amber": "IFM/Amber"},
    ),
    FamilyRecord(
        _at("common-pile", "comma-v0.1-1t"),
        re.compile(f"{STAGE}-step{STEP}-tokens{TOKENS}"),
        TokensRule((2_097_152,)),
        prepend_bos=True,  # although its tokenizer adds none
    ),
    # Mistral, the GPT-2 runs of Stanford's CRFM; checkpoints are tags.
    FamilyRecord(
        _at(
            "stanford-crfm",
            "alias-gpt2-small-x21",
            "battlestar-gpt2-small-x49",
            "caprica-gpt2-small-x81",
            "darkmatter-gpt2-small-x343",
            "expanse-gpt2-small-x777",
        ),
        re.compile(f"checkpoint-{STEP}"),
        TokensRule((524_288,)),
    ),
    FamilyRecord(_at("swiss-ai", "Apertus-8B-2509"), re.compile(f"step{STEP}-tokens{TOKENS}"), TokensRule()),
    FamilyRecord(
        {"TinyLlama": ("TinyLlama/tinyLlama-intermediate-checkpoints",)},
        re.compile(f"step-{STEP}-token-{TOKENS}"),
        TokensRule(),
    ),
)

UNUSABLE: Mapping[str, str] = {
    r"(?:m-a-p/)?(?:MAP-Neo|neo_).*": "its checkpoints are Megatron's own files, which transformers does not load",
    r"(?:utter-project/)?EuroLLM-.*": "it publishes no checkpoints of its training",
    r"(?:(?:LLM360|IFM)/)?Crystal(?:Coder|Chat)?": "it needs its own code, which this suite does not run",
    r"(?:allenai/)?Olmo-Hybrid-.*": "not all of its layers are attention",
    r"(?:pico-lm/)?pico-.*": "it needs its own code, which this suite does not run",
    r"(?:bigscience/)?bloom.*": "its attention is biased by distance (ALiBi), which this suite does not compute",
    r"(?:allenai/)?DataDecide-.*": "its format is too old for transformers 5",
}
"""Names and hub ids (whole, upper or lower case) of families that cannot be measured, and why."""

_KNOWN: dict[str, KnownModel] = {}
for _family in FAMILIES:
    for _name, _repositories in _family.models.items():
        _model = KnownModel(_name, _repositories, _family)
        _KNOWN |= dict.fromkeys((_name, *_repositories), _model)
        _KNOWN |= {old: _model for old, new in _family.renamed.items() if new in _repositories}

SHORT_NAMES: tuple[str, ...] = tuple(name for family in FAMILIES for name in family.models)
EXAMPLES: tuple[str, ...] = tuple(next(iter(family.models)) for family in FAMILIES)


def known_model(model: str) -> KnownModel | None:
    """What is known about a model, by its short name or the id of one of its repositories."""
    return _KNOWN.get(model)


def unusable(model: str) -> str | None:
    """Why a model cannot be measured, or None if nothing speaks against it."""
    return next((why for name, why in UNUSABLE.items() if re.fullmatch(name, model, re.IGNORECASE)), None)
