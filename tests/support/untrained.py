"""Roles in the IOI algorithm of models that have learned nothing: every one that is found is false."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from circuits_over_time.edge_attribution_patching.model.architectures import read_shape
from circuits_over_time.edge_attribution_patching.model.weights import read_weights
from circuits_over_time.utils.algorithms.inputs import HeadFacts, IoiInputs, gather, prepare
from circuits_over_time.utils.algorithms.keys import IoiConsistencyConfig
from circuits_over_time.utils.algorithms.roles import give_roles, holders, reading_roles
from circuits_over_time.utils.models.checkpoint import CheckpointFiles, LoadedCheckpoint
from circuits_over_time.utils.tasks.metrics import Answers
from tests.support.ioi_setup import Setup, effects_of, turned_around
from tests.support.paths import TOY

KINDS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("gpt_neox", {"rotary_pct": 0.25}),
    "gpt_neox, wide": ("gpt_neox", {"rotary_pct": 0.25, "initializer_range": 0.05}),
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {}),
    "olmo2": ("olmo2", {}),
}
"""Architectures and the spread of their weights: transformers' own, and that of the toy family."""


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(TOY / "step0")


def untrained(kind: str, seed: int, n_layers: int = 4, n_heads: int = 4, d_model: int = 128) -> PreTrainedModel:
    """A model as it is before its first step."""
    model_type, options = KINDS[kind]
    sizes = {"hidden_size": d_model, "num_hidden_layers": n_layers, "num_attention_heads": n_heads}
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    if model_type == "gpt2":
        sizes = {names[name]: size for name, size in sizes.items()}
    else:
        options = options | {"intermediate_size": 2 * d_model}
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[model_type](vocab_size=len(tokenizer()), **sizes, **special, **options)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@dataclass(frozen=True)
class Simulation:
    """Untrained models of one kind, on the prompts and the text of the toy family."""

    kind: str
    config: IoiConsistencyConfig
    inputs: IoiInputs

    @classmethod
    def of(cls, kind: str) -> Simulation:
        """With all heads of the model in the circuit, so that no role is missed because there is no circuit."""
        config = IoiConsistencyConfig(
            model="untrained",
            results_dir=Path(TemporaryDirectory().name),
            circuit={"heads": "all"},
            components={"seq_len": 18},
            cspa={"corpus": "toy", "seq_len": 40, "prepend_bos": False},
            prepend_bos=False,
        )
        return cls(kind, config, prepare(config, tokenizer(), read_shape(untrained(kind, 0).config)))

    def draw(self, seed: int) -> tuple[Setup, HeadFacts]:
        """A model whose prompts have the answer that it happens to prefer, so that its effects have a unit."""
        model = untrained(self.kind, seed)
        weights, hashes = read_weights(model), Future()
        files = CheckpointFiles(Path(), {}, hashes.result)
        facts = gather(
            LoadedCheckpoint("untrained", 0, 0, weights, 0, tokenizer(), files, hashes), self.config, self.inputs
        )
        setup = Setup(model, weights, self.inputs.prompts, self.inputs.variants, self.config)
        clean, corrupted = (values.mean() for values in setup.runs(batch_size=70).both())
        return setup if clean > corrupted else turned_around(setup), facts

    def roles(self, seed: int) -> dict[str, Any]:
        """How many heads hold a role by each rule, and how many have the score that one of the third level asks for."""
        setup, facts = self.draw(seed)
        row: dict[str, Any] = {"kind": self.kind, "seed": seed, "n_heads": facts.copy.numel()}
        heads = facts.circuit_heads
        certain = effects_of(*[-1.0] * len(heads))
        for definitions in ("study", "standard"):
            levels = setup.levels(facts, definitions=definitions)
            found, _ = levels.run()
            held = found.heads[found.heads["passes"].astype(bool)]
            row[definitions] = len(held.drop_duplicates(["layer", "head"]))
            scored = reading_roles(heads, certain, facts, levels.limits, over_chance=levels.rate is not None)
            row[f"{definitions}_scores"] = len(holders(give_roles(heads, scored, levels.rate)))
        row |= self._of_noise(setup, facts, seed)
        of_chance = [getattr(facts, name) / facts.chance[name] for name in ("induction", "duplicate_token")]
        return row | {"highest_over_chance": float(torch.stack(of_chance).max())}

    def _of_noise(self, setup: Setup, facts: HeadFacts, seed: int) -> dict[str, int]:
        """How many heads are name movers if all copy, but the right answer is drawn at random: no effect is real."""
        answers = setup.prompts.answers
        turned = torch.rand(len(setup.prompts), 1, generator=torch.Generator().manual_seed(seed)) < 0.5
        right = (
            torch.where(turned, answers.wrong, answers.right),
            torch.where(turned, answers.wrong_mask, answers.right_mask),
        )
        wrong = (
            torch.where(turned, answers.right, answers.wrong),
            torch.where(turned, answers.right_mask, answers.wrong_mask),
        )
        noise = replace(setup, prompts=replace(setup.prompts, answers=Answers(*right, *wrong)))
        clean, corrupted = (values.mean() for values in noise.runs(batch_size=70).both())
        noise = noise if clean > corrupted else turned_around(noise)
        exact = {name: torch.zeros_like(error) for name, error in facts.errors.items()}
        copying = replace(facts, copy=torch.full_like(facts.copy, 90), errors=exact)
        counts = {}
        for definitions in ("study", "standard"):
            first = noise.measure(copying, definitions=definitions).heads.query("level == 'name_movers'")
            counts[f"{definitions}_of_noise"] = int(first["passes"].sum())
        return counts


def simulate(kind: str, seeds: range) -> pd.DataFrame:
    """One row a model."""
    simulation = Simulation.of(kind)
    return pd.DataFrame([simulation.roles(seed) for seed in seeds])
