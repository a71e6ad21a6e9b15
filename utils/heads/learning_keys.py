"""Keys of get_learning_coefficients_over_time.py. Nothing here imports torch."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field, field_validator

from circuits_over_time.edge_attribution_patching.graph import head_named

from ..base.errors import UserError
from ..config.components import require_heads
from ..config.keys import BaseConfig, Section, amount, at_home, different, key
from ..tasks.prompts import Work

if TYPE_CHECKING:
    from circuits_over_time.edge_attribution_patching.model.architectures import Shape

    from ..models.tokenizers import PlainShape


def _heads(names: list[str]) -> list[str]:
    for name in different(names) if names else ():
        if name != "all" and head_named(name) is None:
            raise ValueError(f"'{name}' names no head; write [all], or names such as [a3.h1, a4.h0]")
    return names


class SamplerKeys(Section):
    """How devinterp samples: the arguments of its `sample`."""

    lr: float = key(1e-4, gt=0, le=1, reason="chains would diverge")
    """Step size of the sampler."""
    n_beta: float = key(30.0, gt=0, le=1e9, reason="no data set is larger")
    """Inverse temperature times the number of sequences."""
    localization: float = key(100.0, ge=0, le=1e9, reason="nothing would move")
    """How strongly draws are held near the checkpoint."""
    num_chains: int = amount(3, 2, most=1000)
    """How many chains."""
    num_draws: int = amount(100, 4, most=1_000_000)
    """Draws of each chain after burn-in."""
    num_burnin_steps: int = amount(50, 0, most=1_000_000)
    """Steps before the first draw."""
    batch_size: int = amount(16, most=100_000)
    """Sequences in a step."""


class LearningConfig(BaseConfig):
    """Keys of get_learning_coefficients_over_time.py. `batch_size` is that of `sampler`."""

    corpus: Annotated[str, AfterValidator(at_home)] = key(..., min_length=1, file=True)
    """The text whose loss counts: as for [copy suppression](../docs/heads.md#copy-suppression), or the `family.json`
    of a toy family, for rows of its training text."""
    corpus_split: str = key("train", min_length=1)
    """Which split of a data set."""
    corpus_field: str = key("text", min_length=1)
    """Which column of a data set, or field of a file with rows, holds the text."""
    n_sequences: int = amount(256, most=1_000_000)
    """How many sequences there are."""
    seq_len: int = amount(64, 2, most=1_000_000)
    """Tokens in a sequence; those of a toy family have their own width."""
    heads: Annotated[list[str], AfterValidator(_heads)] = Field([])
    """Heads to estimate by themselves, with all else fixed: `[a3.h1, a4.h0]`, or `[all]`."""
    sampler: SamplerKeys = SamplerKeys()

    @field_validator("device_map")
    @classmethod
    def _on_one_device(cls, value: str | None) -> str | None:
        if value is not None:
            raise ValueError(f"'{value}' is not for chains, which run on one device; leave it out")
        return value


def require_devinterp() -> None:
    """Refuse to go on without the package, and say how to install it."""
    try:
        importlib.metadata.version("devinterp")
    except importlib.metadata.PackageNotFoundError:
        raise UserError("devinterp is not installed; run: pip install -r requirements-devinterp.txt") from None


def require_fit(config: LearningConfig, shape: Shape | PlainShape) -> None:
    """Refuse, with a UserError, heads that the model has not got, too few sequences, and too long ones."""
    named = (name for name in config.heads if name != "all")
    require_heads("heads", named, shape.n_layers, shape.n_heads)
    if config.seq_len > shape.n_positions:
        raise UserError(f"seq_len: {config.seq_len} tokens; the model has {shape.n_positions} positions; lower seq_len")
    if config.n_sequences < config.sampler.batch_size:
        raise UserError(
            f"n_sequences: {config.n_sequences} do not fill a batch of {config.sampler.batch_size}; raise it"
        )


def inputs_of_learning(config: LearningConfig, tokenizer: Any, shape: PlainShape) -> Iterator[Work]:
    """What the chains read; errors are those of `learning_coefficients.prepare`."""
    require_devinterp()
    require_fit(config, shape)
    keys = config.sampler
    chains = keys.num_chains * (keys.num_burnin_steps + keys.num_draws)
    n = 1 + (shape.n_layers * shape.n_heads if "all" in config.heads else len(config.heads))
    yield Work("", [], 0, 3 * n * chains * keys.batch_size * config.seq_len)
