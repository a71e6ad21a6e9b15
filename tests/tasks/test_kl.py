"""The metric that compares with the whole model: closed forms, scores, circuits and what is refused."""

import pytest
import torch
from torch.nn import functional as F

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.model.forward import answer_logits
from circuits_over_time.utils.base.errors import UserError
from circuits_over_time.utils.circuits.find import circuit_prompts
from circuits_over_time.utils.circuits.keys import CircuitSettings
from circuits_over_time.utils.tasks.metrics import ALL_METRICS
from tests.support.paths import TOY

FEW = {"n_prompts": 20, "ig_steps": 3, "n_random": 0}


def test_it_is_minus_the_divergence_from_the_whole_model() -> None:
    logits, whole = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0))
    expected = F.kl_div(logits.log_softmax(1), whole.log_softmax(1), log_target=True, reduction="none").sum(1)
    torch.testing.assert_close(ALL_METRICS["kl"](logits, whole), -expected)
    assert torch.equal(ALL_METRICS["kl"](whole + 3, whole).round(decimals=5), torch.zeros(5))


def test_circuits_found_with_it_are_those_of_a_function_that_does_the_same() -> None:
    model = cot.load(TOY, step=1350)

    def by_hand(logits, prompts):
        whole = answer_logits(model.weights, prompts.clean, prompts.lengths).clone()
        return -(whole.softmax(1) * (whole.log_softmax(1) - logits.log_softmax(1))).sum(1)

    circuit, same = (cot.find_circuit(model, cot.task("sva", metric=metric), **FEW) for metric in ("kl", by_hand))
    torch.testing.assert_close(circuit.circuit.scores, same.circuit.scores, rtol=1e-3, atol=1e-5)
    assert circuit.size == same.size
    assert circuit.full == pytest.approx(0, abs=1e-6)
    assert circuit.corrupted < -0.1
    assert circuit.faithfulness > 0.8
    assert circuit.tables["baselines"]["unit"].tolist() == ["nats"]
    table = cot.performance(model, cot.task("sva", metric="kl"), n_prompts=20).set_index(["run", "metric"])["value"]
    assert table["clean", "kl"] == pytest.approx(0, abs=1e-6)
    assert table["corrupted", "kl"] < -0.1


def test_it_has_no_raw_faithfulness_and_needs_a_model() -> None:
    model = cot.load(TOY, step=1350)
    settings = CircuitSettings(search={"criterion": "raw"})
    with pytest.raises(UserError, match=r"^search.criterion: raw divides by .* use normalised$"):
        circuit_prompts(settings, cot.task("sva", metric="kl"), model.tokenizer, model.weights)
    with pytest.raises(TypeError, match="needs the weights"):
        cot.prompts(model, cot.task("sva"), n_prompts=2).metric("kl")


@pytest.mark.parametrize("method", ["eap", "relp"])
def test_scores_by_the_gradient_of_the_clean_run_alone_are_refused(method: str) -> None:
    model = cot.load(TOY, step=1350)
    settings = CircuitSettings(eap={"method": method})
    with pytest.raises(UserError, match=rf"^eap.method: {method} takes the gradient .* use eap_ig$"):
        circuit_prompts(settings, cot.task("sva", metric="kl"), model.tokenizer, model.weights)
