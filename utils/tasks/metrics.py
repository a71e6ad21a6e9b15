"""How well the logits at the end of a prompt answer it: one value per prompt, in float32.

A prompt has a set of right answers A and a set of wrong answers W, all single tokens. P is the softmax over the whole
vocabulary, computed in float32 whatever the dtype of the logits. The metric of a set of prompts is the mean over
prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    Logits = Float[Tensor, "b vocab"]
    Values = Float[Tensor, "b"]


@dataclass(frozen=True)
class Answers:
    """The right and the wrong answers to n prompts, as tokens; a ValueError if the parts do not fit each other."""

    right: Int[Tensor, "n a"]  # token ids, padded on the right; meaningless where the mask is false
    right_mask: Bool[Tensor, "n a"]  # true where there is a token, at least once in a row
    wrong: Int[Tensor, "n w"]
    wrong_mask: Bool[Tensor, "n w"]

    def __post_init__(self) -> None:
        if self.right.shape != self.right_mask.shape or self.wrong.shape != self.wrong_mask.shape:
            raise ValueError("a mask does not have the shape of its answers")
        if len(self.right) != len(self.wrong):
            raise ValueError(f"{len(self.right)} prompts have right answers and {len(self.wrong)} wrong ones")

    def select(self, index: Int[Tensor, " b"] | slice) -> Answers:
        return Answers(self.right[index], self.right_mask[index], self.wrong[index], self.wrong_mask[index])

    def to(self, device: torch.device | str) -> Answers:
        import torch

        from circuits_over_time.edge_attribution_patching.model.transfer import to_device

        return Answers(*to_device(list(vars(self).values()), torch.device(device)))


def logit_diff(logits: Logits, answers: Answers) -> Values:
    """Mean logit of the right answers minus mean logit of the wrong ones: logit(IO) - logit(S) in IOI."""
    (right, right_mask), (wrong, wrong_mask) = _gather(logits, answers)
    return _sum(right, right_mask) / right_mask.sum(dim=1) - _sum(wrong, wrong_mask) / wrong_mask.sum(dim=1)


def prob_diff(logits: Logits, answers: Answers) -> Values:
    """P(A) - P(W), the difference of the summed probabilities, in [-1, 1]."""
    right, wrong = _probabilities(logits, answers)
    return right - wrong


def prob_mass(logits: Logits, answers: Answers) -> Values:
    """P(A) + P(W), the probability of giving an answer at all, in [0, 1]."""
    right, wrong = _probabilities(logits, answers)
    return right + wrong


def accuracy(logits: Logits, answers: Answers) -> Values:
    """1 if the best right answer has a higher logit than the best wrong one, else 0. A tie counts as wrong."""
    right, wrong = (values.masked_fill(~mask, float("-inf")) for values, mask in _gather(logits, answers))
    return (right.amax(dim=1) > wrong.amax(dim=1)).float()


def rank_0_rate(logits: Logits, answers: Answers) -> Values:
    """1 if the likeliest token of all is a right answer, else 0. Of equally likely tokens the lowest id counts."""
    answers = _of(answers, logits)
    # argmax does not say which of equal values it returns, so ties are settled here.
    top = (logits == logits.amax(dim=1, keepdim=True)).int().argmax(dim=1)
    return ((answers.right == top[:, None]) & answers.right_mask).any(dim=1).float()


def kl(logits: Logits, whole: Logits) -> Values:
    """Minus the Kullback-Leibler divergence of what follows from what follows in the whole model, on the clean prompt:
    0 where both say the same. No answer is asked for."""
    expected = whole.float().log_softmax(dim=1)
    return (expected.exp() * (logits.float().log_softmax(dim=1) - expected)).sum(dim=1)


@dataclass(frozen=True)
class AnswerMetric:
    """A metric: call it with logits and answers (`kl`: with the whole model's logits)."""

    function: Callable[[Logits, Any], Values]
    label: str  # its name in figures, with its unit in brackets if the name does not tell it
    unit: str  # what its values count, as tables say it
    differentiable: bool = False  # whether circuits can be found with it

    def __call__(self, logits: Logits, answers: Answers) -> Values:
        return self.function(logits, answers)


METRICS: dict[str, AnswerMetric] = {
    "logit_diff": AnswerMetric(logit_diff, "logit difference (logits)", "logits", differentiable=True),
    "prob_diff": AnswerMetric(prob_diff, "probability difference", "probability", differentiable=True),
    "accuracy": AnswerMetric(accuracy, "accuracy (share of prompts)", "share of prompts"),
    "rank_0_rate": AnswerMetric(rank_0_rate, "rank-0 rate (share of prompts)", "share of prompts"),
    "prob_mass": AnswerMetric(prob_mass, "probability of the answers", "probability"),
}
"""Every metric of answers by its name, in the order of the figures."""
ALL_METRICS = METRICS | {"kl": AnswerMetric(kl, "minus KL divergence (nats)", "nats", differentiable=True)}
"""And what compares with the whole model."""
DIFFERENTIABLE = tuple(name for name, metric in ALL_METRICS.items() if metric.differentiable)
"""Those that can be the primary metric of a task."""


STUDY_METRICS: dict[str, Callable[[Logits, Answers], Values]] = {
    "accuracy": lambda logits, answers: (logit_diff(logits, answers) > 0).float(),
    "rank_0_rate": accuracy,
    "prob_mass": lambda logits, answers: _probabilities(logits, answers)[0],
}
"""Those that Tigges et al. 2024 (arXiv 2407.10827) define otherwise: mean logits decide the accuracy, only answers are
ranked, and only the right ones have the probability."""


def _of(answers: Answers, logits: Logits) -> Answers:
    """The answers on the device of logits, which have one row for each of them."""
    if logits.ndim != 2 or len(logits) != len(answers.right):
        raise ValueError(f"logits {tuple(logits.shape)} do not have one row for each of {len(answers.right)} prompts")
    return answers.to(logits.device)


def _gather(logits: Logits, answers: Answers) -> list[tuple[Float[Tensor, "b any"], Bool[Tensor, "b any"]]]:
    """The logits in float32 and the mask of the right answers, then of the wrong ones."""
    here = _of(answers, logits)
    both = ((here.right, here.right_mask), (here.wrong, here.wrong_mask))
    return [(logits.gather(1, tokens).float(), mask) for tokens, mask in both]


def _sum(values: Float[Tensor, "b any"], mask: Bool[Tensor, "b any"]) -> Values:
    # Fill with zeros rather than multiply by zero: the values at padding may be infinite.
    return values.masked_fill(~mask, 0.0).sum(dim=1)


def _probabilities(logits: Logits, answers: Answers) -> tuple[Values, Values]:
    (right, right_mask), (wrong, wrong_mask) = _gather(logits, answers)
    total = logits.float().logsumexp(dim=1, keepdim=True)
    return _sum((right - total).exp(), right_mask), _sum((wrong - total).exp(), wrong_mask)
