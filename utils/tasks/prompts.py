"""Tokenised prompt pairs: what a task hands to everything that runs a model.

A pair is a clean and a corrupted prompt with the same number of tokens, together with the tokens that count as right
and wrong answers at the end of the clean prompt. All pairs are in two tensors, padded on the right. So position i of a
clean prompt matches position i of its corruption, and causal attention needs no mask.

Figures and `--help` read the registry for names and labels. So no module of this folder imports torch, pandas or
transformers before prompts are built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import UserError
from ..config.keys import USUAL_PROMPTS, PromptOptions, StartToken
from .metrics import ALL_METRICS, METRICS, STUDY_METRICS, Answers
from .vocabulary import encode, refuse, require_embedded, unknown_token

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from circuits_over_time.edge_attribution_patching.model.architectures import Shape
    from circuits_over_time.edge_attribution_patching.model.pairs import Metric, TokenPairs, TokenRoles
    from circuits_over_time.edge_attribution_patching.model.weights import ModelWeights


WHOLE_AT_ONCE = 32
"""Prompts that the whole model runs at once for `kl`."""


Span = tuple[str, int, int]
"""A role and the characters of the clean prompt that have it, from and up to; or twice its token counted from the end.
"""


@dataclass(frozen=True)
class Prompts:
    """n prompt pairs under one tokenizer."""

    clean: Int[Tensor, "n width"]  # token ids, padded on the right to a common width
    corrupted: Int[Tensor, "n width"]
    lengths: Int[Tensor, n]  # tokens in each prompt without padding; the answer is read at position `lengths - 1`
    answers: Answers
    texts: list[tuple[str, str]]
    meta: pd.DataFrame  # what each was built from, a row per prompt (each task's module lists the columns)
    positions: dict[str, Int[Tensor, n]]  # named ones in the clean prompt; every task has `end`, the last token
    roles: TokenRoles | None = None  # of every token, where edges are told apart by them

    def __post_init__(self) -> None:
        """Check that all parts describe the same prompts; else it is a ValueError."""
        tokens = (self.clean, self.corrupted, self.lengths, self.answers.right)
        parts: list[Sized] = [*tokens, self.texts, self.meta, *self.positions.values()]
        counts = {len(part) for part in parts}
        if len(counts) != 1:
            raise ValueError(f"the parts of the prompts have different numbers of rows: {sorted(counts)}")
        if self.clean.shape != self.corrupted.shape:
            raise ValueError(f"clean {tuple(self.clean.shape)} and corrupted {tuple(self.corrupted.shape)} differ")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def pairs(self) -> TokenPairs:
        """The tokens as the engine takes them."""
        from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs

        return TokenPairs(self.clean, self.corrupted, self.lengths, self.roles)

    def metric(
        self, metric: str | MetricFunction, weights: ModelWeights | None = None, *, study: bool = False
    ) -> Metric:
        """A metric on these prompts, as the engine takes it: a function of logits and of the prompts they belong to.

        Logits of half precision are taken as float32: sums and differences of them need more digits than they have.
        `kl` runs the model whose weights are given, once. `study`: by the published study's definitions.
        """
        if metric == "kl":
            import torch

            from circuits_over_time.edge_attribution_patching.model.forward import answer_logits

            if weights is None:
                raise TypeError("metric('kl') needs the weights of the model that others are compared with")
            with torch.inference_mode(False):  # What is kept here, gradients pass by.
                parts = zip(self.clean.split(WHOLE_AT_ONCE), self.lengths.split(WHOLE_AT_ONCE), strict=True)
                whole = torch.cat([answer_logits(weights, tokens, lengths) for tokens, lengths in parts])
            return lambda logits, index: ALL_METRICS["kl"].function(logits, whole[index])
        if isinstance(metric, str):
            function, answers_on = METRICS[metric].function, cache(self.answers.to)
            function = STUDY_METRICS.get(metric, function) if study else function
            return lambda logits, index: function(_precise(logits), answers_on(logits.device).select(index))
        prompts_on = cache(self.to)
        return lambda logits, index: _checked(metric, _precise(logits), prompts_on(logits.device).select(index))

    def require_fit(self, name: str, shape: Shape) -> None:
        """Refuse prompts that are longer than a model's context, or have tokens that it does not have."""
        clean, corrupted = zip(*self.texts, strict=True)
        for tokens, texts in ((self.clean, clean), (self.corrupted, corrupted)):
            require_embedded(tokens, shape.d_vocab, name, texts)
        for tokens in (self.answers.right, self.answers.wrong):
            require_embedded(tokens, shape.d_vocab, f"an answer of {name}", clean)
        require_length(name, self.lengths.tolist(), clean, shape.n_positions)

    def select(self, index: slice | Sequence[int] | Sequence[bool] | np.ndarray | pd.Series | Tensor) -> Prompts:
        """The prompts in the given rows, in the given order and at the same width.

        `index` is a slice, row numbers (negative ones count from the end), or a boolean mask over all rows, such as a
        condition on `meta`. It is an IndexError if a row does not exist or a mask has another length.
        """
        import numpy as np
        import torch

        if not isinstance(index, slice):
            index = np.asarray(index.cpu() if isinstance(index, torch.Tensor) else index)
            if index.size == 0:
                index = index.astype(np.int64)
        rows = np.arange(len(self))[index]
        at = torch.as_tensor(rows, device=self.clean.device)
        return Prompts(
            clean=self.clean[at],
            corrupted=self.corrupted[at],
            lengths=self.lengths[at],
            answers=self.answers.select(at),
            texts=[self.texts[row] for row in rows],
            meta=self.meta.iloc[rows].reset_index(drop=True),
            positions={name: part[at] for name, part in self.positions.items()},
            roles=None if self.roles is None else self.roles.select(at),
        )

    def to(self, device: torch.device | str) -> Prompts:
        return replace(
            self,
            clean=self.clean.to(device),
            corrupted=self.corrupted.to(device),
            lengths=self.lengths.to(device),
            answers=self.answers.to(device),
            positions={name: part.to(device) for name, part in self.positions.items()},
        )


