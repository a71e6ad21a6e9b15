"""Where the circuit is known, because a compiler made the model from a program: methods find it, and nothing else."""

from typing import get_args

import pytest
import torch

from benchmarks.bench_truth import auroc, aurocs
from circuits_over_time.edge_attribution_patching.choices import Method
from circuits_over_time.edge_attribution_patching.graph import Graph
from circuits_over_time.edge_attribution_patching.model.forward import embed, forward, unembed
from circuits_over_time.edge_attribution_patching.model.packed_tokens import PackedTokens
from circuits_over_time.edge_attribution_patching.scores.methods import edge_scores
from tests.support.tracr_models import circuit, compiled, task

WEIGHTS, PROGRAMS = compiled()
NAMED = pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)


@NAMED
def test_the_model_answers_what_its_programs_do(program) -> None:
    first = sum(len(before.unembed) for before in PROGRAMS[: PROGRAMS.index(program)])
    for sequence, answer in zip(program.sequences, program.answers, strict=True):
        layout = PackedTokens.whole(torch.tensor([len(sequence)]))
        final = forward(WEIGHTS, layout, embed(WEIGHTS, layout, torch.tensor(sequence)))
        output = unembed(WEIGHTS, final[-1])[first : first + len(program.unembed)]
        assert answer == pytest.approx(float(output) if len(output) == 1 else int(output.argmax()), abs=1e-3)


@NAMED
def test_exactly_the_edges_of_the_program_have_an_effect(program) -> None:
    found = edge_scores(WEIGHTS, *task(PROGRAMS, program, n=10), method="exact")
    truth = circuit(WEIGHTS, program)
    assert truth.sum() > 1
    assert torch.equal(found.scores.abs() > 1e-5, truth)


def test_the_induction_program_is_an_induction_circuit() -> None:
    graph, program = Graph.of(WEIGHTS), next(one for one in PROGRAMS if one.name == "induction")
    edges = [graph.edge_name(*edge) for edge in circuit(WEIGHTS, program).nonzero().tolist()]
    (previous,) = {edge.partition("->")[0] for edge in edges if edge.startswith("a0")}
    (head,) = {edge.partition("->")[0] for edge in edges if edge.startswith("a1")}
    assert set(edges) == {
        f"input->{previous}<v>",
        f"{previous}->{head}<k>",
        f"input->{head}<q>",
        f"input->{head}<v>",
        f"{head}->logits",
    }


# Of exact scores, the test above says that the edges of the program alone are not 0.
@pytest.mark.parametrize("method", [method for method in get_args(Method) if method != "exact"])
def test_methods_find_the_programs_as_well_as_the_benchmark_says(method: Method) -> None:
    found = [aurocs(WEIGHTS, circuit(WEIGHTS, program), PROGRAMS, program, method) for program in PROGRAMS]
    edges = sum(each[0] for each in found) / len(found)
    expected = {"eap": 0.97, "clean_corrupted": 0.97, "ceap": 0.98, "relp": 0.89, "information_flow_routes": 0.73}
    assert edges == pytest.approx(expected.get(method, 1.0), abs=0.02)


def test_auroc_counts_pairs() -> None:
    values, true = torch.tensor([3.0, 1.0, 2.0, 1.0]), torch.tensor([True, True, False, False])
    assert auroc(values, true) == (1 + 1 + 0 + 0.5) / 4
