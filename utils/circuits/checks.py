"""How far to trust a circuit: random circuits beside it, its spread over prompts, and statistical tests."""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuits_over_time.edge_attribution_patching.circuits.controls import Controls, random_circuits
from circuits_over_time.edge_attribution_patching.circuits.faithfulness import FaithfulnessCurve
from circuits_over_time.edge_attribution_patching.circuits.hypothesis_tests import N_REFERENCES, run_tests
from circuits_over_time.edge_attribution_patching.statistics import percentile_interval, standard_error

from ..results.kinds import CONTROLS, HYPOTHESIS_TESTS, PROMPT_GROUPS
from .find import CircuitPrompts, FoundCircuit
from .keys import CircuitSettings


def compare_with_random(found: FoundCircuit, settings: CircuitSettings) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables of random circuits (`n_random`) and of statistical tests (`hypothesis_tests`).

    They have no rows where there is no circuit, or none are asked for. Both use the same random circuits.
    """
    controls = pd.DataFrame(columns=list(CONTROLS.columns))
    tests = pd.DataFrame(columns=list(HYPOTHESIS_TESTS.columns))
    n_random, seed = settings.n_random, settings.seed
    n_masks = max(n_random, N_REFERENCES) if settings.hypothesis_tests else n_random
    if found.size is None or not n_masks:
        return controls, tests
    masks = random_circuits(found.circuit, n_masks, seed, settings.search.order, found.signed)
    measured = Controls.of(found.evaluator, found.circuit, masks)
    if n_random:
        controls = _controls_table(found, measured, n_random)
    if settings.hypothesis_tests:
        values = found.curve.values[found.size]
        outcomes = run_tests(found.evaluator, found.circuit, values, measured, seed)
        rows = [(o.test, o.statistic, o.p_value, o.passes, o.n) for o in outcomes]
        tests = pd.DataFrame(rows, columns=list(HYPOTHESIS_TESTS.columns))
    return controls, tests


def _controls_table(found: FoundCircuit, measured: Controls, n_random: int) -> pd.DataFrame:
    """The circuit and the model without it, and the same for the first `n_random` random circuits."""
    assert found.size is not None
    corrupted, full = (float(values.double().mean()) for values in (found.curve.corrupted, found.curve.full))
    sizes = measured.masks.flatten(1).sum(1).tolist()
    rows: list[dict[str, object]] = []

    def add(control: str, number: int | None, n_edges: int, metric: Tensor, beaten: bool | None) -> None:
        mean = float(metric.double().mean())
        faithfulness = (mean - corrupted) / (full - corrupted)
        values = (control, number, n_edges, mean, standard_error(metric), faithfulness, beaten)
        rows.append(dict(zip(CONTROLS.columns, values, strict=True)))

    own, n_edges = found.curve.values[found.size], found.circuit.n_edges
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


def controls_in_words(controls: pd.DataFrame) -> str:
    """One line about the random circuits."""
    faithfulness = controls.set_index("control")["faithfulness"]
    n_random = int((controls["control"] == "random").sum())
    beaten = controls.groupby("control")["beaten"].sum()
    # Adding 0 makes 0.00 of -0.00.
    circuit, without = (round(faithfulness[name], 2) + 0 for name in ("circuit", "without_circuit"))
    return (
        f"{controls['n_edges'][0]} edges, faithfulness {circuit:.2f}, beats {beaten['random']} of {n_random} random "
        f"circuits; without it {without:.2f}, below {beaten['without_random']} of {n_random}"
    )


def groups_table(found: FoundCircuit, prompts: CircuitPrompts, seed: int) -> pd.DataFrame:
    """One row for all prompts and one for each kind of them, with quartiles over prompts."""
    groups: dict[str, Bool[Tensor, " prompt"]] = {"all": torch.ones(len(prompts.evaluation), dtype=torch.bool)}
    column = prompts.task.group
    if column is not None:
        kinds = prompts.evaluation.meta[column].astype(str)
        groups |= {kind: torch.tensor((kinds == kind).to_numpy()) for kind in sorted(kinds.unique())}
    curve = found.curve
    rows = []
    for name, members in groups.items():
        row = dict.fromkeys(PROMPT_GROUPS.columns) | {"group": name, "n_prompts": int(members.sum())}
        row |= {f"full{key}": value for key, value in _spread(curve.full[members]).items()}
        row["corrupted"] = float(curve.corrupted[members].double().mean())
        if found.size is not None:
            own = curve.values[found.size][members]
            here = FaithfulnessCurve(curve.full[members], curve.corrupted[members], {found.size: own})
            low, high = percentile_interval(here.resampled(seed))
            row |= {f"circuit{key}": value for key, value in _spread(own).items()}
            row["faithfulness"] = here.faithfulness(found.size)
            row["faithfulness_low"], row["faithfulness_high"] = float(low[0]), float(high[0])
        rows.append(row)
    return pd.DataFrame(rows, columns=list(PROMPT_GROUPS.columns))


def _spread(values: Float[Tensor, " prompt"]) -> dict[str, float]:
    quartiles = values.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    named = dict(zip(("_q25", "_median", "_q75"), quartiles, strict=True))
    return {"": float(values.double().mean()), "_se": standard_error(values)} | named