MetricFunction = Callable[["Tensor", Prompts], "Tensor"]
"""A metric of one's own: logits [prompt, vocab] at the end of some clean prompts, and these prompts -> values [prompt].
"""


def metric_name(metric: str | MetricFunction) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def metric_unit(metric: str | MetricFunction) -> str | None:
    """What its values count; None for a function of one's own."""
    return ALL_METRICS[metric].unit if isinstance(metric, str) else None


def metric_columns(task: Task, prompts: Prompts, values: Float[Tensor, " prompt"]) -> dict[str, Any]:
    """What tables say beside a mean of a task's metric: `metric_name`, `unit` and `accuracy`.

    The accuracy is the share of logit differences above 0. It is None with another metric, or several answers to a
    prompt, for which it does not follow from the metric.
    """
    answers = prompts.answers
    single = (answers.right_mask.sum(dim=1) == 1).all() and (answers.wrong_mask.sum(dim=1) == 1).all()
    accuracy = float((values > 0).double().mean()) if single and task.primary == "logit_diff" else None
    return {"metric_name": metric_name(task.primary), "unit": metric_unit(task.primary), "accuracy": accuracy}


def _precise(logits: Float[Tensor, "prompt vocab"]) -> Float[Tensor, "prompt vocab"]:
    import torch

    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _checked(metric: MetricFunction, logits: Float[Tensor, "prompt vocab"], prompts: Prompts) -> Tensor:
    """The values of a metric of one's own; a UserError unless there is one per prompt, with its gradient."""
    import torch

    values = metric(logits, prompts)
    if not isinstance(values, torch.Tensor) or values.shape != (len(prompts),):
        what = f"a tensor of shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        raise UserError(
            f"metric: {metric_name(metric)} returned {what}; it must return one value per prompt, a tensor of shape "
            f"({len(prompts)},)"
        )
    if not values.isfinite().all() and logits.isfinite().all():
        raise UserError(f"metric: {metric_name(metric)} returned NaN or infinity")
    if logits.requires_grad and not values.requires_grad:
        raise UserError(f"metric: {metric_name(metric)} has no gradient; compute it from the logits with torch alone")
    return values


@dataclass(frozen=True)
class Pair:
    """One prompt pair before it is tokenised, with its answers as token ids."""

    clean: str
    corrupted: str
    answers: tuple[int, ...]
    wrong_answers: tuple[int, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    where: str = ""  # names it in errors
    roles: tuple[Span, ...] = ()  # of its words (`roles.py`)


@dataclass(frozen=True)
class Work:
    """What a measurement will run, as far as it is known without torch."""

    task: str
    pairs: Sequence[Pair]
    passes: float  # about how many forward passes over their clean prompts (benchmarks/README.md); 0 if not known
    tokens: float = 0  # of other text, in forward passes


@dataclass(frozen=True)
class Task:
    """A task: how to build its prompts and how to score a model on them."""

    name: str  # in the registry, or the stem of a prompts CSV. It names the results folder.
    # (tokenizer, n, seed, options) -> n prompt pairs, without torch. n is None for all rows of a table.
    pairs: Callable[[PreTrainedTokenizerBase, Any, int, PromptOptions], list[Pair]]
    primary: str | MetricFunction  # what circuits are found with: a key of `metrics.ALL_METRICS`, or a function
    group: str | None = None  # the column of `meta` whose kinds of prompts results are also given apart for, if any
    label: str = ""  # its name in figures; empty to take the name, without underscores
    source: Path | None = None  # the prompts CSV that it reads
    usual: int | None = USUAL_PROMPTS  # how many prompts it has if nobody says; None for all that there are
    positions: Callable[[Prompts], dict[str, Tensor]] | None = None  # the named ones besides `end`

    def build(self, tokenizer: PreTrainedTokenizerBase, n: int | None, seed: int, options: PromptOptions) -> Prompts:
        """n prompts, or as many as usual; a UserError if one cannot be used or there are fewer."""
        pairs = self.pairs(tokenizer, self.usual if n is None else n, seed, options)
        return self.tokenise(tokenizer, pairs, options.prepend_bos)

    def tokenise(self, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], prepend_bos: StartToken) -> Prompts:
        """Pairs of the task as prompts; errors as of `assemble`."""
        prompts = assemble(tokenizer, pairs, prepend_bos)
        if self.positions is not None:
            prompts = replace(prompts, positions=prompts.positions | self.positions(prompts))
        return prompts

    @property
    def metrics(self) -> tuple[str | MetricFunction, ...]:
        """All metrics, the primary one first."""
        return (self.primary, *(name for name in METRICS if name != self.primary))


