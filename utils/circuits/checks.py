"""How far to trust a circuit: random circuits beside it, its spread over prompts, and statistical tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.controls import Controls, random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.hypothesis_tests import N_REFERENCES, run_tests
from circuits_over_time.edge_attribution_patching.statistics import percentile_interval, standard_error

from ..results.kinds import CONTROLS, HYPOTHESIS_TESTS, PROMPT_GROUPS

if TYPE_CHECKING:
    from .keys import CircuitsConfig
    from .report import CircuitPrompts, CircuitReport


@dataclass(frozen=True)
class Checked:
    """Tables of a circuit's checks; controls and tests have no rows where there is no circuit or none are asked for.

    Attributes:
        controls, groups, tests: of the kinds `controls`, `prompt_groups` and `hypothesis_tests`.
        summary: one line about the random circuits; empty without them.
    """

    controls: pd.DataFrame
    groups: pd.DataFrame
    tests: pd.DataFrame
    summary: str


def check(report: CircuitReport, prompts: CircuitPrompts, config: CircuitsConfig) -> Checked:
    """Compare a circuit with random ones, look at its prompts apart, and test it.

    Args:
        report: the circuit.
        prompts: those it was found with.
        config: `n_random` and `hypothesis_tests` say what to do.
    """
    groups = _groups_table(report, prompts, config.seed)
    controls = pd.DataFrame(columns=list(CONTROLS.columns))
    tests = pd.DataFrame(columns=list(HYPOTHESIS_TESTS.columns))
    if report.size is None:
        return Checked(controls, groups, tests, "")
    circuit, search = report.circuit, config.search
    n_random = max(config.n_random, N_REFERENCES) if config.hypothesis_tests else config.n_random
    summary = ""
    if n_random:
        masks = random_circuits(circuit, n_random, config.seed, search.order, report.signed)
        measured = Controls.of(report.evaluator, circuit, masks)
        if config.n_random:
            controls = _controls_table(report, measured, config.n_random)
            summary = _summary(controls, config.n_random)
        if config.hypothesis_tests:
            of_circuit = report.curve.values[report.size]
            outcomes = run_tests(report.evaluator, circuit, of_circuit, measured, config.seed)
            tests = pd.DataFrame(
                [(o.test, o.statistic, o.p_value, o.passes, o.n) for o in outcomes],
                columns=list(HYPOTHESIS_TESTS.columns),
            )
    return Checked(controls, groups, tests, summary)


def _controls_table(report: CircuitReport, measured: Controls, n_random: int) -> pd.DataFrame:
    """The circuit and the model without it, and the same for the first `n_random` random circuits."""
    assert report.size is not None
    corrupted, full = (float(values.double().mean()) for values in (report.curve.corrupted, report.curve.full))
    sizes = measured.masks.flatten(1).sum(1).tolist()
    rows: list[dict[str, object]] = []

    def add(control: str, number: int | None, n_edges: int, metric: Tensor, beaten: bool | None) -> None:
        mean = float(metric.double().mean())
        faithfulness = (mean - corrupted) / (full - corrupted)
        values = (control, number, n_edges, mean, standard_error(metric), faithfulness, beaten)
        rows.append(dict(zip(CONTROLS.columns, values, strict=True)))

    own, n_edges = report.curve.values[report.size], report.circuit.n_edges
    add("circuit", None, n_edges, own, None)
    for number in range(n_random):
        metric = measured.random[number]
        beaten = float(own.double().mean()) > float(metric.double().mean())
        add("random", number, sizes[number], metric, beaten)
    add("without_circuit", None, n_edges, measured.without, None)
    for number in range(n_random):
        metric = measured.without_random[number]
        beaten = float(measured.without.double().mean()) < float(metric.double().mean())
        add("without_random", number, sizes[number], metric, beaten)
    return pd.DataFrame(rows, columns=list(CONTROLS.columns)).astype({"number": "Int64", "beaten": "boolean"})


def _summary(controls: pd.DataFrame, n_random: int) -> str:
    of = controls.set_index("control")["faithfulness"]
    beaten = controls.groupby("control")["beaten"].sum()
    # Adding 0 makes 0.00 of -0.00.
    circuit, without = (round(of[name], 2) + 0 for name in ("circuit", "without_circuit"))
    return (
        f"{controls['n_edges'][0]} edges, faithfulness {circuit:.2f}, beats {beaten['random']} of {n_random} random "
        f"circuits; without it {without:.2f}, below {beaten['without_random']} of {n_random}"
    )


def _groups_table(report: CircuitReport, prompts: CircuitPrompts, seed: int) -> pd.DataFrame:
    """One row for all prompts and one for each kind of them, with quartiles over prompts."""
    groups: dict[str, Bool[Tensor, " prompt"]] = {"all": torch.ones(len(prompts.evaluation), dtype=torch.bool)}
    column = prompts.task.group
    if column is not None:
        kinds = prompts.evaluation.meta[column].astype(str)
        groups |= {kind: torch.tensor((kinds == kind).to_numpy()) for kind in sorted(kinds.unique())}
    curve = report.curve
    rows = []
    for name, members in groups.items():
        row = dict.fromkeys(PROMPT_GROUPS.columns) | {"group": name, "n_prompts": int(members.sum())}
        row |= {f"full{key}": value for key, value in _spread(curve.full[members]).items()}
        row["corrupted"] = float(curve.corrupted[members].double().mean())
        if report.size is not None:
            own = curve.values[report.size][members]
            here = FaithfulnessCurve(curve.full[members], curve.corrupted[members], {report.size: own})
            low, high = percentile_interval(here.resampled(seed))
            row |= {f"circuit{key}": value for key, value in _spread(own).items()}
            row["faithfulness"] = here.faithfulness(report.size)
            row["faithfulness_low"], row["faithfulness_high"] = float(low[0]), float(high[0])
        rows.append(row)
    return pd.DataFrame(rows, columns=list(PROMPT_GROUPS.columns))


def _spread(values: Float[Tensor, " prompt"]) -> dict[str, float]:
    quartiles = values.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    named = dict(zip(("_q25", "_median", "_q75"), quartiles, strict=True))
    return {"": float(values.double().mean()), "_se": standard_error(values)} | named
