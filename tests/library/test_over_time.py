"""One's own function at every checkpoint, and what is on disk."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import circuits_over_time as cot
from circuits_over_time.utils.circuits.handle import Model
from tests.support.paths import TOY

CALLS: list[int] = []


def norms(model: Model) -> pd.DataFrame:
    """A table of two rows."""
    CALLS.append(model.step)
    return pd.DataFrame({"part": ["in", "out"], "norm": [float(model.weights.embed.norm()), model.n_layers]})


def doubled(model: Model) -> dict:
    """The same under another name."""
    return {"norm": 2 * float(model.weights.embed.norm())}


def test_a_function_is_measured_once_at_every_checkpoint_and_goes_on(tmp_path: Path) -> None:
    CALLS.clear()
    keys = {"results_dir": tmp_path, "device": "cpu"}
    first = cot.over_time(TOY, [0, 1350], norms, **keys)
    assert CALLS == [0, 1350]
    assert first["step"].tolist() == [0, 0, 1350, 1350]
    assert list(first.columns) == ["model", "step", "tokens", "part", "norm"]
    for row in (1, 2):
        step = int(first["step"][row])
        expected = float(cot.load(TOY, step=step).weights.embed.norm()) if row == 2 else 4.0
        assert first["norm"][row] == expected
    more = cot.over_time(str(TOY), "all", norms, **keys)
    assert CALLS == [0, 1350, 750]
    assert more["step"].tolist() == [0, 0, 750, 750, 1350, 1350]
    pd.testing.assert_frame_equal(cot.results(tmp_path, "norms"), more)
    listed = cot.results(tmp_path)
    assert listed[["kind", "model", "checkpoints", "last"]].values.tolist() == [["norms", "toy", 3, 1350]]
    assert (tmp_path / "norms" / "toy" / "run.json").is_file()


def test_a_changed_function_and_a_bad_return_value_are_refused(tmp_path: Path) -> None:
    keys = {"results_dir": tmp_path, "device": "cpu"}
    cot.over_time(TOY, [0], norms, name="mine", **keys)
    with pytest.raises(ValueError, match=r"holds function=\w+, this run asks for \w+; pass overwrite=True"):
        cot.over_time(TOY, [0, 750], doubled, name="mine", **keys)
    again = cot.over_time(TOY, [0], doubled, name="mine", overwrite=True, **keys)
    assert list(again.columns) == ["model", "step", "tokens", "norm"]
    with pytest.raises(TypeError, match="returned str; return a data frame, a dict of one row, or a number"):
        cot.over_time(TOY, [0], lambda model: "text", name="text", **keys)
    with pytest.raises(ValueError, match="name='graphs'"):
        cot.over_time(TOY, [0], norms, name="graphs", **keys)
    with pytest.raises(ValueError, match="executor='ray': a function of your own is measured in this process"):
        cot.over_time(TOY, [0], norms, executor="ray", **keys)
    with pytest.raises(ValueError, match="step 3 is not in toy"):
        cot.over_time(TOY, [3], norms, **keys)