def assemble(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], prepend_bos: StartToken = False) -> Prompts:
    """Tokenise prompt pairs, in order, with the position `end`; arguments and errors of `token_rows`."""
    import pandas as pd
    import torch

    clean, corrupted = token_rows(tokenizer, pairs, prepend_bos)
    # Padding never reaches the answer: any token will do.
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    lengths = torch.tensor([len(row) for row in clean])
    right, wrong = (padded([getattr(pair, side) for pair in pairs], fill=0) for side in ("answers", "wrong_answers"))
    return Prompts(
        clean=padded(clean, padding)[0],
        corrupted=padded(corrupted, padding)[0],
        lengths=lengths,
        answers=Answers(*right, *wrong),
        texts=[(pair.clean, pair.corrupted) for pair in pairs],
        meta=pd.DataFrame([pair.meta for pair in pairs], index=range(len(pairs))),
        positions={"end": lengths - 1},
    )


def token_rows(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], prepend_bos: StartToken = False
) -> tuple[list[list[int]], list[list[int]]]:
    """The tokens of clean and of corrupted prompts, which can be compared position by position.

    Args:
        tokenizer: adds no special tokens, whatever its default.
        prepend_bos: put exactly one start token in front of every prompt (the end-of-sequence token if the tokenizer
            has no other). Positions count it. `auto` that no family has resolved counts as no.

    Raises:
        UserError: if the prompts of a pair differ in length, are the same, are empty or hold a word that the tokenizer
            does not know; if an answer is both right and wrong; or if the tokenizer has no token to put in front.
    """
    rows = encode(tokenizer, [pair.clean for pair in pairs] + [pair.corrupted for pair in pairs])
    if prepend_bos is True:
        first = bos_token(tokenizer)
        rows = [row if row[:1] == [first] else [first, *row] for row in rows]
    clean, corrupted = rows[: len(pairs)], rows[len(pairs) :]
    unknown = unknown_token(tokenizer)
    problems = []
    for index, (pair, x, y) in enumerate(zip(pairs, clean, corrupted, strict=True)):
        both = set(pair.answers) & set(pair.wrong_answers)
        if not x or not y:
            empty = pair.corrupted if x else pair.clean
            problem = f"the tokenizer produces no tokens for {empty!r}; check the model's tokenizer files"
        elif len(x) != len(y):
            problem = (
                f"clean has {len(x)} tokens and corrupted {len(y)}, but they must have the same number: "
                f"{pair.clean!r} / {pair.corrupted!r}"
            )
        elif x == y:
            problem = f"clean and corrupted are the same tokens: {pair.clean!r}"
        elif unknown is not None and (unknown in x or unknown in y):
            problem = f"has a word that the tokenizer does not know: {pair.clean!r} / {pair.corrupted!r}"
        elif both:
            problem = f"{tokenizer.decode(min(both))!r} is both an answer and a wrong answer"
        else:
            continue
        problems.append(f"{pair.where or f'prompt {index}'}: {problem}")
    refuse(problems)
    return clean, corrupted


def require_length(name: str, lengths: Sequence[int], texts: Sequence[str], n_positions: int) -> None:
    """Refuse, with a UserError that names the longest, prompts that are longer than a model's context."""
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if (length := lengths[longest]) > n_positions:
        raise UserError(
            f"task: {name}: a prompt has {length} tokens, but the model's context holds {n_positions}; use shorter "
            f"prompts or another model ({texts[longest]!r})"
        )


def bos_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to put in front of a sequence: BOS, or EOS if there is no BOS; a UserError if there is neither."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise UserError("prepend_bos: the tokenizer has neither a BOS nor an EOS token; set prepend_bos=false")


def padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[Tensor, "n width"], Bool[Tensor, "n width"]]:
    """Rows of token ids as one tensor, padded on the right with `fill`, and a mask that is true at the rows' tokens."""
    import torch

    width = max(len(row) for row in rows)
    tokens = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)
    lengths = torch.tensor([len(row) for row in rows])
    return tokens, torch.arange(width)[None, :] < lengths[:, None]
