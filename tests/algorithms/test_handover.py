"""Who holds a role from when to when."""

import pandas as pd

from circuits_over_time.utils.algorithms.handover import role_handover
from circuits_over_time.utils.results.kinds import IOI_CONSISTENCY_HEADS


def test_handover_tells_who_follows_whom() -> None:
    held = {10: {(1, 0)}, 20: {(1, 0), (2, 1)}, 30: {(2, 1)}, 40: set(), 50: {(2, 1)}}
    rows = [
        {"step": step, "tokens": 5 * step, "level": "name_movers", "layer": layer, "head": head, "role": "name_mover",
         "effect": -step / 100, "passes": (layer, head) in heads}
        for step, heads in held.items() for layer, head in ((1, 0), (2, 1))
    ]  # fmt: skip
    rows.append(rows[0] | {"layer": 0, "head": 3, "role": "s_inhibition", "passes": False})
    rows.append(rows[0] | {"layer": 0, "head": 2, "role": "duplicate_token", "step": 50, "tokens": 250, "passes": True})
    table = role_handover(pd.DataFrame(rows[::-1]), [0, 10, 20, 30, 40, 50])
    assert table[["role", "layer", "head", "first_step", "last_step", "n_held", "n_between"]].to_numpy().tolist() == [
        ["name_mover", 1, 0, 10, 20, 2, 2],
        ["name_mover", 2, 1, 20, 50, 3, 4],
        ["duplicate_token", 0, 2, 50, 50, 1, 1],
    ]
    assert table["first_tokens"].to_list() == [50, 100, 250]
    assert table["peak_step"].to_list() == [20, 50, 50]
    assert table["peak_effect"].to_list() == [-0.2, -0.5, -0.1]


def test_handover_without_any_role_has_no_rows() -> None:
    assert role_handover(pd.DataFrame(columns=["step", "tokens", *IOI_CONSISTENCY_HEADS.columns]), [0, 1]).empty
