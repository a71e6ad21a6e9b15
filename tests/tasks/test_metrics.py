"""The metrics, against a plain computation in double precision, one prompt at a time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from circuits_over_time.utils.tasks.metrics import METRICS, Answers
from circuits_over_time.utils.tasks.prompts import padded

VOCABULARY = 11


def answers_of(right, wrong):
    """The given sets of answers."""
    return Answers(*padded(right, 0), *padded(wrong, 0))


@st.composite
def cases(draw):
    """Right and wrong answers, disjoint, and logits of each prompt."""
    n = draw(st.integers(1, 4))
    right, wrong = [], []
    for _ in range(n):
        order = draw(st.permutations(range(VOCABULARY)))
        first = draw(st.integers(1, VOCABULARY - 2))
        second = draw(st.integers(1, VOCABULARY - first))
        right.append(order[:first])
        wrong.append(order[first : first + second])
    logits = draw(
        st.lists(
            st.lists(st.floats(-20, 20, width=16), min_size=VOCABULARY, max_size=VOCABULARY), min_size=n, max_size=n
        )
    )
    return right, wrong, logits


def naive(name, logits, right, wrong):
    """A metric of one prompt from its definition."""
    logits = [float(value) for value in logits]
    whole = math.fsum(math.exp(value) for value in logits)
    p = [math.exp(value) / whole for value in logits]
    if name == "logit_diff":
        return sum(logits[t] for t in right) / len(right) - sum(logits[t] for t in wrong) / len(wrong)
    if name == "prob_diff":
        return sum(p[t] for t in right) - sum(p[t] for t in wrong)
    if name == "prob_mass":
        return sum(p[t] for t in right) + sum(p[t] for t in wrong)
    if name == "accuracy":
        return float(max(logits[t] for t in right) > max(logits[t] for t in wrong))
    assert name == "rank_0_rate"
    return float(logits.index(max(logits)) in right)


@pytest.mark.parametrize("name", METRICS)
@given(case=cases(), dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]))
@settings(deadline=None, max_examples=60)
def test_metrics_agree_with_their_definitions(name, case, dtype):
    right, wrong, logits = case
    values = METRICS[name](torch.tensor(logits, dtype=dtype), answers_of(right, wrong))
    assert values.dtype == torch.float32
    expected = [naive(name, *row) for row in zip(logits, right, wrong, strict=True)]
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_values_counted_by_hand():
    # P = 0.5, 0.25, 0.125, 0.125
    logits = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log()
    one = answers_of([[0]], [[1]])
    two = answers_of([[1, 2]], [[0]])
    expected = {"logit_diff": (math.log(2), math.log(8) / 2 - math.log(8)), "prob_diff": (0.25, -0.125)}
    expected |= {"prob_mass": (0.75, 0.875), "accuracy": (1, 0), "rank_0_rate": (1, 0)}
    for name, values in expected.items():
        for answers, value in zip((one, two), values, strict=True):
            assert METRICS[name](logits, answers).item() == pytest.approx(value, abs=1e-6), name


def test_a_tie_is_not_right_and_rank_0_goes_to_the_lowest_token():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0]])
    assert METRICS["accuracy"](logits, answers_of([[2]], [[1]])).item() == 0
    assert METRICS["accuracy"](logits, answers_of([[1]], [[2]])).item() == 0
    assert METRICS["rank_0_rate"](logits, answers_of([[2]], [[0]])).item() == 0
    assert METRICS["rank_0_rate"](logits, answers_of([[1]], [[0]])).item() == 1


def test_rank_0_needs_the_answer_to_beat_the_whole_vocabulary():
    logits = torch.tensor([[1.0, 2.0, 9.0]])
    answers = answers_of([[1]], [[0]])
    assert METRICS["accuracy"](logits, answers).item() == 1
    assert METRICS["rank_0_rate"](logits, answers).item() == 0


def test_padding_of_the_answers_counts_for_nothing():
    # Token 0 stands at padding; its logit is infinite here and it is no answer.
    logits = torch.tensor([[torch.inf, 1.0, 2.0, 4.0], [0.0, 1.0, 2.0, 4.0]])
    answers = answers_of([[1], [1, 2]], [[2], [0, 3]])
    assert METRICS["logit_diff"](logits, answers).tolist() == [-1.0, -0.5]
    assert METRICS["accuracy"](logits, answers).tolist() == [0.0, 0.0]


def test_low_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    answers = answers_of([list(range(1500))], [list(range(1500, 3001))])
    assert METRICS["prob_diff"](logits, answers).item() == pytest.approx(-1 / 4096, rel=1e-3)
    assert METRICS["prob_mass"](logits, answers).item() == pytest.approx(3001 / 4096, rel=1e-5)


@pytest.mark.parametrize("name", ["logit_diff", "prob_diff", "prob_mass"])
def test_gradients_agree_with_finite_differences(name):
    torch.manual_seed(0)
    logits = torch.randn(3, VOCABULARY, requires_grad=True)
    answers = answers_of([[0], [1, 2], [3]], [[4, 5], [6], [7, 8, 9]])
    (gradient,) = torch.autograd.grad(METRICS[name](logits, answers).sum(), logits)
    sets = list(zip([[0], [1, 2], [3]], [[4, 5], [6], [7, 8, 9]], strict=True))
    for row, column in ((0, 0), (0, 4), (1, 2), (1, 6), (2, 9), (2, 10)):
        bumped = [logits[row].detach().double().tolist() for _ in range(2)]
        for sign, values in zip((1, -1), bumped, strict=True):
            values[column] += sign * 1e-5
        up, down = (naive(name, values, *sets[row]) for values in bumped)
        assert gradient[row, column].item() == pytest.approx((up - down) / 2e-5, abs=1e-5)


def test_logits_of_another_number_of_prompts_are_refused():
    answers = answers_of([[0], [1]], [[2], [3]])
    for shape in ((3, 5), (2, 4, 5), (5,)):
        for metric in METRICS.values():
            with pytest.raises(ValueError, match=r"do not have one row for each of 2 prompts"):
                metric(torch.zeros(shape), answers)


def test_answers_that_do_not_fit_are_refused():
    right, wrong = padded([[0], [1]], 0), padded([[2]], 0)
    with pytest.raises(ValueError, match="2 prompts have right answers and 1 wrong ones"):
        Answers(*right, *wrong)
    with pytest.raises(ValueError, match="does not have the shape"):
        Answers(right[0], wrong[1], *wrong)
