"""What a notebook may hand to the library by mistake: one clear ValueError or TypeError in the caller's words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import circuits_over_time as cot
from circuits_over_time.edge_attribution_patching.circuits.circuit import Circuit
from circuits_over_time.utils.circuits.handle import Model
from circuits_over_time.utils.circuits.measured import MeasuredCircuit
from tests.support.paths import TOY
from tests.support.random_models import random_model
from tests.support.task_tokenizers import words

NAMES = ["John", "Paul", "Mark", "Mary"]
ROWS: dict[str, Any] = {
    "clean": [f"When Susan and {name} went to the store, {name} gave a drink to" for name in NAMES],
    "corrupted": [f"When Susan and {name} went to the store, Susan gave a drink to" for name in NAMES],
    "answers": [" Susan"] * 4,
    "wrong_answers": [f" {name}" for name in NAMES],
}
FEW: dict[str, Any] = {"n_prompts": 4, "ig_steps": 2}


@pytest.fixture(scope="module")
def model() -> Model:
    """The trained checkpoint."""
    return cot.load(TOY, step=1350)


def not_finite(logits: torch.Tensor, prompts: object) -> torch.Tensor:
    """A metric that divides by zero."""
    return logits[:, 0] / 0


def test_load_names_the_argument_that_does_not_fit(model: Model) -> None:
    network, tokenizer = random_model("gpt2", n_layers=1, vocab=len(words())), words()
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: cot.load(3), TypeError, "model: int is neither a name, a folder nor a Hugging Face model"),  # type: ignore[arg-type]
        (lambda: cot.load(model), TypeError, "model: Model is neither"),  # type: ignore[arg-type]
        (lambda: cot.load(torch.nn.Linear(2, 2), 0, tokenizer), TypeError, "model: Linear is neither"),  # type: ignore[arg-type]
        (lambda: cot.load(network.transformer, 0, tokenizer), ValueError, "make it with AutoModelForCausalLM"),
        (lambda: cot.load(random_model("gpt2").to("meta"), 0, tokenizer), ValueError, "not in memory"),
        (lambda: cot.load(TOY, step="1350"), TypeError, "step='1350': not a whole number"),  # type: ignore[arg-type]
        (lambda: cot.load(TOY / "step1350", step="1350"), TypeError, "step='1350'"),  # type: ignore[arg-type]
        (lambda: cot.load(TOY, step=1350.0), TypeError, "step=1350.0"),  # type: ignore[arg-type]
        (lambda: cot.load(TOY, device_map="all"), ValueError, "device_map='all': not 'auto' or None"),  # type: ignore[arg-type]
        (lambda: cot.load(TOY, device="cpu", device_map="auto"), ValueError, "device='cpu' is one; leave it out"),
        (lambda: cot.load(network, 0, tokenizer, device_map="auto"), ValueError, "in memory stays where it is"),
        (lambda: cot.load(TOY, tokenizer="gpt2"), TypeError, "tokenizer: str is not a tokenizer"),  # type: ignore[arg-type]
        (lambda: cot.load(TOY, revision="main"), TypeError, "revision: .* did you mean 'revisions'"),
        (lambda: cot.load(TOY / "step1350", foo=1), TypeError, "foo: there is no such keyword"),
        (lambda: cot.load(TOY, stages=1), TypeError, "stages=1: not a list"),
        (lambda: cot.load(TOY, tokens_per_step="10"), TypeError, "tokens_per_step='10': not int"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()
    assert cot.load(TOY, step=np.int64(750)).step == 750  # type: ignore[arg-type]


def test_task_names_the_argument_that_does_not_fit() -> None:
    twice = pd.DataFrame([["a"] * 5], columns=[*ROWS, "clean"])
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: cot.task(3), TypeError, "prompts: int is not a name"),  # type: ignore[arg-type]
        (lambda: cot.task(ROWS), TypeError, "prompts: dict is not a name"),  # type: ignore[arg-type]
        (lambda: cot.task(twice), ValueError, "the same column twice"),
        (lambda: cot.task("ioi", metric=3), TypeError, "metric=3: not a name, nor a function"),  # type: ignore[arg-type]
        (lambda: cot.task(**{**ROWS, "clean": "text"}), TypeError, "clean: 'text' is not a list"),
        (lambda: cot.task(**{**ROWS, "answers": 3}), TypeError, "answers: 3 is not a list"),
        (lambda: cot.task(**ROWS, name=3), TypeError, "name=3: not text"),  # type: ignore[arg-type]
        (lambda: cot.task(**{**ROWS, "answers": [{" Susan"}] * 4}), ValueError, "row 1: answers is .*, not text"),
        (lambda: cot.task(**{**ROWS, "answers": [[[" a"]]] * 4}), ValueError, "row 1: answers is .*, not text"),
        (lambda: cot.task(**{**ROWS, "clean": [None] * 4}), ValueError, "row 1: clean is nan, not text"),
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


def test_other_columns_of_a_data_frame_may_lack_values_and_answers_may_be_arrays(model: Model) -> None:
    answers = pd.Series([np.array([" Susan"])] * 4)
    odd = pd.DataFrame({**ROWS, "answers": answers, "note": pd.Series([1, None, "a", np.nan], dtype=object)})
    plain = cot.performance(model, cot.task(**ROWS), n_prompts=4)
    pd.testing.assert_frame_equal(cot.performance(model, cot.task(odd), n_prompts=4), plain)


def test_keywords_may_be_arrays_and_errors_speak_python(model: Model) -> None:
    sva = cot.task("sva")
    for sizes in (np.array([10, 20]), torch.tensor([10, 20]), range(10, 30, 10)):
        assert cot.find_circuit(model, sva, **FEW, n_random=0, sizes=sizes).curve["size"].tolist() == [10, 20]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_random": None}, "n_random=None: not a whole number"),
        ({"threshold": "x"}, r"search.threshold='x': not a number"),
        ({"hypothesis_tests": 1}, r"hypothesis_tests=1: not True or False \(default: False\)"),
        ({"eap": {"ig_steps": 2}, "ig_steps": 3}, "ig_steps: given twice, by itself and in eap="),
        ({"eap": 3, "ig_steps": 3}, "ig_steps: given twice"),
    ]
    for keys, text in cases:
        with pytest.raises(TypeError, match=text):
            cot.find_circuit(model, sva, **keys)


def test_edges_heads_and_prompts_that_are_none_are_named(model: Model) -> None:
    sva = cot.task("sva")
    edges = pd.DataFrame({"source": ["m3", np.nan], "target": ["logits", "m3"]})
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: cot.evaluate("toy", sva, []), TypeError, "model: str is not a model"),  # type: ignore[arg-type]
        (lambda: cot.evaluate(model, sva, edges), ValueError, "no node 'nan'"),
        (lambda: cot.evaluate(model, sva, edges[["source"]]), ValueError, "no column 'target'"),
        (lambda: cot.evaluate(model, sva, {"graphs": edges}), TypeError, "neither names of edges"),
        (lambda: cot.path_effects(model, sva, senders=[]), ValueError, "senders: none"),
        (lambda: cot.path_effects(model, sva, senders=3), TypeError, "senders: 3 is not a list"),  # type: ignore[arg-type]
        (lambda: cot.path_effects(model, sva, receivers=[3]), TypeError, "receivers: .* not a list"),  # type: ignore[list-item]
        (lambda: cot.head_scores(model, ["copy"]), TypeError, "kind=.*: not text"),  # type: ignore[arg-type]
        (lambda: cot.attention("toy", "So"), TypeError, "model: str is not a model"),  # type: ignore[arg-type]
        (lambda: cot.attention(model, ["So"]), TypeError, "prompt: .* is not text"),  # type: ignore[arg-type]
    ]
    for call, error, text in cases:
        with pytest.raises(error, match=text):
            call()


def test_a_file_without_an_edge_is_refused_and_an_empty_list_is_the_empty_circuit(model: Model, tmp_path: Path) -> None:
    sva, graph = cot.task("sva"), model.graph
    (tmp_path / "header.csv").write_text("source,target\n")
    none = torch.zeros_like(graph.edge_mask)
    MeasuredCircuit(Circuit(graph, none.float(), none), about={"d_model": 128}).save(tmp_path / "none.json")
    for name in ("header.csv", "none.json"):
        for function in (cot.evaluate, cot.ablate):
            with pytest.raises(ValueError, match=rf"^edges: .*{name}: no edge is in its circuit; name another file"):
                function(model, sva, tmp_path / name, n_prompts=4)
    empty = cot.evaluate(model, sva, [], n_prompts=4)
    assert (empty.n_edges, empty.faithfulness) == (0, 0)


def test_a_list_of_units_in_the_results_is_no_list_of_edges(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "graphs" / "toy" / "ioi@eap+node" / "step000600.csv"
    path.parent.mkdir(parents=True)
    path.write_text("source,target,input\nm0,logits,\n")
    with pytest.raises(ValueError, match=r"step000600\.csv: lists nodes, not edges; name step000600\.pt beside it"):
        cot.ablate(model, cot.task("ioi"), path)


def test_a_mask_of_numpy_is_one_of_torch(model: Model) -> None:
    sva, mask = cot.task("sva"), model.graph.edge_mask
    values = [cot.evaluate(model, sva, one, n_prompts=4).values for one in (mask, mask.numpy())]
    assert torch.equal(*values)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    small = cot.load(random_model("gpt2", n_layers=1, vocab=50), tokenizer=words())
    for call in (
        lambda: cot.find_circuit(small, cot.task("ioi"), **FEW),
        lambda: cot.performance(small, cot.task("ioi"), n_prompts=4),
        lambda: cot.attention(small, "When Mary and John went"),
    ):
        with pytest.raises(ValueError, match="tokenizer: not the model's: token"):
            call()


def test_numbers_that_are_not_finite_are_blamed_on_what_made_them(model: Model) -> None:
    with pytest.raises(ValueError, match="metric: not_finite returned NaN or infinity"):
        cot.scores(model, cot.task("ioi", metric=not_finite), **FEW)
    network = random_model("gpt2", n_layers=1, vocab=len(words()))
    network.transformer.wte.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"model: transformer\.wte\.weight holds NaN or infinity in float32"):
        cot.scores(cot.load(network, tokenizer=words()), cot.task("ioi"), **FEW)


def test_scores_are_the_same_where_gradients_are_off(model: Model) -> None:
    expected = cot.scores(model, cot.task("sva"), **FEW)
    with torch.no_grad():
        pd.testing.assert_frame_equal(cot.scores(model, cot.task("sva"), **FEW), expected)
    with torch.inference_mode():
        pd.testing.assert_frame_equal(cot.scores(model, cot.task("sva"), **FEW), expected)


def test_no_circuit_is_read_back_as_none(tmp_path: Path) -> None:
    none = cot.find_circuit(cot.load(TOY, step=0), cot.task("sva"), **FEW)
    none.save(tmp_path / "none.pt")
    again = cot.read_circuit(tmp_path / "none.pt")
    assert again.status == none.status == "task not learned"
    assert repr(again) == repr(none)
    assert again._repr_html_() == none._repr_html_()
    assert list(again.nodes) == list(none.nodes)
    assert again.nodes.empty
    assert type(none.full) is float


def test_a_drawing_needs_an_edge(model: Model) -> None:
    circuit = cot.find_circuit(model, cot.task("sva"), **FEW, n_random=0)
    for strongest in (0, -1, "all"):
        with pytest.raises(ValueError, match=r"strongest=.*: not a number of edges"):
            circuit.draw(strongest)  # type: ignore[arg-type]
