"""The keys of compare_circuits.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ..config.keys import LARGEST, Folder, Names, Section, amount, different, execution, key


class EmergenceConfig(Section):
    """When something emerges."""

    fraction: float = key(0.5, gt=0, lt=1, reason="it is a fraction")
    """A curve emerges where it first crosses this fraction of its
    [plateau](../docs/comparisons.md#emergence), counted from chance."""
    sustained: int = amount(2)
    """At how many checkpoints in a row it must stay there."""
    weakest: float = key(0.25, ge=0, lt=1, reason="it is a share")
    """Leave out a head whose maximum is below this share of the largest maximum of its score in the model."""


class MatchConfig(Section):
    """How heads of two models are matched."""

    layers: int = amount(1, 0, most=10_000, reason="no model has more layers")
    """By how many layers two heads may be apart; in models of other depth, of the deeper one's."""
    unmatched: float = key(1.0, gt=0, le=2, reason="two heads at random cost about 1")
    """What two heads without a match cost; a pair costs 1 minus its similarity."""
    step: int | None = key(None, ge=0, le=LARGEST, reason="no training has more steps")
    """The step whose [signatures](../docs/heads.md#signatures) are matched; `null`: the last one that both have."""


class ComparisonConfig(Section):
    """Keys of compare_circuits.py."""

    results_dir: Folder = execution(Path("results"))
    """Where the results are, and where to write `comparison/`."""
    model: Names | None = execution(None)
    """Models, by name or path (`toy`, `[pythia-160m, pythia-160m-seed1]`); `null`: every model with circuits."""
    task: Names | None = execution(None)
    """Tasks to compare; `null`: all there are. What the folder's tables compare already stays in them."""
    overwrite: bool = execution(False)
    """Replace comparisons with other settings, and leave out what this run does not name."""
    reference: int | None = key(None, ge=0, le=LARGEST, reason="no training has more steps")
    """The step whose circuit all others are compared with; `null`: the last one."""
    size: int | None = amount(None, most=LARGEST, reason="no model has more edges")
    """Edges of a circuit, before pruning, where sizes are fixed; `null`: the median over the task's circuits."""
    between: Literal["all", "none"] = "all"
    """Whether to compare models of one shape ([seeds](../docs/comparisons.md#seeds)), and the
    [methods](../docs/comparisons.md#methods) of one model, at every step: `all` pairs, or `none`."""
    seeds: dict[str, Annotated[list[str], AfterValidator(different)]] | None = Field(None, min_length=1)
    """Groups of models that are drawn and summed up together (`{pythia-160m: [pythia-160m-seed1, pythia-160m-seed2]}`);
    `null`: models of one shape whose names differ in a seed alone."""
    pairs: int = amount(200, 100, most=10_000)
    """Pairs of resamples of each checkpoint that its noise floor is taken from."""
    weighted_jaccard: Literal["shares", "raw"] = "shares"
    """Whether the similarity by score compares signed scores as `shares` of each circuit's sum, or
    [`raw`](../docs/comparisons.md#is-a-change-real) absolute ones (Tigges et al. 2024)."""
    permutations: int = amount(999, 99, most=100_000)
    """Random deals of two checkpoints' folds that a [p-value](../docs/comparisons.md#is-a-change-real) comes from."""
    resamples: int = amount(1000, 100, most=10_000)
    """Resamples that all other intervals are taken from (of the circuits' own curves a fifth)."""
    false_discovery_rate: float = key(0.05, gt=0, lt=1, reason="it is a share")
    """Of the changes that are flagged, how many may be none (Benjamini and Hochberg 1995, over checkpoints)."""
    match_heads: bool = False
    """Also find out which head of one model is [which head of another](../docs/comparisons.md#matched-heads), and
    compare their circuits by that."""
    match: MatchConfig = MatchConfig()
    seed: int = key(0, ge=0, le=LARGEST, reason="generators of random numbers take 63 bits")
    """Seed of everything drawn at random."""
    emergence: EmergenceConfig = EmergenceConfig()
