"""Rotary position embeddings as configs ask for them (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .architecture_table import Architecture

if TYPE_CHECKING:
    from transformers import PretrainedConfig

KINDS: Mapping[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset({"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"}),
    "yarn": frozenset(
        {
            *("factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow"),
            *("mscale", "mscale_all_dim", "truncate"),
        }
    ),
}
"""Supported kinds of `rope_parameters`, and what each has besides `rope_theta`. None depends on the prompt's length."""

GPT_J_THETA = 10000.0


@dataclass(frozen=True, eq=False)
class Rotary:
    """Turns the first `2 * len(frequencies)` entries of a head's q and k: entries half of these apart, as a pair."""

    frequencies: Float[Tensor, " half"]  # angle a position, float32
    scale: float = 1.0  # factor of cosine and sine (YaRN's attention factor)


def check_rotary(config: PretrainedConfig, architecture: Architecture) -> None:
    """Refuse what `read_rotaries` cannot read: a ValueError of one line that names the field and its value."""
    if "rope_parameters" not in architecture.reads:
        return
    said = [config.rope_parameters]
    if architecture.rotary_by_layer_type:
        said = [config.rope_parameters[kind] for kind in dict.fromkeys(config.layer_types)]
    for parameters in said:
        kind = parameters.get("rope_type", "default")
        if kind not in KINDS:
            raise ValueError(f"rope_type={kind}: unknown rotary embedding (supported: {', '.join(KINDS)})")
        known = {"rope_type", "type", "rope_theta", *KINDS[kind]}
        if architecture.partial_rotary:
            known.add("partial_rotary_factor")
        for name, value in parameters.items():
            if name not in known and not (name == "partial_rotary_factor" and value == 1.0):
                raise ValueError(f"rope_parameters.{name}={value}: not supported for {config.model_type} ({kind} rope)")


def read_rotaries(
    config: PretrainedConfig, architecture: Architecture, n_layers: int, d_head: int
) -> tuple[Rotary | None, ...]:
    """Every layer's rotary embedding, or None; equal ones are one object. `check_rotary` must accept the config."""
    if "rotary_dim" in architecture.reads:
        return (_default(config.rotary_dim, GPT_J_THETA),) * n_layers
    if "rope_parameters" not in architecture.reads:
        return (None,) * n_layers

    def read(parameters: Mapping[str, Any], layer_type: str | None = None) -> Rotary:
        kind = parameters.get("rope_type", "default")
        if kind == "default":
            return _default(int(d_head * parameters.get("partial_rotary_factor", 1.0)), parameters["rope_theta"])
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # Slow to import, rarely needed.

        return Rotary(*ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), layer_type=layer_type))

    if architecture.rotary_by_layer_type:
        kinds = config.layer_types[:n_layers]
        by_kind = {kind: read(config.rope_parameters[kind], kind) for kind in set(kinds)}
        return tuple(by_kind[kind] for kind in kinds)
    rotary = read(config.rope_parameters)
    turns = config.no_rope_layers if "no_rope_layers" in architecture.reads else [True] * n_layers
    return tuple(rotary if turns[layer] else None for layer in range(n_layers))


def _default(dim: int, theta: float) -> Rotary:
    return Rotary(1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
