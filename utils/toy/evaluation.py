"""What a toy checkpoint can do: the skills of `utils.toy.text`, tested on held-out questions."""

import random
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import GPTNeoXForCausalLM, PreTrainedTokenizerBase

from .positions import position_question
from .text import EVALUATED, Question

QUESTIONS = 200
"""Questions for each skill."""
BLOCK, BLOCKS = 18, 20
"""Tokens of a random block whose second copy is predicted, and the number of blocks."""


class Examination:
    """The held-out questions, in tokens. They are the same at every checkpoint and for every training seed."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, positions: bool = False) -> None:
        rng = random.Random("toy examination")
        draws: dict[str, Callable[[], Question]] = {skill: partial(draw, rng) for skill, draw in EVALUATED.items()}
        if positions:
            draws["positions"] = partial(position_question, random.Random("toy examination: positions"), held_out=True)
        self._asked = {skill: _Asked(tokenizer, [draw() for _ in range(QUESTIONS)]) for skill, draw in draws.items()}
        vocabulary = [token for token in range(len(tokenizer)) if token != tokenizer.eos_token_id]
        self._blocks: Int[Tensor, "block token"] = torch.tensor(
            [rng.choices(vocabulary, k=BLOCK) * 2 for _ in range(BLOCKS)]
        )

    @torch.inference_mode()
    def results(self, model: GPTNeoXForCausalLM) -> dict[str, float]:
        """What a checkpoint can do: skill -> value.

        Accuracies are shares of questions, in [0, 1]. A question is right if the answer has a higher logit than the
        wrong one (`ioi`, `positions`), if right answers have more probability than wrong ones (`gendered_pronoun`,
        `sva`), or if the likeliest token is right (`succession`; `induction`, from the second token of the second copy
        on). `ioi_logit_diff` is logit(IO) - logit(S). `ioi_abc_logit_diff` is the same if a third person acts and one
        of the two names is taken for IO; `..._abs` is its mean absolute value. `greater_than_prob_diff` is P(later
        years) - P(all other years of the century).
        """
        logits = {skill: asked.logits(model) for skill, asked in self._asked.items()}
        succession = self._asked["succession"].right.gather(1, logits["succession"].argmax(-1, keepdim=True))
        predicted = model(self._blocks, use_cache=False).logits[:, BLOCK:-1].argmax(-1)
        for skill in ("greater_than", "gendered_pronoun", "sva"):
            logits[skill] = logits[skill].softmax(-1)
        beyond = {skill: asked.differences(logits[skill]) for skill, asked in self._asked.items()}  # right minus wrong
        results = {
            "ioi_accuracy": _fraction(beyond["ioi"] > 0),
            "ioi_logit_diff": beyond["ioi"].mean().item(),
            "ioi_abc_logit_diff": beyond["ioi_abc"].mean().item(),
            "ioi_abc_logit_diff_abs": beyond["ioi_abc"].abs().mean().item(),
            "greater_than_prob_diff": beyond["greater_than"].mean().item(),
            "gendered_pronoun_accuracy": _fraction(beyond["gendered_pronoun"] > 0),
            "sva_accuracy": _fraction(beyond["sva"] > 0),
            "succession_accuracy": _fraction(succession),
            "induction_accuracy": _fraction(predicted == self._blocks[:, BLOCK + 1 :]),
        }
        if "positions" in beyond:
            results["positions_accuracy"] = _fraction(beyond["positions"] > 0)
        return results


class _Asked:
    """Questions in tokens, right padded, and their right and wrong answers as masks over the vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> None:
        encoded = tokenizer([question.prompt for question in questions], return_tensors="pt", padding=True)
        self.tokens: Int[Tensor, "question width"] = encoded["input_ids"]
        self.ends: Int[Tensor, question] = encoded["attention_mask"].sum(1) - 1
        self.right = _mask(tokenizer, [question.right for question in questions])
        self.wrong = _mask(tokenizer, [question.wrong for question in questions])

    def logits(self, model: GPTNeoXForCausalLM) -> Float[Tensor, "question vocab"]:
        # Padding is on the right, so causal attention needs no mask for it.
        hidden = model.gpt_neox(self.tokens, use_cache=False).last_hidden_state
        logits: Tensor = model.lm_head(hidden[torch.arange(len(self.ends)), self.ends])
        return logits

    def differences(self, values: Float[Tensor, "question vocab"]) -> Float[Tensor, "question"]:
        """Sum over the right answers minus sum over the wrong ones."""
        return (values * (self.right.float() - self.wrong.float())).sum(-1)


def _mask(tokenizer: PreTrainedTokenizerBase, answers: Sequence[tuple[str, ...]]) -> Bool[Tensor, "question vocab"]:
    words = list(dict.fromkeys(word for row in answers for word in row))
    encoded = [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch(words)]
    if several := [word for word, ids in zip(words, encoded, strict=True) if len(ids) != 1]:
        raise ValueError(f"answer {several[0]!r} is not one token of the toy tokenizer")
    token = {word: ids[0] for word, ids in zip(words, encoded, strict=True)}
    mask = torch.zeros(len(answers), len(tokenizer), dtype=torch.bool)
    for row, right in zip(mask, answers, strict=True):
        row[[token[word] for word in right]] = True
    return mask


def _fraction(right: Tensor) -> float:
    return right.float().mean().item()
