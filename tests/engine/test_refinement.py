"""As many integration steps as it takes: the rule against integrals known in closed form, and against many points."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pytest
import torch

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.choices import MOST_PARTS
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.pairs import TokenPairs
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.edge_attribution_patching.scores.attribution import attribute
from circuits_over_time.edge_attribution_patching.scores.folds import FoldScores
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from circuits_over_time.edge_attribution_patching.scores.refinement import Points, refined
from circuits_over_time.utils.circuits.find import circuit_prompts, metric_of
from circuits_over_time.utils.circuits.keys import CircuitSettings
from circuits_over_time.utils.models.family import resolve_family
from circuits_over_time.utils.tasks import TASKS
from tests.support import eap_reference
from tests.support.paths import TOY, TOY_STEPS
from tests.support.random_models import random_model, random_pairs

GRAPH = Graph(1, 2, parallel=True)


def scores_of(gradient: Callable[[float], np.ndarray]) -> tuple[list[float], Callable[[Sequence[Points]], FoldScores]]:
    """The points that were asked for so far, and scores from gradients by prompt and edge, each prompt a fold."""
    asked: list[float] = []

    def at(rules: Sequence[Points]) -> FoldScores:
        (alphas, weights), *_ = rules
        asked.extend(alphas)
        by_prompt = torch.tensor(np.tensordot(weights, [gradient(alpha) for alpha in alphas], 1))
        sums = torch.zeros(len(by_prompt), GRAPH.n_forward * GRAPH.n_backward)
        sums[:, GRAPH.flat_edges] = by_prompt.float()
        return FoldScores(GRAPH, sums.view(-1, GRAPH.n_forward, GRAPH.n_backward), torch.ones(len(by_prompt)).long())

    return asked, at


@pytest.mark.parametrize(("tolerance", "parts"), [(1.0, 6), (0.2, 12), (0.06, 24), (1e-9, MOST_PARTS)])
def test_a_parabola_is_integrated_as_trapezoids_do_and_no_point_is_taken_twice(tolerance: float, parts: int) -> None:
    """T(m) of alpha^2 is 1/3 + 1 / (6 m^2), so its move from T(m/2) is 3 times its error."""
    height = np.random.default_rng(0).normal(size=(40, GRAPH.n_edges)) + 3
    asked, at = scores_of(lambda alpha: 10 * height * alpha**2)
    found = refined(at, tolerance)
    assert found.points == len(asked) == len(set(asked)) == parts + 1
    expected = 10 * height.mean(0) * (1 / 3 + 1 / (6 * parts**2))
    np.testing.assert_allclose(found.scores.flatten()[GRAPH.flat_edges], expected, rtol=1e-6)
    true = 10 * height.mean(0) / (6 * parts**2) / found.standard_error.flatten()[GRAPH.flat_edges].numpy()
    assert found.integration_error == pytest.approx(2.25 * np.quantile(true, 0.95), rel=0.01)
    assert parts == MOST_PARTS or found.integration_error <= tolerance


def test_the_error_that_is_claimed_holds_where_every_prompt_jumps_elsewhere() -> None:
    draw, missed, points = np.random.default_rng(1), 0, []
    for _ in range(100):
        place, height = draw.uniform(size=(60, 6, 1)), draw.normal(size=(60, 6, GRAPH.n_edges)) + 0.3
        _, at = scores_of(lambda alpha: (height * (place < alpha)).sum(1))  # noqa: B023
        found = refined(at, 0.25)
        off = np.abs(found.scores.flatten()[GRAPH.flat_edges].numpy() - (height * (1 - place)).sum(1).mean(0))
        missed += np.quantile(off / found.standard_error.flatten()[GRAPH.flat_edges].numpy(), 0.95) > 0.25
        points.append(found.points)
    assert missed <= 1
    assert np.mean(points) < 20


@pytest.mark.parametrize("budget", [1.0, 1e-7])
def test_scores_are_those_of_all_points_alone(budget: float) -> None:
    weights, pairs = read_weights(random_model("llama-grouped")), TokenPairs(*random_pairs(5))
    given = weights, pairs, eap_reference.logit_diff_metric(97, 5), torch.tensor([0, 1, 2, 0, 1])
    found = edge_scores(*given, steps="auto", tolerance=0.5, batch_size=2, memory_budget_gb=budget)
    assert found.points is not None
    alone = [attribute(*given, rules=[([k / (found.points - 1)], [1.0])]).sums for k in range(found.points)]
    expected = (torch.stack(alone).sum(0) - (alone[0] + alone[-1]) / 2) / (found.points - 1)
    torch.testing.assert_close(found.sums, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_single_prompt_has_no_standard_error_and_gets_1_percent_of_the_largest_score() -> None:
    weights, pairs = read_weights(random_model("neox-parallel")), TokenPairs(*random_pairs(1))
    scores = partial(edge_scores, weights, pairs, eap_reference.logit_diff_metric(97, 1))
    off = (scores(steps="auto").scores - scores(steps=81, quadrature="midpoint").scores).abs()
    assert off.flatten().quantile(0.95) < 0.01 * scores(steps=20).scores.abs().max()


def test_equal_prompts_end() -> None:
    """Their scores have no error of sampling at all, but what moves by rounding has not moved."""
    _, at = scores_of(lambda alpha: np.full((4, GRAPH.n_edges), 2.5))
    assert refined(at, 0.25).points == 7


@pytest.mark.parametrize("options", [{"method": "ceap"}, {"accumulate": "model"}])
def test_other_methods_want_a_number(options: dict) -> None:
    weights, pairs = read_weights(random_model("neox-parallel")), TokenPairs(*random_pairs(2))
    with pytest.raises(ValueError, match="ig_steps=auto"):
        edge_scores(weights, pairs, eap_reference.logit_diff_metric(97, 2), steps="auto", **options)


@pytest.mark.endurance
@pytest.mark.parametrize("task", ["ioi", "greater_than", "gendered_pronoun", "sva"])
def test_the_error_that_is_claimed_holds_on_the_toy_family(task: str) -> None:
    checkpoint = resolve_family(str(TOY), TOY).load(TOY_STEPS[-1], "float32", "cpu")
    settings = CircuitSettings(n_prompts=30, eap={"n_folds": 10})
    prompts = circuit_prompts(settings, TASKS[task], checkpoint.tokenizer, checkpoint.weights).scoring
    metric = metric_of(prompts, TASKS[task], checkpoint.weights, settings)
    scores = partial(edge_scores, checkpoint.weights, prompts.pairs, metric, torch.arange(len(prompts)) % 10)
    found, exact = scores(steps="auto"), scores(steps=81, quadrature="midpoint")
    strongest = exact.scores.abs().flatten().topk(500 if exact.graph.n_edges > 500 else exact.graph.n_edges).indices
    off = (found.scores - exact.scores).abs().flatten()[strongest]
    within = off <= 0.25 * exact.standard_error.flatten()[strongest] + 1e-6 * off.max()
    assert within.float().mean() >= 0.95
    assert found.points is not None
    assert found.points <= 25


def test_results_say_at_how_many_points_and_what_error_is_left() -> None:
    model, few = cot.load(str(TOY), step=TOY_STEPS[-1]), {"n_prompts": 10, "n_random": 0, "sizes": [20]}
    tables = {
        steps: cot.find_circuit(model, cot.task("sva"), ig_steps=steps, **few).tables["baselines"].iloc[0]
        for steps in ("auto", 3)
    }
    assert tables["auto"]["ig_points"] in (7, 13, 25, 49)
    assert 0 < tables["auto"]["ig_error"] <= 0.25
    assert tables[3][["ig_points", "ig_error"]].isna().all()
