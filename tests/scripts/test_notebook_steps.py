"""Tables of the library as the circuit notebooks show them."""

from __future__ import annotations

import torch

import circuits_over_time as cot
from circuits_over_time.notebooks.steps import head_table, heads_of, map_of
from tests.support.paths import TOY


def test_a_table_of_heads_has_a_row_for_each_even_for_none() -> None:
    values = torch.arange(6.0).view(2, 3)
    assert head_table([(1, 0), (0, 2)], {"value": values}).to_dict("list") == {
        "head": ["a1.h0", "a0.h2"],
        "value": [3.0, 2.0],
    }
    assert list(head_table([], {"value": values}).columns) == ["head", "value"]


def test_maps_have_each_heads_value_at_its_place() -> None:
    model = cot.load(TOY, step=1350)
    effects = cot.path_effects(model, cot.task("ioi"), n_prompts=4)
    mapped = map_of(effects, model)
    assert mapped.shape == (4, 4)
    assert mapped[3, 1] == effects.set_index("sender")["effect"].astype("float32")["a3.h1"]
    assert effects["effect"].nunique() > 8
    circuit = cot.find_circuit(model, cot.task("ioi"), n_prompts=10, ig_steps=3, n_random=0)
    assert (3, 1) in heads_of(circuit)
    assert {f"a{layer}.h{head}" for layer, head in heads_of(circuit)} <= set(circuit.nodes["node"])
