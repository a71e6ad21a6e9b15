"""How well the logits at a prompt's end answer it: one value a prompt, in float32.

A prompt has a set of right answers A and a set of wrong ones W, all single tokens. P is the softmax over the whole
vocabulary, computed in float32 whatever the logits' dtype. `logit_diff` and `prob_diff` are differentiable; the metrics
of a set of prompts are means over prompts of these values.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.tasks.prompts import Prompts

Logits = Float[Tensor, "b vocab"]
Values = Float[Tensor, "b"]


def logit_diff(logits: Logits, prompts: Prompts) -> Values:
    """Mean logit of the right answers minus mean logit of the wrong ones: logit(IO) - logit(S) in IOI."""
    right, wrong = _gather(logits, prompts)
    right_mask, wrong_mask = _masks(logits, prompts)
    return _sum(right, right_mask) / right_mask.sum(dim=1) - _sum(wrong, wrong_mask) / wrong_mask.sum(dim=1)


def prob_diff(logits: Logits, prompts: Prompts) -> Values:
    """P(A) - P(W), the summed probabilities' difference, in [-1, 1]."""
    right, wrong = _probabilities(logits, prompts)
    return right - wrong


def prob_mass(logits: Logits, prompts: Prompts) -> Values:
    """P(A) + P(W), the probability of giving an answer at all, in [0, 1]."""
    right, wrong = _probabilities(logits, prompts)
    return right + wrong


def accuracy(logits: Logits, prompts: Prompts) -> Values:
    """1 where the best right answer has a higher logit than the best wrong one, else 0; a tie is wrong."""
    (right, wrong), (right_mask, wrong_mask) = _gather(logits, prompts), _masks(logits, prompts)
    lowest = -torch.inf
    best_right = right.masked_fill(~right_mask, lowest).amax(dim=1)
    best_wrong = wrong.masked_fill(~wrong_mask, lowest).amax(dim=1)
    return (best_right > best_wrong).float()


def rank_0_rate(logits: Logits, prompts: Prompts) -> Values:
    """1 where the most likely token of all is a right answer, else 0; of equally likely ones the lowest id counts."""
    _check(logits, prompts)
    # max over equal values gives no fixed index, so ties are settled here.
    top = (logits == logits.amax(dim=1, keepdim=True)).int().argmax(dim=1)
    right_mask, _ = _masks(logits, prompts)
    return ((prompts.answers.to(logits.device) == top[:, None]) & right_mask).any(dim=1).float()


METRICS: dict[str, Callable[[Logits, Prompts], Values]] = {
    "logit_diff": logit_diff,
    "prob_diff": prob_diff,
    "accuracy": accuracy,
    "rank_0_rate": rank_0_rate,
    "prob_mass": prob_mass,
}


def _check(logits: Logits, prompts: Prompts) -> None:
    """Refuse logits of other prompts.

    Raises:
        ValueError: if there is not one row of logits for each prompt.
    """
    if logits.ndim != 2 or len(logits) != len(prompts):
        raise ValueError(f"logits {tuple(logits.shape)} do not have one row for each of {len(prompts)} prompts")


def _gather(logits: Logits, prompts: Prompts) -> tuple[Float[Tensor, "b a"], Float[Tensor, "b w"]]:
    """The logits of the right and of the wrong answers in float32, meaningless where the masks are false."""
    _check(logits, prompts)
    tokens: tuple[Int[Tensor, "b any"], ...] = (prompts.answers, prompts.wrong_answers)
    right, wrong = (logits.gather(1, token.to(logits.device)).float() for token in tokens)
    return right, wrong


def _masks(logits: Logits, prompts: Prompts) -> tuple[Bool[Tensor, "b a"], Bool[Tensor, "b w"]]:
    return prompts.answer_mask.to(logits.device), prompts.wrong_mask.to(logits.device)


def _sum(values: Float[Tensor, "b any"], mask: Bool[Tensor, "b any"]) -> Values:
    # Zero rather than multiply: what stands at padding may be infinite.
    return values.masked_fill(~mask, 0.0).sum(dim=1)


def _probabilities(logits: Logits, prompts: Prompts) -> tuple[Values, Values]:
    """P(A) and P(W)."""
    (right, wrong), (right_mask, wrong_mask) = _gather(logits, prompts), _masks(logits, prompts)
    total = logits.float().logsumexp(dim=1, keepdim=True)
    return _sum((right - total).exp(), right_mask), _sum((wrong - total).exp(), wrong_mask)
