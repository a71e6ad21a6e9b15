"""Which head of one model is which head of another, by what heads do (`utils/heads/signatures.py`).

1. A signature is a vector: all numbers of all tasks, each as its distance from the mean over the heads of both models,
   in standard deviations, weighted by its reliability, the share of that variance which is not error (`function`); or
   all attention patterns on the same prompts, one after the other (`attention`; Bali et al. 2026, arXiv 2602.16740).
   Neither compares directions of two residual streams, which differ by a rotation.
2. The similarity of two heads is the cosine, 1 - d^2 / 2 for unit vectors at a distance d.
3. Heads are matched one to one, so that the sum of similarities is largest (`scipy.optimize.linear_sum_assignment`).
   Layers may differ by `match.layers`, at the same share of the depth, and heads that share keys and values stay
   together. A pair that costs more than `match.unmatched` is none.
4. Chance is the match in deals: the heads of both models, if they have one shape, are dealt to two models, layer by
   layer (`models_p_value`, and the limit of a pair). A twin is in the other model in half of the deals, so no single
   pair is beyond this chance. For pairs, and for models of other shapes, there are shuffled signatures (`p_value`):
   within each layer of a model, the heads' coordinates along every principal component are dealt out anew, which leaves
   means, variances and what goes together as it was. `docs/comparisons.md#matched-heads` says what either can tell.
5. All this is done with every second fold of the prompts. How sure a pair is, resamples of those folds say
   (`confidence`), and of the others, which were held out (`held_out`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

from circuits_over_time.edge_attribution_patching.circuits.renaming import HeadPlace
from circuits_over_time.edge_attribution_patching.statistics import Bootstrap

from ..base.errors import UserError
from ..base.multiple_tests import adjusted_p_values
from ..results.commands import how_to_make
from ..results.store import Store
from .keys import ComparisonConfig, MatchConfig

Signature = Literal["function", "attention"]
SIGNATURES: tuple[Signature, ...] = get_args(Signature)
Pairs = list[tuple[int, int]]
"""Head of the first model, head of the second, counted through all layers."""


@dataclass(frozen=True)
class HeadSignatures:
    """The signatures of all heads of one checkpoint, over some tasks."""

    model: str
    step: int
    shape: tuple[int, int, int]  # layers, heads of a layer, and key-value heads of a layer
    names: list[str]  # of the scores
    folds: Float[np.ndarray, "fold head score"]  # mean scores
    patterns: Float[np.ndarray, "fold head entry"]  # of attention

    @property
    def layer(self) -> Int[np.ndarray, " head"]:
        """The layer of each head."""
        return np.repeat(np.arange(self.shape[0]), self.shape[1])

    def places(self, heads: Sequence[int]) -> list[HeadPlace]:
        """Layer and number of heads that are counted through."""
        return [divmod(head, self.shape[1]) for head in heads]

    @classmethod
    def read(cls, store: Store, model: str, tasks: Sequence[str], step: int) -> HeadSignatures:
        """Put the signatures of several tasks together; scores that no prompts of a task are behind count once."""
        names, folds, patterns = list[str](), list[np.ndarray](), list[np.ndarray]()
        for number, task in enumerate(tasks):
            stored = store.folder("signatures", model, task).read_tensors(step)
            values = stored["folds"].double().numpy()
            n_folds, n_layers, n_heads, _ = values.shape
            names += [f"{task} {name}" for name in stored["fold_scores"]]
            folds.append(values.reshape(n_folds, n_layers * n_heads, -1))
            patterns.append(stored["patterns"].float().numpy().reshape(n_folds, n_layers * n_heads, -1))
            if number == 0 and stored["scores"] is not None:
                # Folds as they would be, of a score whose mean and error alone are known.
                value, error = stored["scores"].double().numpy().reshape(2, n_layers * n_heads, -1)
                noise = np.random.default_rng(0).normal(size=(n_folds, *value.shape))
                noise = (noise - noise.mean(0)) / noise.std(0, ddof=1)
                names += stored["other_scores"]
                folds.append(value + np.sqrt(n_folds) * error * noise)
        shape = (n_layers, n_heads, int(stored["n_kv_heads"]))
        return cls(model, step, shape, names, np.concatenate(folds, -1), np.concatenate(patterns, -1))


def require_signatures(store: Store, config: ComparisonConfig, models: Iterable[str]) -> None:
    """Refuse, with a UserError, to match models if one has no signatures, or none has those of the step asked for."""
    steps = set[int]()
    for model in models:
        if model not in store.models("signatures"):
            command = how_to_make(store.root, "signatures", model)
            raise UserError(f"match_heads: {store.root / 'signatures'} has none of {model}; run: {command}")
        for task in store.tasks("signatures", model):
            steps |= set(store.folder("signatures", model, task).steps())
    if config.match.step is not None and config.match.step not in steps:
        there = ", ".join(map(str, sorted(steps))) or "none"
        raise UserError(f"match.step: no signatures of step {config.match.step} (there: {there})")


def common_signatures(
    store: Store, config: ComparisonConfig, first: str, second: str
) -> tuple[HeadSignatures, HeadSignatures] | None:
    """The signatures of two models at the last step that both have, of the tasks that both have; None without any."""
    tasks = sorted(set(store.tasks("signatures", first)) & set(store.tasks("signatures", second)))
    steps = [set(store.folder("signatures", model, task).steps()) for model in (first, second) for task in tasks]
    found = [step for step in set.intersection(*steps) if config.match.step in (None, step)] if steps else []
    if not found:
        return None
    return HeadSignatures.read(store, first, tasks, max(found)), HeadSignatures.read(store, second, tasks, max(found))


class Matcher:
    """Matches the heads of two checkpoints by one signature; a ValueError if patterns are of other prompts."""

    def __init__(self, first: HeadSignatures, second: HeadSignatures, signature: Signature, match: MatchConfig) -> None:
        self.first, self.second, self.match = first, second, match
        sides = (first, second)
        if signature == "attention":
            if first.patterns.shape[2] != second.patterns.shape[2]:
                raise ValueError(
                    f"{first.model} and {second.model} have other prompts: their attention does not compare"
                )
            self._folds = [side.patterns for side in sides]
        else:
            both = [name for name in first.names if name in second.names]
            folds = [side.folds[..., [side.names.index(name) for name in both]] for side in sides]
            means = np.concatenate([of_side.mean(0) for of_side in folds])
            variance = means.var(0)
            error = np.concatenate([of_side.var(0, ddof=1) / len(of_side) for of_side in folds]).mean(0)
            with np.errstate(invalid="ignore", divide="ignore"):
                weight = np.nan_to_num(np.clip(1 - error / variance, 0, 1))
                scale = np.nan_to_num(np.sqrt(weight / max(weight.sum(), 1e-300) / variance), posinf=0)
            self._folds = [(of_side - means.mean(0)) * scale for of_side in folds]
        self._whole = signature == "attention"
        depth = [side.layer / max(side.shape[0] - 1, 1) for side in sides]
        reach = match.layers / max(max(side.shape[0] for side in sides) - 1, 1)
        self.within = np.abs(depth[0][:, None] - depth[1]) <= reach + 1e-9
        self.n_folds = min(len(of_side) for of_side in self._folds)

    def points(self, shares: Float[np.ndarray, " fold"]) -> list[Float[np.ndarray, "head coordinate"]]:
        """The points of both models' heads, of prompts that count by their fold's share."""
        found = []
        for every_fold in self._folds:
            of_side = every_fold[: self.n_folds]
            if self._whole:  # Each fold has its own prompts: their patterns stand one after the other.
                weighted = (np.sqrt(shares)[:, None, None] * of_side)[shares > 0]
                rows = weighted.transpose(1, 0, 2).reshape(weighted.shape[1], -1)
            else:
                rows = np.tensordot(shares, of_side, 1)
            found.append(rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-300))
        return found

    def pairs(self, similarity: Float[np.ndarray, "head other"]) -> Pairs:
        """The assignment with the largest sum of what each pair saves beside two heads without a match."""
        saved = np.where(self.within, (self.match.unmatched - (1 - similarity)).clip(0), 0)
        return assigned(saved, self.first, self.second)

    def half(self, held_out: int) -> Float[np.ndarray, " fold"]:
        """Shares of every second fold: of those that are matched by (0), or of the others (1)."""
        of_half = (np.arange(self.n_folds) % 2 == held_out).astype(float)
        return of_half / of_half.sum()

    def resampled(self, held_out: int, seed: int, resamples: int) -> Iterator[Pairs]:
        """Matches by resamples of the folds of a half."""
        half = np.flatnonzero(self.half(held_out))
        for of_half in Bootstrap.of(len(half), seed, resamples).shares.numpy():
            shares = np.zeros(self.n_folds)
            shares[half] = of_half / of_half.sum()
            yield self.pairs(similarities(*self.points(shares)))

    def shuffled(self, seed: int, draws: int) -> Float[np.ndarray, "draw head"]:
        """How similar each head is to its match in shuffled models; -infinity for one without."""
        first, second = self.points(self.half(0))
        # Principal components of both models' heads: no more of them than heads.
        centre = np.concatenate([first, second]).mean(0)
        left, sizes, _ = np.linalg.svd(np.concatenate([first, second]) - centre, full_matrices=False)
        coordinates = left * sizes
        own, others = coordinates[: len(first)], coordinates[len(first) :]
        rng = np.random.default_rng(seed)
        layers = others.reshape(self.second.shape[0], -1, others.shape[1])
        found = np.full((draws, len(own)), -np.inf)
        for of_draw in found:
            similarity = similarities(own, rng.permuted(layers, axis=1).reshape(others.shape))
            for one, other in self.pairs(similarity):
                of_draw[one] = similarity[one, other]
        return found

    def dealt(self, seed: int, draws: int) -> tuple[Float[np.ndarray, "deal head"], Float[np.ndarray, " deal"]]:
        """How similar each head of the first model is to its match, and what all save, as it is and in deals.

        The heads of both models, of one shape, are dealt to two models, layer by layer; those that share keys and
        values stay together. If the heads of a layer are draws from one population, every deal is as likely as what
        there is. If each head has its like in the other model, both often land in one model.
        """
        layers, n_groups = self.first.shape[0], self.first.shape[2]
        points, rng = np.concatenate(self.points(self.half(0))), np.random.default_rng(seed)
        similarity, n_heads = similarities(points, points), len(points) // 2
        heads = np.arange(2 * n_heads).reshape(2, layers, n_groups, -1).swapaxes(0, 1).reshape(layers, 2 * n_groups, -1)
        found, saved = np.full((draws + 1, 2 * n_heads), -np.inf), np.zeros(draws + 1)
        for deal in range(draws + 1):
            own, others = (side.flatten() for side in np.split(heads, 2, axis=1))
            for one, other in self.pairs(similarity[np.ix_(own, others)]):
                pair = [own[one], others[other]]
                found[deal, pair] = similarity[*pair]
                saved[deal] += similarity[*pair] - 1 + self.match.unmatched
            heads = np.take_along_axis(
                heads, rng.permuted(np.tile(np.arange(2 * n_groups), (layers, 1)), axis=1)[..., None], 1
            )
        return found[:, :n_heads], saved

    def table(self, config: ComparisonConfig) -> pd.DataFrame:
        """A row for each head of the first model that has a match, as `matches.csv` has it, without the models."""
        similarity = similarities(*self.points(self.half(0)))
        pairs = self.pairs(similarity)
        chance, models_p_value = self.shuffled(config.seed, config.permutations), float("nan")
        p_values = np.array([np.mean([*(chance[:, one] >= similarity[one, other] - 1e-12), 1]) for one, other in pairs])
        q_values = adjusted_p_values(p_values)
        if self.first.shape == self.second.shape:
            chance, saved = self.dealt(config.seed, config.permutations)
            models_p_value = float(np.mean(saved >= saved[0] - 1e-9))
        middle = np.median(chance, axis=0)
        draws = config.resamples // 5
        counts = {
            name: Counter(pair for resample in self.resampled(side, config.seed, draws) for pair in resample)
            for side, name in enumerate(("confidence", "held_out"))
        }
        ones, others = np.array(pairs, dtype=int).reshape(-1, 2).T
        columns: dict[str, Any] = {"layer": ones // self.first.shape[1], "head": ones % self.first.shape[1]}
        columns |= {"other_layer": others // self.second.shape[1], "other_head": others % self.second.shape[1]}
        columns["similarity"] = similarity[ones, others]
        columns |= {name: [of_side[pair] / draws for pair in pairs] for name, of_side in counts.items()}
        columns |= {"p_value": p_values, "q_value": q_values, "models_p_value": models_p_value}
        return pd.DataFrame(columns | {"matched": similarity[ones, others] >= middle[ones] - 1e-9})


def similarities(first: Float[np.ndarray, "head c"], second: Float[np.ndarray, "other c"]) -> np.ndarray:
    """1 - d^2 / 2 of every two points, [head, other]."""
    squares = (first**2).sum(1)[:, None] + (second**2).sum(1) - 2 * first @ second.T
    return 1 - squares.clip(0) / 2


def assigned(saved: Float[np.ndarray, "head other"], first: HeadSignatures, second: HeadSignatures) -> Pairs:
    """One-to-one pairs that save most. Heads that share keys and values go to heads that share theirs."""
    groups = [side.shape[1] // side.shape[2] for side in (first, second)]
    if groups == [1, 1]:
        return [(one, other) for one, other in _largest(saved) if saved[one, other] > 0]
    # What the best pairs of two groups' heads save, and then the best pairs of groups.
    blocks = saved.reshape(len(saved) // groups[0], groups[0], -1, groups[1]).swapaxes(1, 2)
    inner = {place: _largest(blocks[place]) for place in np.ndindex(blocks.shape[:2])}
    totals = np.array([sum(blocks[place][pair] for pair in pairs) for place, pairs in inner.items()])
    totals = totals.reshape(blocks.shape[:2])
    return [
        (of_one * groups[0] + one, of_other * groups[1] + other)
        for of_one, of_other in _largest(totals)
        for one, other in inner[of_one, of_other]
        if blocks[of_one, of_other][one, other] > 0
    ]


def _largest(saved: np.ndarray) -> Pairs:
    return list(zip(*(side.tolist() for side in linear_sum_assignment(saved, maximize=True)), strict=True))
